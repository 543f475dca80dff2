"""Induction for any vocabulary: random tokens twice, which only a copy of what followed can continue.

Tokens are drawn among those of the vocabulary that are not special, each once in a period, so that a model
knows nothing of them but that they stood there before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interpcore.circuits.answers import PairsError
from interpcore.circuits.pairs import Pairs
from interpcore.circuits.task_list import INDUCTION
from interpcore.model import Model, Tap
from interpcore.model.prompts import first_ids
from interpcore.runs.shown import AsTable

if TYPE_CHECKING:
    import pandas as pd

PERIOD, LEAST = 16, 3
PLACES = ("previous", "period_back", "after_period_back")


def period_of(model: Any, period: int = PERIOD) -> int:
    """The period that a model's vocabulary and context hold, `period` at most.

    Raises: PairsError for less than `LEAST`.
    """
    usable = len(_usable(model))
    room = model.spec.max_positions
    most = usable - 1 if room is None else min(usable - 1, (room - len(_front(model))) // 2)
    if most < LEAST:
        raise PairsError(
            f"{model.spec.name} has {usable} tokens that are not special and {room} positions; induction "
            f"needs {LEAST + 1} and twice {LEAST}."
        )
    return min(period, most)


def induction_pairs(model: Any, count: int = 200, seed: int = 0, period: int = PERIOD) -> Pairs:
    """Pairs of which the clean prompt repeats what the corrupted one does not.

    Clean: t_1 ... t_n, then t_1 ... t_k, k = n / 2; it is right to go on with t_(k+1). Corrupted: another
    token stands for that one in the first period, and is then right.

    Args:
        model: whose vocabulary; one without a tokenizer may use all of its ids.
        count: of pairs.
        seed: of the draws.
        period: n, less where the vocabulary or the context is small.
    """
    n = period_of(model, period)
    drawn = _drawn(model, count, n + 1, seed)
    first, other, k = drawn[:, :n], drawn[:, n], n // 2
    corrupted = first.clone()
    corrupted[:, k] = other
    front = torch.tensor(_front(model), dtype=torch.int64).expand(count, -1)
    clean, changed = (torch.cat([front, x, first[:, :k]], 1) for x in (first, corrupted))
    lengths = torch.full((count,), clean.shape[1])
    texts: tuple[tuple[str, str], ...] = ()
    if model.tokenizer is not None:
        both = ([model.tokenizer.decode(row) for row in side.tolist()] for side in (clean, changed))
        texts = tuple(zip(*both, strict=True))
    return Pairs(INDUCTION, clean, changed, lengths, first[:, k : k + 1], other[:, None], texts=texts)


@dataclass(frozen=True, eq=False)
class Induction(AsTable):
    """Where heads look in the second of two periods.

    Args:
        model: name.
        period: tokens of one.
        attention: mean over prompts and positions [place of `PLACES`, layer, head] float64.
        errors: standard errors, prompts as units, of the same shape.
        loss: mean next-token loss in the first and in the second period, nats.
        prompts: how many.
    """

    model: str
    period: int
    attention: Tensor
    errors: Tensor
    loss: tuple[float, float]
    prompts: int

    def to_pandas(self) -> pd.DataFrame:
        """layer, head; for each of `PLACES` the mean attention and its standard error (`_se`), the strongest
        induction head first."""
        import pandas as pd

        layers, heads = self.attention.shape[1:]
        table: dict[str, Any] = {
            "layer": [d for d in range(layers) for _ in range(heads)],
            "head": [h for _ in range(layers) for h in range(heads)],
        }
        for name, mean, error in zip(PLACES, self.attention, self.errors, strict=True):
            table |= {name: mean.flatten().numpy(), f"{name}_se": error.flatten().numpy()}
        return pd.DataFrame(table).sort_values(PLACES[2], ascending=False, kind="stable", ignore_index=True)

    def plot(self) -> Any:
        """A figure: a map of layers and heads for each place."""
        from interpcore.runs.plots import caption, new_figure, say, whole_numbers

        figure, axes = new_figure(9, 3.2, len(PLACES))
        for panel, name, values in zip(axes, PLACES, self.attention, strict=True):
            image = panel.imshow(values.numpy(), vmin=0, vmax=1, aspect="auto", origin="lower")
            panel.set(title=name.replace("_", " "), xlabel="head", ylabel="layer")
            whole_numbers(panel.xaxis, panel.yaxis)
        figure.colorbar(image, ax=axes, label="mean attention")
        data = f"random tokens twice, period {self.period}"
        return say(figure, caption(model=self.model, data=data, n=f"{self.prompts} prompts"))


@torch.no_grad()
def induction(
    model: Model, prompts: int = 64, seed: int = 0, period: int = PERIOD, batch: int = 16
) -> Induction:
    """How much every head attends, in the second period, to the token before, to the same token a period
    before, and to the one that followed it there (an induction head's place).

    Args:
        model: the decoder.
        prompts: how many.
        seed: of the draws.
        period: tokens of one, less where the vocabulary or the context is small.
        batch: prompts of a forward.
    """
    n = period_of(model, period)
    drawn = _drawn(model, prompts, n, seed)
    front = torch.tensor(_front(model), dtype=torch.int64).expand(prompts, -1)
    tokens, start = torch.cat([front, drawn, drawn], 1), front.shape[1] + n
    taps = [Tap("pattern", d) for d in range(model.plan.n_calls)]
    at = torch.arange(start, start + n)
    found, losses = [], []
    for rows in tokens.split(batch):
        out = model.forward(rows.to(model.device), taps=taps)
        maps = torch.stack([out.taps[tap].double() for tap in taps])  # [layer, row, position, head, key]
        places = [maps[:, :, at, :, at - back].mean(0) for back in (1, n, n - 1)]
        found.append(torch.stack(places).permute(2, 0, 1, 3))  # [row, place, layer, head]
        assert out.logits is not None
        logs = out.logits[:, :-1].float().log_softmax(-1)
        losses.append(-logs.gather(2, rows[:, 1:, None].to(logs.device))[..., 0].double().cpu())
    each, loss = torch.cat(found).cpu(), torch.cat(losses)
    # Nothing foretells the first token of a period.
    halves = loss[:, start - n : start - 1].mean(), loss[:, start:].mean()
    error = each.std(0) / prompts**0.5 if prompts > 1 else torch.full_like(each[0], torch.nan)
    name = model.spec.short_name
    return Induction(name, n, each.mean(0), error, (float(halves[0]), float(halves[1])), prompts)


def _drawn(model: Any, count: int, n: int, seed: int) -> Tensor:
    """Tokens of each row, none twice [count, n] int64."""
    usable, make = _usable(model), torch.Generator().manual_seed(seed)
    return torch.stack([usable[torch.randperm(len(usable), generator=make)[:n]] for _ in range(count)])


def _usable(model: Any) -> Tensor:
    """Ids that stand for text [id] int64."""
    size, tokenizer = model.spec.vocab_size, model.tokenizer
    known = size if tokenizer is None else min(size, len(tokenizer))
    special = set() if tokenizer is None else set(tokenizer.all_special_ids)
    return torch.tensor([i for i in range(known) if i not in special])


def _front(model: Any) -> list[int]:
    return [] if model.tokenizer is None else first_ids(model.tokenizer)
