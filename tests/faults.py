"""Seeded faults: what goes wrong in code like this, put into the fast paths one at a time.

A fault stays while the run is verified, so what recomputes the cells must not stand on what it breaks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from breaking import (
    Patch,
    cotangents,
    heads,
    positions,
    rotated,
    swap,
    swapped_cotangents,
    tapped,
    tokens_of,
    wrapped,
)

from interpcore.data.tokens import TokenShards
from interpcore.model.decoder import Model


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        kind: what went wrong: "shifted depth", "padded position", "stale cache", "swapped q and k", "wrong
            sign" or "wrong group".
        family: whose run it is in.
        model: of the run.
        what: where it is.
        patch: puts it in.
    """

    kind: str
    family: str
    model: str
    what: str
    patch: Patch

    def __str__(self) -> str:
        return f"{self.family}, {self.model}: {self.kind}, {self.what}"


def lre() -> list[tuple[str, str, Patch]]:
    """Faults of an LRE run alone."""
    from interpcore.lre import operator, prompts, states, trial

    def swept(by):
        def changed(original, *a, source_depths, **k):
            found = original(*a, source_depths=source_depths, **k)
            return replace(found, values=found.values.roll(by, 0), bias=found.bias.roll(by, 1))

        return changed

    def moved(by, which):
        def changed(original, *a, **k):
            query = original(*a, **k)
            return replace(query, **{name: max(getattr(query, name) + by, 1) for name in which})

        return changed

    def signed(original, model, of, h, betas, *a, **k):
        return original(model, of, h, [-beta for beta in betas], *a, **k)

    def bias(original, *a, **k):
        found = original(*a, **k)
        return replace(found, bias=-found.bias)

    both, read = ("subject", "edited"), ("subject",)
    found = [
        ("shifted depth", f"Jacobians, by {n}", wrapped(operator, "jacobians", swept(n))) for n in (1, 2, -1)
    ]
    found += [
        ("padded position", f"subjects, by {n}", wrapped(prompts, "encode_query", moved(n, both)))
        for n in (-1, -2)
    ]
    found += [("padded position", "states, by -1", wrapped(prompts, "encode_query", moved(-1, read)))]
    found += [
        ("stale cache", f"test prompts, token {n}", tokens_of(states, "share_prompts", n)) for n in (1, 3, 6)
    ]
    found += [("wrong sign", "of beta", wrapped(trial, "predict", signed))]
    found += [("wrong sign", "of b", wrapped(trial.SharedOperators, "operator", lambda o, *a: bias(o, *a)))]
    return found


def lens() -> list[tuple[str, str, Patch]]:
    """Faults of a lens run alone."""
    from interpcore.lens import sweep

    def shifted(by):
        def blocks(original, model, prompts, skip, target, *a):
            for rows, depth, which, values in original(model, prompts, skip, target, *a):
                yield rows, (depth + by) % (target + 1), which, values

        return blocks

    def skipped(by):
        return lambda original, model, prompts, skip, *a: original(model, prompts, skip + by, *a)

    def signed(original, *a):
        for rows, depth, which, values in original(*a):
            yield rows, depth, which, -values

    found = [("shifted depth", f"by {n}", wrapped(sweep, "lens_blocks", shifted(n))) for n in (1, 2, -1)]
    found += [
        ("padded position", f"skipped, by {n}", wrapped(sweep, "lens_blocks", skipped(n))) for n in (1, -1)
    ]
    found += [("stale cache", f"token {n}", tokens_of(sweep, "read_span", n)) for n in (0, 1)]
    found += [("wrong sign", "of J", wrapped(sweep, "lens_blocks", signed))]
    return found


def circuits() -> list[tuple[str, str, Patch]]:
    """Faults of a circuits run alone."""
    from interpcore.circuits.attribution import scoring
    from interpcore.circuits.patching import interventions

    def scored(change):
        return lambda original, difference, values, *a, **k: original(*change(difference, values), *a, **k)

    def stale(original, self, model, pairs, clean):
        found = original(self, model, pairs, clean)
        return replace(found, z=(clean.sources.z[0], *found.z[1:]))

    def late(original, self, model, pairs, clean):
        found = original(self, model, pairs, clean)
        return replace(found, mlp=(*found.mlp[:-1], clean.sources.mlp[-1]))

    def rolled(by):
        return scored(lambda difference, values: (difference, values.roll(by, 2)))

    kinds = interventions.Intervention
    found = [
        ("padded position", f"gradients, by {n}", wrapped(scoring, "edge_scores", rolled(n))) for n in (1, -1)
    ]
    found += [("wrong sign", "of scores", wrapped(scoring, "edge_scores", scored(lambda d, v: (-d, v))))]
    found += [("stale cache", "clean heads for corrupted", wrapped(kinds, "sources", stale))]
    found += [("stale cache", "clean MLP for corrupted", wrapped(kinds, "sources", late))]
    return found


def neurons() -> list[tuple[str, str, Patch]]:
    """Faults of a neuron run alone."""

    def stale(by):
        def blocks(original, self, size, start, stop, device="cpu"):
            for first, tokens, mask in original(self, size, start, stop, device):
                yield first, tokens.roll(by, 0), mask

        return blocks

    def shifted(by):
        def block(original, self, x, ctx=None, depth=0, **k):
            return original(self, x, ctx, (depth + by) % 4, **k)

        return block

    from interpcore.model.mlp import MLP

    def masked(original, self, tokens):
        return torch.ones_like(tokens, dtype=torch.bool)

    def moved(original, self, tokens):
        return original(self, tokens).roll(1, 1)

    found = [
        ("stale cache", f"sequences, by {n}", wrapped(TokenShards, "blocks", stale(n))) for n in (1, 2, -1)
    ]
    found += [("shifted depth", f"by {n}", wrapped(MLP, "__call__", shifted(n))) for n in (1, 2, -1)]
    found += [("padded position", "masked tokens count", wrapped(TokenShards, "mask", masked))]
    found += [("padded position", "mask, by 1", wrapped(TokenShards, "mask", moved))]
    return found


def surgery() -> list[tuple[str, str, Patch]]:
    """Faults of a run of plans alone."""
    from interpcore.model import many_plans
    from interpcore.surgery import items, measure

    def mixed(original, *a, **k):
        found = list(original(*a, **k))
        states = [state for _, state in found]
        yield from zip((n for n, _ in found), states[-1:] + states[:-1], strict=True)

    def late(original, model, rows, plans):
        for numbers, states in original(model, rows, plans):
            yield numbers, states.roll(1, 0)

    def begun(original, *a):
        found = original(*a)
        return replace(found, start=found.start - 1)

    def stale(original, items, scores, intact):
        return original(items, scores, intact.roll(1, 0))

    signed = wrapped(measure, "_scores", lambda original, *a: -original(*a))
    return [
        ("shifted depth", "states of another plan", wrapped(measure, "run_plans", mixed)),
        ("padded position", "answers' states", wrapped(measure, "_answer_states", late)),
        ("padded position", "answers begin early", wrapped(items, "_row", begun)),
        ("stale cache", "intact plan of another token", wrapped(measure, "_measured", stale)),
        ("stale cache", "tokens", tokens_of(many_plans, "read_prompts", 1)),
        ("wrong sign", "of scores", signed),
    ]


def states() -> list[tuple[str, str, Patch]]:
    """Faults of a run of states and directions alone."""
    from interpcore.steering import moments, study

    def earlier(original, model, site, positions):
        return original(model, site, -2)

    def turned(original, found, flags, shuffled):
        return original(found, ~flags, shuffled)

    def stale(original, model, chosen, *a, **k):
        for rows, found in original(model, chosen, *a, **k):
            yield rows, {site: values.roll(1, 0) for site, values in found.items()}

    return [
        ("shifted depth", "states", tapped(1, ("resid",), 4)),
        ("padded position", "states", wrapped(moments, "site_taps", earlier)),
        ("wrong sign", "of labels", wrapped(study, "by_label", turned)),
        ("stale cache", "states of another question", wrapped(study, "states", stale)),
    ]


def sweep() -> list[tuple[str, str, Patch]]:
    """Faults of a sweep of interventions alone."""
    from interpcore.steering import sweep

    def later(original, positions, lengths, *a, **k):
        return original(positions, lengths + 1, *a, **k)

    def deeper(original, self, depth, *a, **k):
        return original(self, min(depth + 1, 3), *a, **k)

    def signed(original, kind, vector, values):
        return original(kind, vector, -values)

    def stale(original, rows, device):
        ids, mask = original(rows, device)
        ids[:, :1] = (ids[:, :1] + 7) % 2000
        return ids, mask

    return [
        ("shifted depth", "rows enter", wrapped(Model, "run_from", deeper)),
        ("padded position", "edits", wrapped(sweep, "placed", later)),
        ("wrong sign", "of coefficients", wrapped(sweep, "_per_row", signed)),
        ("stale cache", "prefixes", wrapped(sweep, "pad", stale)),
    ]


def accuracy() -> list[tuple[str, str, Patch]]:
    """Faults of an accuracy under interventions alone."""
    from interpcore.steering import choice, interventions

    def later(original, positions, lengths, *a, **k):
        return original(positions, lengths + 1, *a, **k)

    def signed(original, self):
        return original(replace(self, coefficient=-self.coefficient))

    def deeper(original, edit, *a):
        found = original(edit, *a)
        return [replace(one, depth=one.depth + 1) for one in found]

    def stale(original, rows, device):
        ids, mask = original(rows, device)
        ids[:, :1] = (ids[:, :1] + 7) % 2000
        return ids, mask

    return [
        ("shifted depth", "edits", wrapped(interventions, "at_depths", deeper)),
        ("padded position", "edits", wrapped(interventions, "placed", later)),
        ("wrong sign", "of coefficients", wrapped(interventions.Part, "map", signed)),
        ("stale cache", "prompts", wrapped(choice, "pad", stale)),
    ]


def shared(family: str, model: str) -> list[tuple[str, str, Patch]]:
    """Faults of the decoder and its derivatives, which every family stands on."""
    grouped, found = model == "tiny-llama", []
    for depth in range(1 if family == "surgery" else 3):  # whose blocks do not know where they stand
        found.append(("swapped q and k", f"block {depth}", heads(depth, swap)))
        found.append(("wrong sign", f"of v, block {depth}", heads(depth, lambda q, k, v: (q, k, -v))))
        if grouped:
            found.append(
                ("wrong group", f"keys of block {depth}", heads(depth, lambda q, k, v: (q, k.flip(-2), v)))
            )
    found.append(("padded position", "positions", rotated(2) if grouped else positions(2)))
    if family in ("lre", "circuits"):
        sites = ("resid",) if family == "lre" else ("z",)
        found.append(("shifted depth", "sites read", tapped(1, sites, 3)))
    if family in ("lre", "lens", "circuits"):
        found.append(("swapped q and k", "derivatives", cotangents(swapped_cotangents)))
        found.append(("wrong sign", "derivative of v", cotangents(lambda q, k, v: (q, k, -v))))
        found.append(("wrong sign", "derivative of q", cotangents(lambda q, k, v: (-q, k, v))))
        if grouped:
            found.append(("wrong group", "derivative of v", cotangents(lambda q, k, v: (q, k, v.flip(-2)))))
            found.append(("wrong group", "derivative of k", cotangents(lambda q, k, v: (q, k.flip(-2), v))))
    return found


def every() -> list[Fault]:
    """All of them."""
    own = {"lre": lre, "lens": lens, "circuits": circuits, "neurons": neurons}
    own |= {"surgery": surgery, "states": states, "sweep": sweep, "accuracy": accuracy}
    listed = [(family, "tiny", *fault) for family, faults in own.items() for fault in faults()]
    for model in ("tiny", "tiny-llama"):
        listed += [(family, model, *fault) for family in own for fault in shared(family, model)]
    return [Fault(kind, family, model, what, patch) for family, model, kind, what, patch in listed]
