"""Models whose answer is planted: what each block does is written into its weights, so that every claim about
it is true or false for certain. Built from the shipped config of GPT-2's type; nothing is trained.

The stream is split: one part holds the last word, one what a block leaves for another, one the answer;
LayerNorm ignores the direction of all ones. A block is a table: a neuron per word, from one part of the
stream to another. All other blocks write nothing, and no block attends.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from interpcore.agent.claims import Claim
from interpcore.data.tasks import Example, Task
from interpcore.errors import Refused
from interpcore.model import Model
from interpcore.model.load import load

KINDS = ("single", "redundant", "conjunction", "one_task", "order", "decoy", "null")
NULL = "null"
BLOCKS, EXAMPLES = 6, 260
_WORDS, _ANSWERS = 12, 12  # of each task; a word is a neuron and a direction
_NAMES = "amber birch cedar delta ember fjord grove haven inlet jetty knoll larch".split()
_IN, _OUT, _SHARP = 6.0, 12.0, 1.6  # size of a word, of an answer, and of the unembedding
Works = Callable[[str, Sequence[int]], bool]


@dataclass(frozen=True)
class Planted:
    """A model with its truth.

    Attributes:
        kind: what is planted.
        model: the decoder.
        tasks: what to ask it.
        works: whether a plan (task, blocks in order) keeps the task.
    """

    kind: str
    model: Model
    tasks: tuple[Task, ...]
    works: Works

    def holds(self, claim: Claim) -> bool:
        """Whether a claim is true."""
        every, task, blocks = list(range(BLOCKS)), claim.task, claim.blocks

        def broken(*without: int) -> bool:
            return not self.works(task, [b for b in every if b not in without])

        if self.kind == NULL:
            return False
        if claim.type == "matters":
            return broken(blocks[0])
        if claim.type == "does_not_matter":
            return not broken(blocks[0])
        if claim.type == "needs":
            kept = sorted(blocks)
            drops = [[k for k in kept if k != b] for b in kept]
            return self.works(task, kept) and not any(self.works(task, each) for each in drops)
        if claim.type == "appears_at":
            assert claim.n is not None
            return self.works(task, every[: claim.n]) and not self.works(task, every[: claim.n - 1])
        if claim.type == "interacts":
            i, j = blocks
            return broken(i, j) - broken(i) - broken(j) != 0
        worse, better = (_blocks(plan) for plan in claim.plans)
        return self.works(task, better) and not self.works(task, worse)

    def facts(self, kind: str) -> list[tuple[Any, ...]]:
        """What there is to find of a type of claim: (task, what). For `needs` and `appears_at` one for each
        task, whichever set or length is named."""
        if self.kind == NULL:
            return []
        names = [task.name for task in self.tasks]
        if kind in ("needs", "appears_at"):
            return [(name,) for name in names]
        each: list[dict[str, Any]]
        if kind in ("matters", "does_not_matter"):
            each = [{"blocks": (b,)} for b in range(BLOCKS)]
        elif kind == "interacts":
            each = [{"blocks": (i, j)} for i in range(BLOCKS) for j in range(i + 1, BLOCKS)]
        else:
            return []
        claims = [Claim(type=kind, task=name, runs=("any",), **what) for name in names for what in each]
        return [found_fact(claim) for claim in claims if self.holds(claim)]


def found_fact(claim: Claim) -> tuple[Any, ...]:
    """The fact that a true claim finds."""
    return (claim.task,) if claim.type in ("needs", "appears_at") else (claim.task, *sorted(claim.blocks))


def _blocks(plan: str) -> list[int]:
    """The blocks of a plan's text, as `instrument.listed` writes it."""
    found: list[int] = []
    for part in plan.split(", "):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def plant(kind: str, seed: int) -> Planted:
    """A model of a kind; which blocks, words, answers and names is drawn, so that knowing other models does
    not help.

    Args:
        kind: one of `KINDS`: one block alone matters; two stand in for one another; one needs the other's
            output; each of two tasks has a block of its own; two blocks may run in one order only; a block
            writes much that nothing reads; nothing (untrained weights, answers at random).
        seed: of everything drawn.
    """
    if kind not in KINDS:
        raise Refused(f"There is no planted kind {kind!r}; there are {', '.join(KINDS)}.")
    draw = random.Random(f"planted {kind} {seed}")
    base = load("tiny", check=False)
    tokenizer = base.tokenizer
    words = [token for token in range(base.spec.vocab_size) if _is_word(tokenizer.decode([token]))]
    draw.shuffle(words)
    taken, names = iter(words), draw.sample(_NAMES, 2)
    tables = {
        name: dict(
            zip((next(taken) for _ in range(_WORDS)), (next(taken) for _ in range(_ANSWERS)), strict=True)
        )
        for name in names[: 2 if kind == "one_task" else 1]
    }
    fillers = [next(taken) for _ in range(60)]
    tasks = tuple(_task(name, table, fillers, tokenizer, draw) for name, table in tables.items())
    torch_seed = draw.randrange(1 << 31)
    if kind == NULL:
        return Planted(kind, _untrained(torch_seed, tokenizer), tasks, lambda task, blocks: False)
    weights = _Weights(torch_seed, [pair for table in tables.values() for pair in table.items()])
    works = _write(kind, weights, tables, draw)
    return Planted(kind, _with_tokenizer(load(weights.hf, check=False), tokenizer), tasks, works)


def _write(kind: str, weights: _Weights, tables: dict[str, dict[int, int]], draw: random.Random) -> Works:
    """Write what a kind plants; gives when it works."""
    first, second, third = sorted(draw.sample(range(BLOCKS), 3))
    places = [first, second, third]
    draw.shuffle(places)
    one, [name, *others] = places[0], list(tables)
    every = list(tables[name])
    if kind in ("single", "decoy"):
        weights.table(one, every, weights.word, weights.answer, _OUT)
        if kind == "decoy":
            weights.table(places[1], every, weights.word, lambda word: weights.ones, 50 * _OUT)
        return lambda task, blocks: one in blocks
    if kind == "redundant":
        for block in (first, second):
            weights.table(block, every, weights.word, weights.answer, _OUT / 2)
        return lambda task, blocks: first in blocks or second in blocks
    if kind == "conjunction":
        weights.table(first, every, weights.word, weights.middle, _OUT / 2)
        weights.table(second, every, weights.middle, weights.answer, _OUT)
        return lambda task, blocks: first in blocks and second in blocks[list(blocks).index(first) :]
    if kind == "one_task":
        owner = {name: first, others[0]: second}
        for task, block in owner.items():
            weights.table(block, list(tables[task]), weights.word, weights.answer, _OUT)
        return lambda task, blocks: owner[task] in blocks
    # "order": first writes over the answer where it reads the flag that second sets; it runs too early to.
    weights.table(third, every, weights.word, weights.answer, _OUT)
    weights.table(second, every, weights.word, lambda word: weights.flag, _OUT / 4)
    weights.table(first, [None], lambda word: weights.flag, lambda word: weights.wrong, 8 * _OUT)

    def works(task: str, blocks: Sequence[int]) -> bool:
        order = list(blocks)
        spoilt = first in order and second in order and order.index(second) < order.index(first)
        return third in order and not spoilt

    return works


class _Weights:
    """A transformers model whose blocks write nothing, and the directions that tables are made of."""

    def __init__(self, seed: int, pairs: Sequence[tuple[int, int]]) -> None:
        self.hf = _random_model(seed)
        width = self.hf.config.n_embd
        generator = torch.Generator().manual_seed(seed)
        basis = torch.cat((torch.ones(width, 1), torch.randn(width, width - 1, generator=generator)), 1)
        directions = torch.linalg.qr(basis.double()).Q.float().T  # the first is all ones
        self.ones = directions[0]
        self.flag, self.wrong = directions[1], directions[2]
        n = len(pairs)
        self._in, self._middle, self._out = directions[3 : 3 + 3 * n].reshape(3, n, width)
        self._place = {word: i for i, (word, _) in enumerate(pairs)}
        hf = self.hf.transformer
        with torch.no_grad():
            for weight in (hf.wte.weight, hf.wpe.weight, self.hf.lm_head.weight):
                weight.zero_()
            for block in hf.h:
                for projection in (block.attn.c_proj, block.mlp.c_proj):
                    projection.weight.zero_()
                    projection.bias.zero_()
            for word, answer in pairs:
                hf.wte.weight[word] = _IN * self.word(word)
                self.hf.lm_head.weight[answer] = _SHARP * self.answer(word)
                self.hf.lm_head.weight[answer] -= _SHARP * self.wrong

    def word(self, word: Any) -> Tensor:
        """Where a word stands in the stream [d_model]."""
        return self._in[self._place[word]]

    def middle(self, word: Any) -> Tensor:
        """Where one block leaves a word for another [d_model]."""
        return self._middle[self._place[word]]

    def answer(self, word: Any) -> Tensor:
        """Where its answer is read [d_model]."""
        return self._out[self._place[word]]

    @torch.no_grad()
    def table(
        self,
        block: int,
        words: Sequence[Any],
        reads: Callable[[Any], Tensor],
        writes: Callable[[Any], Tensor],
        size: float,
    ) -> None:
        """Make a block write `size` times a direction where it reads another alone.

        Args:
            block: its number.
            words: one for each neuron, from the first.
            reads, writes: the directions of a word [d_model].
            size: of what is written.
        """
        mlp = self.hf.transformer.h[block].mlp
        alone = self.hf.config.n_embd**0.5  # what the norm makes of a direction by itself; gelu leaves that
        for neuron, word in enumerate(words):
            mlp.c_fc.weight[:, neuron] = reads(word)
            mlp.c_fc.bias[neuron] = 0.0
            mlp.c_proj.weight[neuron] = size / alone * writes(word)


def _random_model(seed: int) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=2304,
        n_embd=128,
        n_head=4,
        n_positions=256,
        n_layer=BLOCKS,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config).eval()


def _untrained(seed: int, tokenizer: Any) -> Model:
    return _with_tokenizer(load(_random_model(seed), check=False), tokenizer)


def _with_tokenizer(model: Any, tokenizer: Any) -> Model:
    assert isinstance(model, Model)
    return replace(model, tokenizer=tokenizer)


def _is_word(text: str) -> bool:
    return (
        text.startswith(" ")
        and len(text) > 3
        and text[1:].isascii()
        and text[1:].isalpha()
        and text.islower()
    )


def _task(name: str, table: dict[int, int], fillers: list[int], tokenizer: Any, draw: random.Random) -> Task:
    """Prompts that end in a word of the table, with the word that it leads to."""
    examples: dict[str, Example] = {}
    while len(examples) < EXAMPLES:
        word, before = draw.choice(list(table)), draw.sample(fillers, 2)
        prompt = tokenizer.decode([*before, word]).strip()
        ids = tokenizer(f"{prompt} {tokenizer.decode([table[word]]).strip()}").input_ids
        if ids[-2:] == [word, table[word]]:
            examples.setdefault(prompt, Example(prompt, tokenizer.decode([table[word]]).strip()))
    return Task(name, "a word after words", tuple(examples.values()), scorer="first_token")
