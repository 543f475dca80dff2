"""What circuits do when everything outside them is corrupted, and how much of the model's behaviour that
is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from interpcore.circuits.circuit import Circuit
from interpcore.circuits.graph import GraphError
from interpcore.circuits.metrics import Metric, as_metrics, restrict_to_answers
from interpcore.circuits.pairs import Pairs
from interpcore.circuits.patching.ablated import Ablated, ablate
from interpcore.circuits.patching.interventions import Intervention
from interpcore.circuits.patching.patched import run_patched
from interpcore.circuits.patching.sources import record
from interpcore.circuits.patching.whole import values_of_circuits
from interpcore.errors import Refused
from interpcore.model import Model
from interpcore.model.generic import GenericModel
from interpcore.model.made_on import check_made_on
from interpcore.model.memory import batch_memory, split_on_out_of_memory
from interpcore.runs import Progress
from interpcore.stats import Interval, ratio_of_means

CPU_MEMORY = 512 << 20


def evaluate(
    model: Model | GenericModel,
    pairs: Pairs,
    circuits: Sequence[Circuit],
    metrics: str | Metric | Sequence[str | Metric] = "logit_diff",
    *,
    intervention: str | Intervention = "patching",
    batch_size: int = 16,
    memory: int | None = None,
    progress: bool = False,
    other_model: bool = False,
) -> dict[str, Tensor]:
    """Each metric of each circuit on each pair, every edge outside the circuit corrupted.

    Circuits run together, as rows over the batch's one clean and one corrupted run. `Circuit.full` is the
    model itself, `Circuit.empty` has every edge corrupted.

    Args:
        model: the decoder.
        pairs: the examples.
        circuits: of one graph of the model, run as they are: `pruned()` drops nodes without a way in or out,
            which changes what zero and mean leave of a node without a way in.
        metrics: one or more.
        intervention: what corrupted edges carry; means are taken over `pairs`.
        batch_size: pairs run together; halved when memory runs out.
        memory: bytes that circuits run together may take; it sets how many those are. None for 512 MB on a
            CPU, a quarter of what is free on a GPU.
        progress: show it.
        other_model: take circuits (and means) that were made on another model, too.
    Returns: by metric name, values [circuit, pair] float64.
    Raises: GraphError for circuits of several graphs or of another graph than the model's, Refused for those
        of another model.
    """
    graphs = {circuit.graph for circuit in circuits}
    if len(graphs) != 1:
        raise GraphError(f"Circuits of one graph are evaluated together; got {len(graphs)} graphs.")
    for made_on in {circuit.made_on for circuit in circuits}:
        check_made_on(model, made_on, "The circuit was", other_model)
    chosen = as_metrics(metrics)
    if memory is None:
        memory = batch_memory(model.device, CPU_MEMORY)
    intervention = Intervention.of(intervention, model, pairs, batch_size=batch_size, other_model=other_model)
    order = torch.arange(len(pairs))
    if intervention.skips:
        # Pairs that begin to differ at the same position skip the same ones.
        order = pairs.first_difference.argsort(stable=True)
    values = torch.full((len(chosen), len(circuits), len(pairs)), torch.nan, dtype=torch.float64)
    batches = order.split(batch_size)
    with Progress("evaluation", len(batches), shown=progress) as shown, torch.no_grad():
        for rows in batches:
            given = circuits, chosen, intervention, memory, pairs
            if isinstance(model, GenericModel):
                run = partial(values_of_circuits, model, *given)
            else:
                run = partial(_batch, model, *given)
            for part, found in split_on_out_of_memory(rows.tolist(), run, "pairs"):
                values[:, :, list(part)] = found
            shown.advance()
    return {metric.name: value for metric, value in zip(chosen, values, strict=True)}


def _batch(
    model: Model,
    circuits: Sequence[Circuit],
    metrics: Sequence[Metric],
    intervention: Intervention,
    memory: int,
    pairs: Pairs,
    rows: Sequence[int],
) -> Tensor:
    """Values of some pairs [metric, circuit, row] float64, on the CPU."""
    part = pairs.rows(rows)
    clean = record(model, part.clean, part.lengths)
    ablated = ablate(model, part, intervention, clean)
    last = (part.lengths - 1).to(model.device)
    stream = clean.resid[-1][torch.arange(len(rows), device=model.device), last]
    clean_logits = model.unembed(model.final_norm(stream))
    values = torch.empty((len(metrics), len(circuits), len(rows)), dtype=torch.float64)
    whole = [c.neurons is None and bool(c.edges.equal(c.graph.legal)) for c in circuits]

    for i, metric in enumerate(metrics):
        values[i, whole] = metric(clean_logits, part, clean_logits).double().cpu()
    model, part = restrict_to_answers(model, part, metrics)
    for group in _groups([i for i, is_whole in enumerate(whole) if not is_whole], circuits, ablated, memory):
        run = partial(_logits, model, circuits, ablated)
        for which, logits in split_on_out_of_memory(group, run, "circuits"):
            for i, metric in enumerate(metrics):
                values[i, list(which)] = metric(logits, part, clean_logits).double().cpu()
    return values


def _logits(model: Model, circuits: Sequence[Circuit], ablated: Ablated, which: Sequence[int]) -> Tensor:
    """[circuit, pair, vocabulary] of some circuits."""
    chosen = [circuits[i] for i in which]
    neurons = None
    if any(circuit.neurons is not None for circuit in chosen):
        every = torch.ones(chosen[0].graph.n_sources, model.spec.d_model, dtype=torch.bool)
        neurons = torch.stack([every if c.neurons is None else c.neurons for c in chosen])
    edges = torch.stack([circuit.edges for circuit in chosen])
    return run_patched(model, chosen[0].graph, ablated, edges, neurons=neurons)


def _groups(
    which: Sequence[int], circuits: Sequence[Circuit], ablated: Ablated, memory: int
) -> Iterator[Sequence[int]]:
    """Consecutive circuits that fit the memory together, at least one."""
    live = ablated.clean_input[:, ablated.first :]
    group: list[int] = []
    left = memory
    for i in which:
        circuit = circuits[i]
        per_layer = circuit.edges.any(0).long()
        busiest = int(
            torch.zeros(circuit.graph.blocks + 1, dtype=torch.int64)
            .index_add_(0, circuit.graph.destination_layers, per_layer)
            .max()
        )
        # What sources leave behind, and inputs of one layer before and after the norm and as they are sorted.
        needed = (int(circuit.edges.any(1).sum()) + 3 * busiest) * live.numel() * live.element_size()
        if group and needed > left:
            yield group
            group, left = [], memory
        group.append(i)
        left -= needed
    if group:
        yield group


def faithfulness(
    values: ArrayLike,
    full: ArrayLike,
    empty: ArrayLike,
    *,
    level: float = 0.95,
) -> Interval:
    """(m(C) - m(0)) / (m(full) - m(0)) with the means over pairs taken before the ratio, and Fieller's
    interval over the pairs, see `ratio_of_means`.

    Args:
        values: the circuit's metric on each pair [n].
        full: the model's [n].
        empty: with every edge corrupted by the same intervention [n].
        level: coverage.
    Raises: GraphError where m(full) - m(0) has an interval that includes zero.
    """
    values, full, empty = (torch.as_tensor(x, dtype=torch.float64) for x in (values, full, empty))
    try:
        return ratio_of_means(values - empty, full - empty, level=level)
    except Refused as error:
        raise GraphError(
            "Faithfulness is not defined here: the full model and the fully corrupted one do not differ. "
            f"{error}"
        ) from None


def more_faithful(
    values: ArrayLike,
    others: ArrayLike,
    full: ArrayLike,
    empty: ArrayLike,
    *,
    level: float = 0.95,
) -> Interval:
    """Difference of two circuits' faithfulness on the same pairs, with its paired interval; arguments as in
    `faithfulness`."""
    difference = torch.as_tensor(values, dtype=torch.float64) - torch.as_tensor(others, dtype=torch.float64)
    shifted = difference + torch.as_tensor(empty, dtype=torch.float64)
    return faithfulness(shifted, full, empty, level=level)
