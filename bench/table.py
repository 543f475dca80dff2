"""This machine's table: what interpcore does beside what people use, one thread, float32.

    python bench/table.py

CPU seconds, so that other work changes them little; every row runs the ways in turn in this process, after
one round that does not count, and gives the median ratio with its range. Results are compared before they
are timed. It takes under five minutes of a core. Peers are the modules in `peers/`, each with its version.
"""

import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from forward_statistics import forward_costs
from peers import with_transformers as peer
from study_circuits import ATTRIBUTIONS, pairs
from sweep_products import least_seconds, products_of

import interpcore
from interpcore import ops
from interpcore.circuits import Graph, attribute, exact
from interpcore.data.tokens import TokenShards
from interpcore.model import Cache, Model
from interpcore.model.jacobians import JacobianOperator
from interpcore.neurons.statistics.accumulate import BY_TOKEN, Statistics
from interpcore.neurons.statistics.summarize import estimate
from interpcore.ops.backend import isa
from interpcore.ops.product_routes import cpu_name

ROUNDS, VOCABULARY, PREFIX = 5, 50257, 64
Run = Callable[[], object]
Row = tuple[str, str, str]


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(f"{cpu_name()}, {isa()}, 1 thread, float32; torch {torch.__version__}, {peer.VERSION}")
    print("; ".join(f"{route}: {routine}" for route, routine in ops.product_routes().items()), end="\n\n")
    print("| what | against | measured |\n|---|---|---|")
    for part in (forwards, loading, circuits, jacobians, sweep, neurons):
        for row in part():
            print("| " + " | ".join(row) + " |", flush=True)


def in_turn(theirs: Run, ours: Run, rounds: int = ROUNDS) -> tuple[list[float], float]:
    """Ratios of CPU seconds, theirs over ours, and our median CPU seconds."""
    ratios, seconds = [], []
    for _ in range(rounds + 1):
        begun = time.process_time()
        theirs()
        between = time.process_time()
        ours()
        seconds.append(time.process_time() - between)
        ratios.append((between - begun) / seconds[-1])
    return ratios[1:], statistics.median(seconds[1:])


def spread(values: list[float]) -> str:
    """The median and the range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def faster(name: str, theirs: Run, ours: Run, rounds: int = ROUNDS) -> Row:
    """A row: how many times as fast."""
    ratios, seconds = in_turn(theirs, ours, rounds)
    return name, "transformers", f"{spread(ratios)} x as fast, {seconds:.3g} s"


def loaded(hf: Any) -> Model:
    """Ours on the same tensors."""
    model = interpcore.load(hf)
    assert isinstance(model, Model)
    return model


def forwards() -> Iterator[Row]:
    """Forward and generation at GPT-2 small's shape."""
    hf = peer.model()
    model = loaded(hf)
    tokens = torch.randint(VOCABULARY, (8, 64), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.forward(tokens).logits, peer.forward(hf, tokens), rtol=1e-3, atol=1e-4)
    shape = "GPT-2 small's shape"
    with torch.no_grad():
        yield faster(
            f"prefill 8 x 64, {shape}",
            lambda: peer.prefill(hf, tokens),
            lambda: model.forward(tokens, cache=Cache(), logits_at="last"),
        )
        yield faster(
            "forward 8 x 64, all logits", lambda: peer.forward(hf, tokens), lambda: model.forward(tokens)
        )
    for rows, prompt, steps in ((8, 64, 16), (8, 1, 16), (1, 16, 16)):
        some = tokens[:rows, :prompt]
        ours = model.generate(some, max_new_tokens=steps).tokens
        assert torch.equal(ours, peer.generate(hf, some, steps))
        yield faster(
            f"generate {rows} x ({prompt} + {steps})",
            lambda some=some, steps=steps: peer.generate(hf, some, steps),  # type: ignore[misc]
            lambda some=some, steps=steps: model.generate(some, max_new_tokens=steps),  # type: ignore[misc]
        )


def loading() -> Iterator[Row]:
    """A checkpoint of 124M parameters from disk."""
    with tempfile.TemporaryDirectory() as folder:
        peer.model().save_pretrained(folder)
        theirs = lambda: transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)  # noqa: E731
        for name, check in (("load 124M parameters, unchecked", False), ("the same, checked", True)):
            yield faster(name, theirs, lambda check=check: interpcore.load(folder, check=check))  # type: ignore[misc]


def circuits() -> Iterator[Row]:
    """Attribution in units of one forward and backward pass."""
    hf = peer.model(attn_implementation="eager")
    model = loaded(hf)
    some = pairs(model)
    against = "a transformers forward and backward"

    def unit() -> object:
        return peer.gradient(hf, some.clean, some.good, some.bad)

    for name in ("EAP", "EAP-IG left"):
        way = ATTRIBUTIONS[name]
        ratios, _ = in_turn(unit, lambda way=way: attribute(model, some, **way))  # type: ignore[misc]
        yield f"{name}, 4 pairs x 16 tokens", against, f"costs {spread([1 / r for r in ratios])} of it"
    graph = Graph.of(model)
    drawn = torch.rand(graph.legal.shape, generator=torch.Generator().manual_seed(0))
    edges = graph.legal & (drawn < 200 / graph.n_edges)
    ratios, _ = in_turn(unit, lambda: exact(model, some, edges=edges), 3)
    each = [1 / ratio / int(edges.sum()) for ratio in ratios]
    each.sort()
    yield (
        f"exact patching, {int(edges.sum())} edges drawn of {graph.n_edges:,}",
        against,
        f"costs {statistics.median(each):.3f} ({each[0]:.3f} to {each[-1]:.3f}) of it per edge",
    )


def jacobians() -> Iterator[Row]:
    """Jacobians at all depths, d = 384, 6 blocks, 64 + 7 tokens."""
    hf = peer.model(n_embd=384, n_layer=6, n_head=6, vocab_size=5000)
    model = loaded(hf)
    tokens = torch.randint(5000, (1, PREFIX + 7), generator=torch.Generator().manual_seed(0))
    ours = interpcore.jacobians(model, tokens, source_position=PREFIX, source_depths=[*range(6)])
    assert isinstance(ours.values, torch.Tensor)
    for depth in (0, 5):
        theirs = peer.jacobian(hf, tokens, PREFIX, depth)
        assert float((ours.values[0, depth] - theirs).norm() / theirs.norm()) < 1e-4

    def both() -> None:
        for depth in (0, 5):
            peer.jacobian(hf, tokens, PREFIX, depth)

    ratios, seconds = in_turn(
        both,
        lambda: interpcore.jacobians(model, tokens, source_position=PREFIX, source_depths=[*range(6)]),
        3,
    )
    # Its cost falls by the same amount from block to block, so that the first and the last stand for all.
    yield (
        "Jacobians at 6 depths, d = 384, 6 blocks, 64 + 7 tokens",
        "autograd.functional.jacobian, two depths timed",
        f"{spread([3 * ratio for ratio in ratios])} x as fast, {seconds:.3g} s",
    )


def sweep() -> Iterator[Row]:
    """The sweep over all depths against its own products, and products with its matrices without them."""
    model = loaded(peer.model(n_embd=384, n_layer=6, n_head=6, vocab_size=5000))
    tokens = torch.randint(5000, (1, PREFIX + 7), generator=torch.Generator().manual_seed(0))
    every = functools.partial(interpcore.jacobians, model, tokens, source_position=PREFIX)
    products, costs = products_of(every), []
    for _ in range(3):
        least = least_seconds(products)
        costs.append(statistics.median(in_seconds(every) for _ in range(3)) / least)
    what = "Jacobians at all 7 depths, d = 384, 6 blocks, 64 + 7 tokens"
    yield what, "their dense products, each by the routine best for it", f"cost {spread(costs)} of them"

    subjects = torch.randn(20, 384, generator=torch.Generator().manual_seed(1))
    values = every().values
    assert isinstance(values, torch.Tensor)

    def without() -> torch.Tensor:
        op = JacobianOperator.of(model, tokens, source_position=PREFIX, source_depth=0)
        return op.at_depths(subjects, range(7))

    def singly() -> None:
        for depth in range(7):
            every(source_depths=[depth])

    torch.testing.assert_close(without(), subjects @ values[0].mT, rtol=1e-3, atol=1e-4)
    for against, formed in (("forming W depth by depth", singly), ("the sweep that forms every W", every)):
        ratios, seconds = in_turn(formed, without, 3)
        what, measured = "W s of 20 subjects at 7 depths, W not formed", spread(ratios)
        yield what, against, f"{measured} x as fast, {seconds:.3g} s"


def neurons() -> Iterator[Row]:
    """What moments of every neuron add to a forward, and what all that a study gathers by default does."""
    model = loaded(peer.model(vocab_size=5000))
    costs = forward_costs(model, 8, 64, in_seconds)
    yield "moments of every neuron, 8 x 64 tokens", "the forward alone", f"add {costs['moments']:+.1%} to it"
    frequency = 1 / torch.arange(1, 5001)
    drawn = torch.multinomial(frequency, 64 * 64, True, generator=torch.Generator().manual_seed(0))
    tokens = drawn.view(64, 64)
    shards = TokenShards.of_arrays(tokens, 5000)
    added = []
    for _ in range(3):
        plain = in_seconds(lambda: model.forward(tokens[:16], logits_at=None)) / (16 * 64)
        found = estimate(
            model, shards, Statistics(by_token=BY_TOKEN), batch=16, seconds=1.0, clock=time.process_time
        )
        added.append(1 / found.tokens_per_second / plain - 1)
    what = "moments, two histograms, top 50, sums by position, token and the token before, 16 x 64 tokens"
    yield (
        what,
        "the forward alone",
        f"add {statistics.median(added):+.1%} to it ({min(added):+.1%} to {max(added):+.1%})",
    )


def in_seconds(run: Run) -> float:
    """CPU seconds of a call."""
    begun = time.process_time()
    run()
    return time.process_time() - begun


if __name__ == "__main__":
    main()
