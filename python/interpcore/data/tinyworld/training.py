"""Training a tiny-world model: batches from the corpus, Muon and AdamW, a state on disk to resume from."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from interpcore.data.tinyworld import models
from interpcore.data.tinyworld.corpus import documents
from interpcore.data.tinyworld.loop import LoopForCausalLM
from interpcore.data.tinyworld.tokenizer import train_tokenizer
from interpcore.errors import Refused

TOKENIZER_DOCUMENTS = 60_000
GROUP = 32  # documents of about the same length that make one tensor
PADDING = -100


@dataclass(frozen=True)
class Recipe:
    """What fixes a training run: resuming demands the same recipe."""

    architecture: str = "gpt2"
    seed: int = 0
    steps: int = 1400
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    warm_up: int = 100
    documents: int = 144  # per step


class TrainingError(Refused):
    """A training run that cannot be started or resumed."""


@cache
def build_tokenizer() -> Any:
    """The world's tokenizer; the same on every call."""
    return train_tokenizer(documents("tokenizer", TOKENIZER_DOCUMENTS))


def batch(tokenizer: Any, recipe: Recipe, step: int) -> list[Tensor]:
    """The token rows of one step; they depend on the recipe and the step alone.

    A row is one document between end-of-text tokens, so that nothing distracts from it; every fifth step
    packs documents one after the other instead, as running text comes.

    Returns: tensors of token ids [rows, length], padded on the right with PADDING.
    """
    end = tokenizer.eos_token_id
    encoded = tokenizer(documents(f"{recipe.seed} {step}", recipe.documents))["input_ids"]
    if step % 5 == 4:
        stream = [token for ids in encoded for token in (end, *ids)]
        return [
            torch.tensor(stream[: len(stream) // models.POSITIONS * models.POSITIONS]).view(
                -1, models.POSITIONS
            )
        ]
    rows = sorted((torch.tensor([end, *ids, end][: models.POSITIONS]) for ids in encoded), key=len)
    groups = [rows[begin : begin + GROUP] for begin in range(0, len(rows), GROUP)]
    return [pad_sequence(group, batch_first=True, padding_value=PADDING) for group in groups]


def train(
    recipe: Recipe,
    out: Path,
    *,
    limit_seconds: float | None = None,
    keep: tuple[int, ...] = (),
    report: Callable[[str], None] = print,
) -> bool:
    """Train a model and write its folder; an unfinished run leaves a state and goes on from there next time.

    Args: recipe: what to train; out: the model folder to write; limit_seconds: stop after this long, leaving
        the state; keep: steps after which to also write a folder `<out>-step-<step>`; report: called with
        each line.
    Returns: True when the last step was done. Raises: TrainingError where a state of another recipe, or
        anything of the name of a folder to write, is in the way.
    """
    tokenizer = build_tokenizer()
    model = models.new_model(recipe.architecture, len(tokenizer), tokenizer.eos_token_id, recipe.seed)
    optimizers = _optimizers(model, recipe)
    state = out.with_name(out.name + ".state.safetensors")
    done, seconds = _load_state(state, recipe, model, optimizers)
    kept = [out.with_name(f"{out.name}-step-{step}") for step in keep]
    for folder in (out, *([] if done else kept)):
        if folder.exists():
            raise TrainingError(f"{folder} is there already; remove it, or choose another folder.")
    if done:
        report(f"resuming at step {done} of {recipe.steps}")
    begun, cpu_begun = time.monotonic(), time.process_time() - seconds
    saved = begun
    with _held_interrupts() as interrupts:
        while done < recipe.steps and not interrupts:
            if isinstance(model, LoopForCausalLM):
                model.draw(f"{recipe.seed} {done}")
            loss = _step(model, optimizers, batch(tokenizer, recipe, done), _rate(recipe, done))
            done += 1
            now, cpu = time.monotonic(), time.process_time() - cpu_begun
            if done in keep:
                models.save_model(model, tokenizer, out.with_name(f"{out.name}-step-{done}"))
            if done % 50 == 0 or done == 1:
                report(
                    f"step {done}/{recipe.steps}  loss {loss:.3f}  {cpu / 60:.1f} CPU-minutes, about "
                    f"{cpu / done * (recipe.steps - done) / 60:.1f} to go"
                )
            if limit_seconds is not None and now - begun > limit_seconds:
                break
            if now - saved > 60:
                _save_state(state, recipe, model, optimizers, done, cpu)
                saved = now
        if done < recipe.steps:
            _save_state(state, recipe, model, optimizers, done, time.process_time() - cpu_begun)
            report(f"stopped after step {done}; the same command goes on from here")
            return False
    models.save_model(model, tokenizer, out)
    state.unlink(missing_ok=True)
    return True


@contextmanager
def _held_interrupts() -> Iterator[list[int]]:
    """Collect SIGINT instead of raising inside a step, so that a stopped run leaves whole steps only."""
    held: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield held
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    try:
        yield held
    finally:
        signal.signal(signal.SIGINT, before)


def _step(
    model: PreTrainedModel, optimizers: list[torch.optim.Optimizer], parts: list[Tensor], rate: float
) -> float:
    hidden, targets = [], []
    for rows in parts:
        real = rows[:, 1:] != PADDING
        output = model.base_model(rows[:, :-1].clamp(min=0), use_cache=False).last_hidden_state
        hidden.append(output[real])
        targets.append(rows[:, 1:][real])
    loss = functional.cross_entropy(model.get_output_embeddings()(torch.cat(hidden)), torch.cat(targets))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.detach())


def _rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then a cosine down to a twentieth."""
    if step < recipe.warm_up:
        return recipe.learning_rate * (step + 1) / recipe.warm_up
    progress = (step - recipe.warm_up) / max(1, recipe.steps - recipe.warm_up)
    return recipe.learning_rate * (0.05 + 0.95 * (1 + math.cos(math.pi * progress)) / 2)


def _optimizers(model: PreTrainedModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embeddings, norms and biases."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    inner = [p for p in model.parameters() if p.ndim == 2 and id(p) not in embeddings]
    rest = [p for p in model.parameters() if p.ndim != 2 or id(p) in embeddings]
    return [
        torch.optim.Muon(
            inner, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _save_state(
    path: Path,
    recipe: Recipe,
    model: PreTrainedModel,
    optimizers: list[torch.optim.Optimizer],
    done: int,
    seconds: float,
) -> None:
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[f"weight/{name}"] = parameter.detach()
        for optimizer in optimizers:
            for part, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{part}/{name}"] = value
    header = {"recipe": json.dumps(asdict(recipe)), "done": str(done), "seconds": str(seconds)}
    temporary = path.with_suffix(".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, temporary, metadata=header)
    os.replace(temporary, path)


def _load_state(
    path: Path, recipe: Recipe, model: PreTrainedModel, optimizers: list[torch.optim.Optimizer]
) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    with safe_open(path, "pt") as stored:
        header: dict[str, str] = stored.metadata()
    if json.loads(header["recipe"]) != asdict(recipe):
        raise TrainingError(
            f"{path.name} holds a run of another recipe ({header['recipe']}); remove it "
            "or train to another folder."
        )
    parameters = dict(model.named_parameters())
    owners = {
        id(p): optimizer for optimizer in optimizers for g in optimizer.param_groups for p in g["params"]
    }
    for key, tensor in load_file(path).items():
        part, _, name = key.partition("/")
        if part == "weight":
            parameters[name].data.copy_(tensor)
        else:
            owners[id(parameters[name])].state[parameters[name]][part] = tensor
    return int(header["done"]), float(header["seconds"])
