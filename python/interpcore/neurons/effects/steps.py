"""The steps of a study that change neurons: interventions, and the deactivation of attention heads."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from interpcore.neurons.effects.deactivation import check_paths
from interpcore.neurons.effects.deactivation_study import deactivation_study, first_value_table, score_table
from interpcore.neurons.effects.intervention_study import PUBLISHED_VALUES, intervention_study
from interpcore.neurons.effects.interventions import WITH_VALUE, Intervention, Neuron
from interpcore.neurons.families import roles_by_weights
from interpcore.runs import RunFolder
from interpcore.runs.frames import write_frame

if TYPE_CHECKING:
    import pandas as pd

    from interpcore.neurons.study import Study

FEW = 4
"""Neurons whose step is called after them."""


def interventions(
    study: Study,
    neurons: Sequence[Neuron] | None = None,
    values: Sequence[float] = PUBLISHED_VALUES,
    kind: str = "fixed",
    site: str = "post",
    limit: int | None = 64,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Interventions, and mean ablation, on the neurons that look most like entropy neurons, on the most
    like token-frequency neurons and on random controls (or on the neurons named).

    Args:
        study: open.
        neurons: which; None for those.
        values: of the kinds that have one.
        kind, site: as in `Intervention`.
        limit: sequences read, the first so many; None for all.
    Returns: the table of `intervention_study`, where mean ablation has the kind "mean"; and roles: layer,
        neuron, role ("entropy", "frequency" or "control", or "named").
    """
    import pandas as pd

    same = [Intervention(kind, value, site) for value in (values if kind in WITH_VALUE else (0.0,))]
    if neurons is None:
        roles = roles_by_weights(study.weights, study.options.seed)
    else:
        roles = pd.DataFrame(neurons, columns=["layer", "neuron"]).assign(role="named")
    chosen = list(zip(roles.layer.tolist(), roles.neuron.tolist(), strict=True))
    means = {d: study.summary.moments(d)[1].mean for d in {layer for layer, _ in chosen}}
    done = {(d, n): [*same, Intervention("fixed", float(means[d][n]), name="mean")] for d, n in chosen}
    step = study.step(intervention_step(kind, site, neurons))
    table = intervention_study(
        study.model,
        study.tokens,
        chosen,
        done,
        step,
        counts=study.token_counts,
        limit=limit,
        protocol=study.options.protocol,
        workers=study.workers,
        progress=study.progress,
        command=study.command,
        about={"roles": roles.role.tolist()},
    )
    with RunFolder.open(step, shared=True) as run:
        write_frame(run.artifact("interventions"), table)
        write_frame(run.artifact("roles"), roles)
    return table, roles


def deactivation(
    study: Study,
    neurons: Sequence[Neuron] | None = None,
    first: int | None = None,
    count: int = 6,
    limit: int | None = 64,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Tensor]]:
    """Deactivation scores of all neurons, and path ablations of the highest (or of the neurons named).

    Args:
        study: open.
        neurons: which to ablate; None for those with the highest scores.
        first: first position ablated; None for a quarter of the context, as published.
        count: how many neurons.
        limit: sequences read, the first so many; None for all.
    Returns: the table of `deactivation_study`, that of `score_table`, and the raw scores. Beside them
        first_values.csv has what `first_value_norms` gives of every head.
    """
    check_paths(study.model)
    bos = study.tokens.manifest["masks"].get("bos") or [int(study.tokens.sequences(0, 1)[0, 0])]
    scores, flat = score_table(study.folded, study.model, int(bos[0]), seed=study.options.seed)
    chosen = neurons
    if neurons is None:
        top = scores.sort_values("bos_score", ascending=False)[:count]
        neurons = list(zip(top.layer.tolist(), top.neuron.tolist(), strict=True))
    table = deactivation_study(
        study.model,
        study.tokens,
        neurons,
        study.step(deactivation_step(chosen)),
        first=study.tokens.context // 4 if first is None else first,
        limit=limit,
        workers=study.workers,
        progress=study.progress,
        command=study.command,
        about={"seed": study.options.seed, "bos": int(bos[0])},
    )
    values = first_value_table(study.model, study.tokens)
    with RunFolder.open(study.step(deactivation_step(chosen)), shared=True) as run:
        write_frame(run.artifact("first_values"), values)
        write_frame(run.artifact("heads"), table)
        write_frame(run.artifact("scores"), scores)
    return table, scores, flat


def intervention_step(kind: str, site: str, neurons: Sequence[Neuron] | None = None) -> str:
    """Name of the step with interventions of a kind at a site, on the neurons named or (None) on those that
    the report shows."""
    step = "intervene" if (kind, site) == ("fixed", "post") else f"intervene-{kind}-{site}"
    return f"{step}{_named(neurons)}"


def deactivation_step(neurons: Sequence[Neuron] | None = None) -> str:
    """Name of the step with path ablations of the neurons named or (None) of the highest scores."""
    return f"deactivation{_named(neurons)}"


def _named(neurons: Sequence[Neuron] | None) -> str:
    """What tells the step of some neurons from that of others: their names, or a hash of many."""
    if neurons is None:
        return ""
    names = "+".join(f"{layer}.{number}" for layer, number in neurons)
    return f"-{names}" if len(neurons) <= FEW else f"-{hashlib.sha256(names.encode()).hexdigest()[:8]}"
