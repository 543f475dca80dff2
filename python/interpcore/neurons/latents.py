"""Tables of the latents of dictionaries: what the token pass knows of each, and how good a dictionary is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from interpcore.data.tokens import TokenShards
from interpcore.model.latents import LatentModel
from interpcore.model.sites import Tap
from interpcore.neurons.statistics.mlp_sides import default_batch
from interpcore.neurons.statistics.summary import Summary
from interpcore.runs import RunFolder
from interpcore.runs.experiment import Report
from interpcore.runs.frames import write_frame

if TYPE_CHECKING:
    import pandas as pd

    from interpcore.neurons.study import Study

SEQUENCES = 64
"""Sequences that dictionaries are judged by, the first so many."""
JUDGED = (
    "active: latents above 0, mean per token; silent: latents that are 0 at all tokens of the pass; "
    "unexplained: |error|^2 over |site - its mean|^2, 0 is perfect."
)


def latent_table(summary: Summary, model: LatentModel) -> pd.DataFrame:
    """Every latent over the tokens of a summary.

    Returns: dictionary, latent, mean, var, skew, kurt (normal: 3) and maximum after the activation; top: the
        token at which it is largest, as the number of the token in the corpus, -1 for a latent that is never
        above 0.
    """
    import pandas as pd

    frames = []
    for index, each in enumerate(model.dictionaries):
        _, post = summary.moments(index)
        examples = summary.examples(index)
        frames.append(
            pd.DataFrame(
                {
                    "dictionary": each.name,
                    "latent": range(each.n_latents),
                    "mean": post.mean.numpy(),
                    "var": post.variance.numpy(),
                    "skew": post.skewness.numpy(),
                    "kurt": post.kurtosis.numpy(),
                    "maximum": post.maximum.numpy(),
                    "top": examples.index[0].where(post.maximum > 0, -1).numpy(),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


@torch.no_grad()
def dictionary_table(model: LatentModel, shards: TokenShards, sequences: int = SEQUENCES) -> pd.DataFrame:
    """How good dictionaries are on the first sequences of a corpus, over the tokens that count.

    Returns: a row per dictionary: dictionary, reads, writes, latents; active: mean number of latents above 0
        per token; unexplained: sum of |error|^2 over that of |site - its mean|^2.
    """
    import pandas as pd

    active = [0.0] * len(model.dictionaries)
    error = [0.0] * len(model.dictionaries)
    moments: list[tuple[Any, Any]] = [(0.0, 0.0)] * len(model.dictionaries)
    count = 0
    step = default_batch(shards.context, model.device)
    for _, tokens, mask in shards.blocks(step, 0, min(sequences, shards.n_sequences), model.device):
        count += int(mask.sum())
        taps = [(each.tap(), Tap(*each.writes)) for each in model.dictionaries]
        out = model.forward(tokens, logits_at=None, taps=[tap for pair in taps for tap in pair])
        for i, (each, (reads, writes)) in enumerate(zip(model.dictionaries, taps, strict=True)):
            x, written = (out.taps[tap][mask] for tap in (reads, writes))
            latents = each.latents(x)
            active[i] += float((latents > 0).sum())
            wanted = written.reshape(len(written), -1).double()
            error[i] += float((wanted - each.decode(latents, x).double()).square().sum())
            total, square = moments[i]
            moments[i] = total + wanted.sum(0), square + wanted.square().sum(0)
    rows = []
    for i, each in enumerate(model.dictionaries):
        total, square = moments[i]
        spread = float((square - total.square() / count).sum())
        places = (f"{site}" if d is None else f"{site}.{d}" for site, d in (each.reads, each.writes))
        names = dict(zip(("reads", "writes"), places, strict=True))
        rows.append(
            {"dictionary": each.name, **names, "latents": each.n_latents}
            | {"active": active[i] / count, "unexplained": error[i] / spread if spread else float("nan")}
        )
    return pd.DataFrame(rows)


def latents_report(study: Study, summary: Summary) -> Report:
    """What a token pass over latents found: the dictionaries, and a table of all latents on disk."""
    model = study.model
    assert isinstance(model, LatentModel)
    latents, judged = latent_table(summary, model), dictionary_table(model, study.tokens)
    silent = (latents.maximum <= 0).groupby(latents.dictionary).sum()
    judged["silent"] = judged.dictionary.map(silent)
    card = study.card("latents", statistics=study.statistics.to_json())
    with RunFolder.open_or_create(study.step("latents"), card) as run:
        files = write_frame(run.artifact("latents"), latents) + write_frame(
            run.artifact("dictionaries"), judged
        )
    few = min(SEQUENCES, study.tokens.n_sequences)
    notes = (
        JUDGED,
        f"active and unexplained: the first {few} sequences; the rest: {summary.n_tokens} tokens.",
    )
    return Report(judged, files, notes)
