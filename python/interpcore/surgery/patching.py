"""Where a run holds what an answer needs: clean states put into corrupted runs, and into noisy ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from interpcore.errors import Refused
from interpcore.model import Add, Edit, Model, Replace, Tap
from interpcore.model.prompts import token_ids, token_offsets
from interpcore.model.token_text import token_texts
from interpcore.model.versions import run_versions
from interpcore.runs.experiment import Report
from interpcore.runs.plots import caption, new_figure, save_figure, whole_numbers
from interpcore.runs.token_grid import shown
from interpcore.stats import Interval, ratio_of_means
from interpcore.surgery.items import read_items
from interpcore.surgery.options import Patch, Places, Trace
from interpcore.surgery.results import over_items
from interpcore.surgery.tables import ends, written

if TYPE_CHECKING:
    import pandas as pd

    from interpcore.surgery.study import Study

INTERVALS = (
    "Intervals: 95%, {unit} as units; of value Student's t corrected for skewness, of restored Fieller's."
)


def clean_places(model: Model, tokens: Tensor, site: str, by: str) -> tuple[Tensor, list[list[Edit]]]:
    """Edits that put a prompt's own states into another run, one place at a time.

    Args:
        model: the decoder.
        tokens: the prompt [position] int64.
        site: what is put there.
        by: "position": every position of a depth; "head": every head, at all positions.
    Returns: logits of the prompt's last token [1, vocabulary], and for each depth the edits of its places.
    """
    taps = [Tap(site, depth) for depth in range(model.plan.n_calls + (site == "resid"))]
    out = model.forward(tokens[None], taps=taps, logits_at="last")
    assert out.logits is not None
    found = []
    for depth, state in ((tap.depth, out.taps[tap]) for tap in taps):
        if by == "head":
            heads = range(state.shape[2])
            found.append([Edit(site, depth, None, Replace(state[:, :, [h]]), heads=[h]) for h in heads])
        else:
            found.append([Edit(site, depth, p, Replace(state[0, p])) for p in range(len(tokens))])
    return out.logits, found


@torch.no_grad()
def patch_pair(
    model: Model,
    clean: Tensor,
    corrupted: Tensor,
    answers: tuple[int, int],
    site: str = "resid",
    by: str = "position",
) -> tuple[float, float, Tensor]:
    """Logit of the clean prompt's answer minus that of the corrupted one's.

    Args:
        model: the decoder.
        clean, corrupted: prompts of equal length [position] int64.
        answers: first token of the clean prompt's answer, and of the corrupted one's.
        site, by: what is patched, see `clean_places`.
    Returns: clean, corrupted, and corrupted with the clean site at each depth and position, or head [depth,
        place].
    Raises: Refused for prompts of different lengths.
    """
    if len(clean) != len(corrupted):
        raise Refused(
            f"The prompts of a pair have {len(clean)} and {len(corrupted)} tokens; give equal ones."
        )
    plain, places = clean_places(model, clean, site, by)
    versions = [[], *([edit] for depth in places for edit in depth)]
    logits = torch.cat((plain, run_versions(model, corrupted, versions))).double()
    values = logits[:, answers[0]] - logits[:, answers[1]]
    return float(values[0]), float(values[1]), values[2:].view(len(places), -1).cpu()


@torch.no_grad()
def trace(
    model: Model,
    tokens: Tensor,
    subject: Sequence[int],
    answer: int,
    *,
    sigma: float,
    draws: int,
    seed: int,
    site: str = "resid",
    by: str = "position",
) -> tuple[float, Tensor, Tensor]:
    """Probability of an answer with noise on the subject's embeddings, and with clean states put back.

    Args:
        model: the decoder.
        tokens: the prompt [position] int64.
        subject: its positions.
        answer: a token.
        sigma: noise in standard deviations of all entries of the embedding matrix.
        draws, seed: of the noise.
        site, by: what is put back, see `clean_places`.
    Returns: clean; with noise [draw]; and restored at each depth and position, or head [draw, depth, place].
    """
    plain, places = clean_places(model, tokens, site, by)
    generator = torch.Generator().manual_seed(seed)
    size = sigma * float(model.embedding.float().std()) * model.spec.embed_scale
    noisy, restored = [], []
    for _ in range(draws):
        noise = torch.randn(1, len(subject), model.spec.d_model, generator=generator) * size
        add = Edit("resid", 0, list(subject), Add(noise.to(model.device, model.dtype)))
        logits = run_versions(model, tokens, [[add], *([add, edit] for depth in places for edit in depth)])
        chances = logits.double().softmax(-1)[:, answer].cpu()
        noisy.append(chances[0])
        restored.append(chances[1:].view(len(places), -1))
    return float(plain.double().softmax(-1)[0, answer]), torch.stack(noisy), torch.stack(restored)


def pairs_of(study: Study, name: str, n: int, seed: int) -> list[tuple[list[int], list[int], int, int]]:
    """Pairs of a task's prompts with equal numbers of tokens and different first answer tokens.

    Raises: Refused where there are none.
    """
    items = read_items(study.model, study.task(name, 4 * n, seed))
    rows = [item.rows[0] for item in items]
    found: list[tuple[list[int], list[int], int, int]] = []
    free = list(range(len(rows)))
    while free and len(found) < n:
        i = free.pop(0)
        for j in free:
            a, b = rows[i], rows[j]
            if (a.first, a.start) == (b.first, b.start) and a.tokens[a.first] != b.tokens[b.first]:
                prompts = list(a.tokens[: a.first]), list(b.tokens[: b.first])
                found.append((*prompts, a.tokens[a.first], b.tokens[b.first]))
                free.remove(j)
                break
    if not found:
        raise Refused(f"Task {name} has no two items with prompts of equal length and other answers.")
    return found


def patch_cell(study: Study, task: str, n: int, seed: int, site: str, by: str = "position") -> dict[str, Any]:
    """One cell: every pair of a task, patched everywhere; positions counted from the last."""
    said = []
    for clean, corrupted, right, wrong in pairs_of(study, task, n, seed):
        a, b, patched = patch_pair(
            study.model, torch.tensor(clean), torch.tensor(corrupted), (right, wrong), site, by
        )
        said.append({"clean": a, "corrupted": b, "patched": patched.tolist()})
    return {"pairs": said}


def patch_report(study: Study, asked: Patch) -> Report:
    """Restored share at every depth and place, as a table and a heat map."""
    pairs_of(study, asked.task, asked.n, asked.seed)  # refuses what has none
    cell = {name: getattr(asked, name) for name in ("task", "n", "seed", "site")} | _by(asked)
    [row] = study.sweep(patch_cell, [cell], on_error="raise")
    result: Any = row.result
    pairs = result["pairs"]
    width = min(len(pair["patched"][0]) for pair in pairs)
    patched = np.stack([np.array(pair["patched"])[:, -width:] for pair in pairs])
    clean, corrupted = (np.array([pair[name] for pair in pairs]) for name in ("clean", "corrupted"))
    table = _shares(patched, clean, corrupted, range(-width, 0) if asked.by == "position" else None)
    where = "from the last token of the prompt" if asked.by == "position" else "all, one head at a time"
    notes = (
        f"restored: (patched - corrupted) / (clean - corrupted), means of {len(pairs)} pairs first; "
        f"clean {clean.mean():.3f}, corrupted {corrupted.mean():.3f}: logit of the clean answer minus the "
        "other's.",
        f"position: {where}; pairs of the task with equally many tokens.",
        INTERVALS.format(unit="pairs"),
    )
    said = f"{asked.site} patched, pairs of task {asked.task}"
    files = _files(study, table, f"patch-{asked.site}", said, f"{len(pairs)} pairs")
    return Report(table, files, notes, shown=_shown(table))


def trace_draws(
    study: Study, prompt: str, subject: str, answer: str, site: str, by: str = "position", **noise: Any
) -> dict[str, Any]:
    """One cell: one prompt traced under every draw of the noise."""
    ids, covered = token_offsets(study.model.tokenizer, prompt)
    start = prompt.rindex(subject)
    inside = [i for i, (a, b) in enumerate(covered) if b > start and a < start + len(subject)]
    first = token_ids(study.model.tokenizer, f"{prompt} {answer}")[len(ids)]
    clean, noisy, restored = trace(study.model, torch.tensor(ids), inside, first, site=site, by=by, **noise)
    values = {"clean": clean, "noisy": noisy.tolist(), "restored": restored.tolist()}
    return values | {"tokens": ids, "subject": inside}


def _measured(tokenizer: Any, prompt: str, answer: str) -> str:
    """What a trace measures the probability of: the answer's first token."""
    tokens = token_ids(tokenizer, f"{prompt} {answer}")[len(token_ids(tokenizer, prompt)) :]
    if len(tokens) == 1:
        return repr(answer)
    first = tokenizer.decode(tokens[:1]).strip()
    return f"{first!r}, the first of {len(tokens)} tokens of {answer!r}"


def trace_report(study: Study, asked: Trace) -> Report:
    """Restored share at every depth and place, as a table and a heat map."""
    if not (asked.subject.strip() and asked.answer.strip()):
        raise Refused("Tracing needs a subject, which is a part of the prompt, and an answer; give both.")
    if asked.subject not in asked.prompt:
        raise Refused(f"The subject {asked.subject!r} is not in the prompt {asked.prompt!r}.")
    names = ("prompt", "subject", "sigma", "draws", "seed", "site")
    cell = {name: getattr(asked, name) for name in names} | _by(asked) | {"answer": asked.answer.strip()}
    [row] = study.sweep(trace_draws, [cell], on_error="raise")
    found: Any = row.result
    noisy, restored = (np.array(found[name]) for name in ("noisy", "restored"))
    positions = range(restored.shape[2]) if asked.by == "position" else None
    table = _shares(restored, np.full_like(noisy, found["clean"]), noisy, positions)
    if positions is not None:
        texts = token_texts(study.model.tokenizer, study.model.spec.vocab_size)
        table.insert(2, "token", [texts[found["tokens"][p]] for p in table.position])
    measured = _measured(study.model.tokenizer, asked.prompt, asked.answer.strip())
    notes = (
        f"restored: (restored - noisy) / (clean - noisy), means of {asked.draws} draws before the ratio; "
        f"probability of {measured}: clean {found['clean']:.3g}, noisy {noisy.mean():.3g}.",
        INTERVALS.format(unit="draws of the noise"),
    )
    said = f"{asked.site} put back, prompt {asked.prompt!r}"
    files = _files(study, table, f"trace-{asked.site}", said, f"{asked.draws} draws of noise")
    return Report(table, files, notes, shown=_shown(table))


def _by(asked: Places) -> dict[str, str]:
    """What a cell says of heads; those of positions say nothing, as they did before there were heads."""
    return {} if asked.by == "position" else {"by": asked.by}


def restored_share(values: ArrayLike, clean: ArrayLike, corrupted: ArrayLike) -> Interval:
    """(values - corrupted) / (clean - corrupted), means before the ratio, with Fieller's interval, see
    `ratio_of_means`; it has no bounds where clean and corrupted differ by no more than pairs do by chance.

    Args:
        values: what is measured with a clean state put back, of each pair or draw [n].
        clean, corrupted: the same of the clean run and of the corrupted one [n].
    """
    values, clean, corrupted = (np.asarray(x, dtype=np.float64) for x in (values, clean, corrupted))
    top, bottom = values - corrupted, clean - corrupted
    try:
        return ratio_of_means(top, bottom)
    except Refused:
        return Interval(float(top.mean() / bottom.mean()), -np.inf, np.inf, len(top), "none: no bounds")


def _shares(
    values: NDArray[np.float64],
    clean: NDArray[np.float64],
    corrupted: NDArray[np.float64],
    positions: range | None,
) -> pd.DataFrame:
    """A row of each place, of what was measured there [n, depth, place] and in the two runs [n]."""
    import pandas as pd

    if abs(clean.mean() - corrupted.mean()) < 1e-9:
        raise Refused("The clean and the corrupted run do not differ, so that nothing can be restored.")
    name, places = ("head", range(values.shape[2])) if positions is None else ("position", positions)
    rows = [
        {"depth": d, name: p}
        | ends("value", over_items(values[:, d, i], "value"))
        | ends("restored", restored_share(values[:, d, i], clean, corrupted))
        for d in range(values.shape[1])
        for i, p in enumerate(places)
    ]
    return pd.DataFrame(rows)


def _shown(table: pd.DataFrame) -> tuple[str, ...]:
    """Columns that a terminal shows."""
    return tuple(name for name in table if name not in ("value_low", "value_high"))


def _files(study: Study, table: pd.DataFrame, name: str, data: str, n: str) -> tuple[Path, ...]:
    """The table's files and its heat map."""
    if study.artifacts is None:
        return ()
    place = "head" if "head" in table else "position"
    name = name if place == "position" else f"{name}-heads"
    wide = table.pivot(index="depth", columns=place, values="restored")
    below = 1.0 if "token" in table else 0.0  # inches that the tokens' texts take
    figure, [axes] = new_figure(2.5 + 0.3 * wide.shape[1], 2 + below + 0.15 * len(wide))
    image = axes.imshow(wide, origin="lower", aspect="auto", cmap="RdBu_r", vmin=-1, vmax=1)
    figure.colorbar(image, ax=axes, label="restored share")
    names = list(map(str, wide.columns))
    if "token" in table:
        names = [f"{shown(t)} {p}" for t, p in zip(table.token, names, strict=False)]  # the first depth's
        axes.tick_params(axis="x", rotation=90, labelsize=8)
    axes.set_xticks(range(wide.shape[1]), names)
    for label in axes.get_xticklabels():
        label.set_parse_math(False)
    whole_numbers(axes.yaxis)
    axes.set(xlabel=place, ylabel="depth")
    note = "Restored share: 1 where what is measured is the clean run's, 0 where it is the corrupted run's."
    said = caption(model=str(study.artifacts.card.model), data=data, n=n, note=note)
    drawn = save_figure(study.artifacts.artifact(f"figures/{name}"), figure, said)
    return (*written(study, name, table), *drawn)
