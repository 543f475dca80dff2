"""Interventions on single neurons, all values at once on one clean forward.

A neuron of block d writes act * w_out into the stream that leaves the block, so an intervention that turns
act into act' adds (act' - act) w_out to resid[d + 1]: everything up to there is shared by all interventions,
and in the last block nothing but the final norm and the unembedding is left to do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.errors import Refused
from interpcore.model import Edit, Function, Model, Tap
from interpcore.model.mlp import ACTIVATIONS
from interpcore.model.readout import Readout, TokenMeasures, next_tokens, stacked

KINDS = ("zero", "threshold", "relu", "fixed", "multiply")
WITH_VALUE = ("threshold", "fixed", "multiply")
SITES = ("pre", "post")
NORMS = ("free", "frozen")

Neuron = tuple[int, int]
"""(layer, neuron), both from 0."""


@dataclass(frozen=True)
class Intervention:
    """What becomes of a neuron at every position.

    Args:
        kind: "zero"; "threshold": min(x, value); "relu": max(x, 0); "fixed": value; "multiply": value * x.
        value: of "threshold", "fixed" and "multiply".
        site: "pre", the activation function's argument (the gate's, where gated), or "post", what the down
            projection reads.
        name: what tables call it; its kind where empty.
    """

    kind: str
    value: float = 0.0
    site: str = "post"
    name: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.site not in SITES:
            raise Refused(
                f"An intervention is one of {', '.join(KINDS)} at {' or '.join(SITES)}; got {self.kind!r} at "
                f"{self.site!r}."
            )

    def __str__(self) -> str:
        amount = f" {self.value:g}" if self.kind in WITH_VALUE else ""
        return f"{self.kind}{amount} at {self.site}"

    def apply(self, x: Tensor) -> Tensor:
        """New values of x [any shape]."""
        if self.kind == "zero":
            return torch.zeros_like(x)
        if self.kind == "threshold":
            return x.clamp(max=self.value)
        if self.kind == "relu":
            return x.clamp(min=0)
        return torch.full_like(x, self.value) if self.kind == "fixed" else self.value * x

    def activation(self, model: Model, layer: int, pre: Tensor, post: Tensor, up: Tensor | None) -> Tensor:
        """The activation that the neuron then has.

        Args:
            model: whose activation function it is.
            layer: the neuron's.
            pre, post: its values before and after the function [any shape].
            up: the factor beside the gate, or None.
        """
        if self.site == "post":
            return self.apply(post)
        new = ACTIVATIONS[model.block(layer).neurons.activation](self.apply(pre))
        return new if up is None else new * up


@dataclass(frozen=True, eq=False)
class Clean(ShortRepr):
    """One forward without interventions.

    Args:
        tokens: [batch, position].
        after: layer -> resid[layer + 1] [batch, position, d_model].
        pre, post, up: neuron -> its values [batch, position]; `up` where gated.
        final: resid[D] [batch, position, d_model].
    """

    tokens: Tensor
    after: dict[int, Tensor]
    pre: dict[Neuron, Tensor]
    post: dict[Neuron, Tensor]
    up: dict[Neuron, Tensor]
    final: Tensor


def clean_run(model: Model, tokens: Tensor, neurons: Sequence[Neuron]) -> Clean:
    """Forward that keeps what interventions on these neurons start from.

    Args:
        model: the decoder.
        tokens: [batch, position] int64.
        neurons: which.
    Raises: ValueError for a neuron that is not there.
    """
    check_neurons(model, neurons)
    layers = sorted({layer for layer, _ in neurons})
    gated = model.spec.gated
    named = {"pre": "mlp_gate_pre" if gated else "mlp_pre", "post": "mlp_act"} | (
        {"up": "mlp_up"} if gated else {}
    )
    taps = {(name, layer): Tap(site, layer) for name, site in named.items() for layer in layers}
    streams = {depth: Tap("resid", depth) for depth in {*(d + 1 for d in layers), model.plan.n_calls}}
    with torch.no_grad():
        out = model.forward(tokens, taps=[*taps.values(), *streams.values()], logits_at=None)
    values = {
        name: {(d, n): out.taps[taps[name, d]][..., n].clone() for d, n in neurons} if name in named else {}
        for name in ("pre", "post", "up")
    }
    after = {d: out.taps[streams[d + 1]] for d in layers}
    final = out.taps[streams[model.plan.n_calls]]
    return Clean(tokens, after, values["pre"], values["post"], values["up"], final)


def intervene(
    model: Model,
    clean: Clean,
    neuron: Neuron,
    interventions: Sequence[Intervention],
    *,
    readout: Readout | None = None,
    norms: Sequence[str] = ("free",),
    max_rows: int = 64,
) -> dict[str, TokenMeasures]:
    """Measures of every token under each intervention.

    Args:
        model: the decoder.
        clean: a forward that kept this neuron.
        neuron: which.
        interventions: what to do with it.
        readout: how to measure; None takes `Readout(model)`.
        norms: "free", and "frozen" for the final norm's scale of the clean forward, which leaves the effect
            that does not go through the norm (Stolfo et al. 2024).
        max_rows: sequences that run together where later blocks must run; bounds memory.
    Returns: per norm, measures [intervention, batch, position].
    """
    if not norms or set(norms) - set(NORMS):
        raise Refused(f"norms are among {', '.join(NORMS)}; got {', '.join(norms) or 'none'}.")
    readout = Readout(model) if readout is None else readout
    layer, number = neuron
    acts = [
        i.activation(model, layer, clean.pre[neuron], clean.post[neuron], clean.up.get(neuron))
        for i in interventions
    ]
    shape = (len(acts), *clean.tokens.shape)
    target = next_tokens(clean.tokens).flatten()
    with torch.no_grad():
        frozen = readout.scale(clean.final).flatten() if "frozen" in norms else None
        scales = [frozen if norm == "frozen" else None for norm in norms]
        if layer == model.plan.n_calls - 1 and model.block(layer).additive:
            delta = torch.stack([(act - clean.post[neuron]).flatten() for act in acts])
            w = model.block(layer).neurons.down.weight[number]
            found = readout.along(clean.final.flatten(0, 1), w, delta, target, scales)
        else:
            nothing = clean.final.new_zeros(clean.final.shape[-1])
            versions = []
            for act in acts:
                final = _rerun(model, clean, neuron, act, max_rows).flatten(0, 1)
                zero = final.new_zeros((1, len(final)))
                versions.append(readout.along(final, nothing, zero, target, scales))
            found = [stacked(of_norm) for of_norm in zip(*versions, strict=True)]
    return {norm: measured.view(*shape) for norm, measured in zip(norms, found, strict=True)}


def measure_clean(model: Model, clean: Clean, readout: Readout | None = None) -> TokenMeasures:
    """Measures of every token without intervention [batch, position]."""
    readout = Readout(model) if readout is None else readout
    with torch.no_grad():
        found = readout.measure(clean.final.flatten(0, 1), next_tokens(clean.tokens).flatten())
    return found.view(*clean.tokens.shape)


def check_neurons(model: Model, neurons: Sequence[Neuron]) -> None:
    """Raises: ValueError for a model whose MLPs cannot be intervened on, or a neuron that is not there."""
    if not isinstance(model, Model):
        raise Refused(
            "Interventions on neurons read their weights, which the generic adapter does not show; edit its "
            "site mlp_act, or use a model family that interpcore has its own blocks for."
        )
    for layer, number in neurons:
        if not (0 <= layer < model.plan.n_calls and 0 <= number < model.spec.d_mlp):
            raise Refused(
                f"There is no neuron {layer}.{number}: {model.spec.name} has layers 0 to "
                f"{model.plan.n_calls - 1} of {model.spec.d_mlp} neurons."
            )


def parse_neurons(text: str | os.PathLike[str], model: Model) -> tuple[Neuron, ...]:
    """Neurons named as "3.120,3.7" or in a CSV file with the columns layer and neuron, each once.

    Args:
        text: the list, or the path of the file.
        model: whose neurons they are.
    Raises: ValueError for anything else, or a neuron that is not there.
    """
    if Path(text).suffix == ".csv":
        import pandas as pd

        if not Path(text).is_file():
            raise Refused(f"There is no file {text}.")
        try:
            frame = pd.read_csv(text)
            if not {"layer", "neuron"} <= set(frame.columns):
                raise Refused(f"it has no columns layer and neuron, but {', '.join(frame.columns)}")
            pairs = list(zip(frame.layer.astype(int), frame.neuron.astype(int), strict=True))
        except ValueError as error:
            raise Refused(f"{text} names no neurons: {error}.") from error
    else:
        try:
            pairs = [(int(a), int(b)) for a, b in (part.split(".") for part in str(text).split(","))]
        except ValueError as error:
            raise Refused(
                f"{text!r} names no neurons; write layer.neuron, such as 3.120,3.7, or a CSV file."
            ) from error
    check_neurons(model, pairs)
    return tuple(dict.fromkeys(pairs))


def _rerun(model: Model, clean: Clean, neuron: Neuron, act: Tensor, max_rows: int) -> Tensor:
    """resid[D] when the neuron has these activations [batch, position]."""
    layer, number = neuron
    final = Tap("resid", model.plan.n_calls)
    w = model.block(layer).neurons.down.weight[number]
    finals = []
    for at in range(0, len(act), max_rows):
        rows = slice(at, at + max_rows)
        if model.block(layer).additive:
            stream = clean.after[layer][rows] + (act - clean.post[neuron])[rows, :, None] * w
            out = model.run_from(layer + 1, stream, taps=[final], logits_at=None)
        else:
            edit = Edit("mlp_act", layer, None, Function(_overwrite(number, act[rows].flatten())))
            out = model.forward(clean.tokens[rows], taps=[final], edits=[edit], logits_at=None)
        finals.append(out.taps[final])
    return torch.cat(finals)


def _overwrite(number: int, act: Tensor) -> Callable[[Tensor], Tensor]:
    """Map of x [selected, d_mlp] that sets one neuron."""

    def apply(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, number] = act.to(x.dtype)
        return x

    return apply
