"""How well an affine map stands in for skipped blocks: fitted, chosen and measured on three sets of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interpcore.data.corpus import open_corpus
from interpcore.data.tinyworld.corpus import documents
from interpcore.errors import Refused
from interpcore.model import Affine, Edit, Model, Plan, Tap
from interpcore.model.prompts import pad, token_ids
from interpcore.runs import write_tensors
from interpcore.runs.experiment import Report
from interpcore.runs.plots import caption, new_figure, save_figure
from interpcore.stats import mean_over_clusters
from interpcore.surgery.linear import LAMBDAS, Fit, Map, low_rank, mean_jacobian
from interpcore.surgery.options import StandIn
from interpcore.surgery.tables import written

if TYPE_CHECKING:
    import pandas as pd

    from interpcore.surgery.study import Study

AT_ONCE = 16  # documents of a forward
SETS = ("fit", "choose", "test")
_Ids = Sequence[Sequence[int]]
NOTES = (
    "kl: KL(intact || stand-in) per token, loss_change of the next token, top1: share of tokens with the "
    "intact plan's first choice; intervals: 95%, over documents. fvu: squared error over variance "
    "of the stream after the blocks. All on documents that neither fitted a map nor chose lambda.",
    "identity: the blocks skipped alone; mean shift: the mean change added; ridge: lambda chosen by KL; "
    "shuffled: ridge on tokens paired at random (a control: no better than constant).",
    "Maps are fitted on states of the intact plan and of its texts; under other edits they extrapolate.",
)


def read_spans(texts: Sequence[str], depth: int) -> list[tuple[int, int]]:
    """Depths [a, b) of blocks to stand in for.

    Raises: Refused for a text that is no range of the plan's blocks.
    """
    found: list[tuple[int, int]] = []
    for text in texts:
        if text == "blocks":
            found += [(d, d + 1) for d in range(depth)]
        elif text == "lens":
            found += [(d, depth) for d in range(depth)]
        else:
            first, _, last = text.partition("-")
            bounds = (first.strip(), last.strip() or first.strip())
            if not all(b.isdecimal() and len(b) < 6 for b in bounds):
                raise Refused(f"A span is a block or range such as 1-2, 'blocks' or 'lens'; got {text!r}.")
            a, b = int(bounds[0]), int(bounds[1]) + 1
            if not a < b <= depth:
                raise Refused(f"Blocks {text} are no range of this plan, which has 0 to {depth - 1}.")
            found.append((a, b))
    return list(dict.fromkeys(found))


def read_sets(model: Model, asked: Mapping[str, Any]) -> dict[str, list[list[int]]]:
    """Token ids of the documents to fit, choose and test on; no document is in two sets.

    Raises: Refused where the text holds too few.
    """
    wanted = [int(asked[name]) for name in SETS]
    if asked["text"] == "tiny":
        seeds = ("surgery fit", "surgery choose", "surgery test")
        texts = [documents(seed, n) for seed, n in zip(seeds, wanted, strict=True)]
    else:
        every = list(dict.fromkeys(text for text in open_corpus(asked["text"]).texts() if text.strip()))
        if len(every) < sum(wanted):
            raise Refused(
                f"{asked['text']} holds {len(every)} different documents, fewer than {sum(wanted)}."
            )
        ends = [0, wanted[0], wanted[0] + wanted[1], sum(wanted)]
        texts = [every[a:b] for a, b in pairwise(ends)]
    ids = [[token_ids(model.tokenizer, t)[: asked["length"]] for t in each] for each in texts]
    return {name: [row for row in each if len(row) > 1] for name, each in zip(SETS, ids, strict=True)}


@torch.no_grad()
def states(model: Model, prompts: _Ids, depths: Sequence[int]) -> list[Tensor]:
    """resid at depths of every token [token, d]."""
    taps = [Tap("resid", depth) for depth in depths]
    found: list[list[Tensor]] = [[] for _ in taps]
    for at in range(0, len(prompts), AT_ONCE):
        tokens, mask = pad(prompts[at : at + AT_ONCE], model.device)
        out = model.forward(tokens, mask, taps=taps, logits_at=None)
        real = mask.bool()
        for tap, into in zip(taps, found, strict=True):
            into.append(out.taps[tap][:, : tokens.shape[1]][real])
    return [torch.cat(each) for each in found]


@torch.no_grad()
def effect(model: Model, plan: Plan, at: int, stand_in: Map | None, prompts: _Ids) -> dict[str, Tensor]:
    """KL to the intact plan, change of the next token's loss and agreement of the first choice, at every
    token but each document's last [token], and which document each is."""
    edits = []
    if stand_in is not None:
        matrix, offset = (t.to(model.device, model.dtype) for t in (stand_in.matrix, stand_in.offset))
        edits = [Edit("resid", at, None, Affine(matrix, offset))]
    changed, found = model.with_plan(plan), []
    for start in range(0, len(prompts), AT_ONCE):
        part = prompts[start : start + AT_ONCE]
        tokens, mask = pad(part, model.device)
        before, after = (
            _log_softmax(m.forward(tokens, mask, edits=e).logits) for m, e in ((model, []), (changed, edits))
        )
        real = mask[:, 1:].bool()
        p, q, target = before[:, :-1][real], after[:, :-1][real], tokens[:, 1:][real][:, None]
        document = (torch.arange(len(part), device=model.device)[:, None] + start).expand_as(real)[real]
        kl = (p.exp() * (p - q)).sum(-1)
        loss = (p - q).gather(-1, target)[:, 0]
        same = (p.argmax(-1) == q.argmax(-1)).float()
        found.append(torch.stack((kl, loss, same, document), 1).double().cpu())
    kl, loss, same, document = torch.cat(found).T
    return {"kl": kl, "loss_change": loss, "top1": same, "document": document}


def _log_softmax(logits: Tensor | None) -> Tensor:
    assert logits is not None
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def stand_in_cell(study: Study, a: int, b: int, rank: list[int], draws: int, seed: int, **sets: Any) -> Any:
    """One cell: every map of one span, measured."""
    model, intact = study.model, study.intact
    sets = _cached_sets(study, **sets)
    x, y = states(model, sets["fit"], (a, b))
    fit = Fit(x, y)
    plan = intact.drop(a, b - 1)
    ridges = {damping: fit.ridge(damping) for damping in LAMBDAS}
    costs = {
        damping: float(effect(model, plan, a, ridge, sets["choose"])["kl"].mean())
        for damping, ridge in ridges.items()
    }
    best = min(costs, key=lambda damping: costs[damping])
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    maps: dict[str, Map | None] = {"identity": None, "mean shift": fit.mean_shift(), "ridge": ridges[best]}
    if draws:
        maps["mean Jacobian"] = fit.of(mean_jacobian(model, sets["fit"], a, b, draws, seed).cpu())
    maps |= {f"low rank {r}": low_rank(ridges[best], r, fit) for r in rank}
    maps |= {"shuffled": Fit(x, y[order]).ridge(best), "constant": fit.constant()}
    tests = states(model, sets["test"], (a, b))
    rows = []
    for name, each in maps.items():
        found = effect(model, plan, a, each, sets["test"])
        row: dict[str, Any] = {"a": a, "b": b, "method": name, "tokens": len(found["kl"])}
        for measure in ("kl", "loss_change", "top1"):
            documents = found["document"].tolist()
            value = mean_over_clusters(found[measure].numpy(), documents, share=measure == "top1")
            row |= {measure: value.value, f"{measure}_low": value.low, f"{measure}_high": value.high}
        rows.append(
            row | {"fvu": _fvu(each, *tests), "lambda": best if name in ("ridge", "shuffled") else None}
        )
    if study.artifacts is not None:
        tensors = {"matrix": ridges[best].matrix, "offset": ridges[best].offset}
        write_tensors(study.artifacts.artifact(f"stand-in/{a}-{b}.safetensors"), tensors)
    return {"rows": rows, "choose": {str(k): v for k, v in costs.items()}, "documents": len(sets["test"])}


def _cached_sets(study: Study, text: str, **sets: Any) -> dict[str, list[list[int]]]:
    """The documents, read once for all spans of a sweep; those of a stream lie in the run."""
    kept = None if study.artifacts is None else study.artifacts.path / text
    sets["text"] = str(kept) if kept is not None and kept.is_file() else text
    return _read_once(study.model, tuple(sorted(sets.items())))


@cache
def _read_once(model: Model, asked: tuple[tuple[str, Any], ...]) -> dict[str, list[list[int]]]:
    return read_sets(model, dict(asked))


def _fvu(stand_in: Map | None, x: Tensor, y: Tensor) -> float:
    """|y - map x|^2 / |y - mean y|^2."""
    x, y = x.double().cpu(), y.double().cpu()
    guess = x if stand_in is None else stand_in(x)
    return float((y - guess).square().sum() / (y - y.mean(0)).square().sum())


def stand_in_report(study: Study, asked: StandIn) -> Report:
    """Every span asked for."""
    import pandas as pd

    sets = {name: getattr(asked, name) for name in (*SETS, "text", "length")}
    if (corpus := asked.corpus()) is not None:
        sets["text_hash"] = corpus.hash
        if corpus.streamed and study.artifacts is not None:
            sets["text"] = corpus.kept(study.artifacts).relative_to(study.artifacts.path.resolve()).as_posix()
    how = {"rank": list(asked.rank), "draws": asked.draws, "seed": asked.seed}
    spans = read_spans(asked.span, study.intact.n_calls)
    done = study.sweep(stand_in_cell, [{"a": a, "b": b, **how, **sets} for a, b in spans])
    found: list[Any] = [row.result for row in done if row.status == "done"]
    problems = tuple(f"blocks {r.parameters['a']} on: {r.error}" for r in done if r.status != "done")
    table = pd.DataFrame([row for cell in found for row in cell["rows"]])
    files = written(study, "stand-in", table)
    if found and study.artifacts is not None:
        files += _draw(study, table, found[0]["documents"])
    shown = ("a", "b", "method", "kl", "kl_low", "kl_high", "top1", "loss_change", "fvu", "lambda")
    return Report(table, files, NOTES, problems, shown if found else ())


def _draw(study: Study, table: pd.DataFrame, n: int) -> tuple[Path, ...]:
    """KL by span, a line for each method."""
    assert study.artifacts is not None
    figure, [axes] = new_figure(7, 3.6)
    spans = list(dict.fromkeys(zip(table.a, table.b, strict=True)))
    for name, one in table.groupby("method", sort=False):
        at = [spans.index(span) for span in zip(one.a, one.b, strict=True)]
        [line] = axes.plot(at, one.kl.clip(lower=1e-6), "o-", ms=3, label=str(name))
        ends = (one[end].clip(lower=1e-6) for end in ("kl_low", "kl_high"))
        axes.fill_between(at, *ends, color=line.get_color(), alpha=0.12, lw=0)
    axes.set_xticks(range(len(spans)), [f"{a}-{b - 1}" if b > a + 1 else str(a) for a, b in spans])
    axes.set(yscale="log", xlabel="blocks stood in for", ylabel="KL to the intact model (nats)")
    axes.legend(fontsize=7)
    said = caption(
        model=str(study.artifacts.card.model),
        data="maps in place of blocks",
        n=f"{n} held-out documents",
        note="Bands: 95% intervals, documents as units.",
    )
    return save_figure(study.artifacts.artifact("figures/stand-in"), figure, said)
