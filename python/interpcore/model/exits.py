"""When a recurrence has settled: what changes from step to step, and generation that stops there, token by
token.

Criteria and thresholds are those of Geiping et al. 2025 (arXiv 2502.05171). A step's prediction is what the
coda makes of its state, which is that of the model with so many steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.errors import Refused
from interpcore.model.cache import Cache, CacheWriter
from interpcore.model.call import RESID
from interpcore.model.context import Context
from interpcore.model.decoder import Model
from interpcore.model.generate import absolute, pick_stops
from interpcore.model.layout import Layout
from interpcore.model.maps import Function
from interpcore.model.norm import Norm
from interpcore.model.prompts import check_length, read_prompts
from interpcore.model.recurrence import state_of, steps_of
from interpcore.model.sites import Edit, Tap, merged, resolve, select
from interpcore.model.state import State

CRITERIA = {"entropy": 1e-3, "kl": 5e-4, "latent": 0.03}
"""Published thresholds: the entropy's absolute change (nats), KL(before || now) of the next token (nats), and
the length of the state's change over that of the state."""
LOOKUPS = ("full", "latest")


@dataclass(frozen=True)
class Exit:
    """A token's recurrence ends after the first step whose change is below a threshold.

    Args:
        criterion: "entropy", "kl" or "latent".
        threshold: None takes the published one.
        least: steps at least.
    """

    criterion: str
    threshold: float | None = None
    least: int = 1

    def __post_init__(self) -> None:
        if self.criterion not in CRITERIA:
            raise Refused(f"An exit criterion is one of {', '.join(CRITERIA)}; got {self.criterion!r}.")
        if self.threshold is not None and not self.threshold >= 0:
            raise Refused(f"An exit threshold is 0 or more; got {self.threshold}.")
        if self.least < 1:
            raise Refused(f"A recurrence makes at least 1 step; got {self.least}.")

    @property
    def below(self) -> float:
        """The threshold."""
        return CRITERIA[self.criterion] if self.threshold is None else self.threshold

    def reached(self, change: Tensor, step: int) -> Tensor:
        """Whether tokens [...] end after step `step` (counted from 1), given its change [...]."""
        return (change < self.below) & (step >= self.least)


def exit_steps(changes: Tensor, rule: Exit) -> Tensor:
    """Steps that each token would make [...], given the changes of all steps [step, ...]; all of them where
    the rule is never met."""
    met = torch.stack([rule.reached(change, step) for step, change in enumerate(changes, 1)])
    first = met.to(torch.int8).argmax(0) + 1
    return torch.where(met.any(0), first, len(changes))


@torch.no_grad()
def step_changes(
    model: Model,
    tokens: Tensor,
    attention_mask: Tensor | None = None,
    *,
    criterion: str,
    edits: Sequence[Edit] = (),
) -> Tensor:
    """How much each recurrent step changes a criterion's quantity, at every position, from one forward.

    Args:
        model: a depth-recurrent model.
        tokens, attention_mask, edits: as in `Model.forward`.
        criterion: "entropy" or "kl", infinite at the first step, which has no prediction before it, or
            "latent".
    Returns: [step, batch, position] in packed columns, NaN past a row's end.
    """
    Exit(criterion)
    core = model.spec.recurs.core
    leaving = Tap("block_out", ("core", core - 1, slice(None)))
    output = model.forward(tokens, attention_mask, taps=[leaving], edits=edits, logits_at=None)
    states = output.taps[leaving]
    start = torch.zeros_like(output.lengths)
    layout = Layout(start, output.lengths, None, states.shape[2], model.device)
    initial, norm = model.modules[state_of(model.plan)], model.modules["core_norm"]
    assert isinstance(initial, State) and isinstance(norm, Norm)
    before = Prediction(initial(states[0], layout))
    changes = []
    for state in states:
        now = Prediction(state)
        if criterion != "latent":
            logits = model.run_from(
                _coda(model),
                norm(state.nan_to_num()),
                lengths=output.lengths,
                edits=edits,
                logits_at="all",
            ).logits
            assert logits is not None
            now = Prediction(state, logits.float().log_softmax(-1))
        changes.append(now.change(before, criterion))
        before = now
    return torch.stack(changes).masked_fill(layout.padding.to(changes[0].device), torch.nan)


def _coda(model: Model) -> int:
    """Depth of the first block after the recurrence."""
    return model.plan.n_calls - model.spec.recurs.coda


@dataclass(frozen=True, eq=False)
class Prediction(ShortRepr):
    """A state [..., d_model], and the log-probabilities that it predicts [..., vocabulary]."""

    state: Tensor
    log_probs: Tensor | None = None

    def change(self, before: Prediction, criterion: str) -> Tensor:
        """A criterion's change from an earlier one [...]."""
        if criterion == "latent":
            return (self.state - before.state).norm(dim=-1) / self.state.norm(dim=-1)
        assert self.log_probs is not None
        if before.log_probs is None:
            return torch.full_like(self.log_probs[..., 0], torch.inf)
        if criterion == "entropy":
            return (self._entropy() - before._entropy()).abs()
        divergence = (before.log_probs.exp() * (before.log_probs - self.log_probs)).sum(-1)
        return divergence.clamp(min=0)  # of which rounding can leave less

    def _entropy(self) -> Tensor:
        assert self.log_probs is not None
        return -(self.log_probs.exp() * self.log_probs).sum(-1)


@dataclass(frozen=True, eq=False, repr=False)
class AdaptiveGeneration(ShortRepr):
    """Continuations of a batch of prompts, with the steps that each token took.

    Args:
        tokens, lengths: as in `Generation`.
        steps: recurrent steps behind each new token [batch, token]; the first one's are the prompt's, all.
    """

    tokens: Tensor
    lengths: Tensor
    steps: Tensor


@torch.no_grad()
def generate_adaptive(
    model: Model,
    tokens: Tensor,
    attention_mask: Tensor | None = None,
    *,
    rule: Exit,
    max_new_tokens: int,
    lookup: str = "latest",
    edits: Sequence[Edit] = (),
    stop_tokens: Sequence[int] | None = None,
) -> AdaptiveGeneration:
    """Continue prompts greedily, each new token's recurrence ending when it has settled.

    The prompt makes every step. Rows end on their own, so that a batch gives what each prompt alone does.

    Args:
        model: a depth-recurrent model; its steps are the most that a token makes.
        tokens, attention_mask, edits, stop_tokens: as in `generate`.
        rule: when a token ends.
        max_new_tokens: tokens at most.
        lookup: what later tokens see of one that ended early, at the steps that it did not make: "latest",
            the keys and values of its last step; "full", nothing, as only tokens that made a step are looked
            up at it.
    Returns: `AdaptiveGeneration`.
    Raises: ValueError for another look-up, a model without recurrence, or a plan that is no longer its own.
    """
    if lookup not in LOOKUPS:
        raise Refused(f"A look-up is one of {', '.join(LOOKUPS)}; got {lookup!r}.")
    if max_new_tokens < 1:
        raise Refused(f"max_new_tokens is at least 1; got {max_new_tokens}.")
    model.with_steps(steps_of(model.plan))  # refuses plans whose steps are not alike
    layout, packed = read_prompts(tokens, attention_mask, None, model.spec, model.device)
    fixed = merged([absolute(edit, layout.lengths) for edit in edits], model.plan, model.spec.absent)
    stops = torch.tensor(pick_stops(model, stop_tokens), dtype=torch.int64, device=model.device)
    mask = torch.arange(packed.shape[1]) < layout.lengths[:, None]
    prompt = model.forward(packed, mask, cache=Cache(), edits=fixed, logits_at="last")
    assert prompt.cache is not None and prompt.logits is not None
    text = _Adaptive(model, prompt.cache, fixed, rule, lookup)
    logits, batch = prompt.logits, layout.batch
    picked: list[Tensor] = []
    steps = [torch.full((batch,), text.most)]
    done = torch.zeros(batch, dtype=torch.bool, device=model.device)
    lengths = torch.full((batch,), max_new_tokens)
    for number in range(1, max_new_tokens + 1):
        chosen = logits.argmax(-1)
        picked.append(torch.where(done, picked[-1], chosen) if picked else chosen)
        stopped = torch.isin(picked[-1], stops) & ~done
        lengths[stopped.cpu()] = number
        done |= stopped
        if number == max_new_tokens or bool(done.all()):
            break
        logits, made = text.next(picked[-1])
        steps.append(made)
    return AdaptiveGeneration(torch.stack(picked, 1), lengths.clamp(max=len(picked)), torch.stack(steps, 1))


class _Writer(CacheWriter):
    """A writer that also hands out the new tokens' keys and values."""

    def __init__(self, cache: Cache, layout: Layout):
        super().__init__(cache, layout)
        self.new: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(self, slot: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.new[slot] = keys, values
        return super().extend(slot, keys, values)


class _Adaptive:
    """A growing batch of texts whose tokens make steps of their own number."""

    def __init__(self, model: Model, cache: Cache, edits: Sequence[Edit], rule: Exit, lookup: str):
        self.model, self.cache, self.edits, self.rule, self.lookup = model, cache, edits, rule, lookup
        calls = model.plan.calls
        own = model.spec.recurs
        self.most, self.core = steps_of(model.plan), own.core
        self.first = next(i for i, call in enumerate(calls) if call.module == "adapter")
        self.after = self.first + self.most * (own.core + 1)
        self.steps = torch.full(cache.segments[-1].tokens.shape, self.most)  # of each cached token

    def next(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [batch, vocabulary] after one more token [batch], and the steps that it made [batch]."""
        model, start = self.model, self.cache.lengths
        layout = Layout(start, torch.ones_like(start), None, 1, model.device)
        check_length(layout, model.spec)
        resolved = resolve(self.edits, layout, more=True)
        unseen = [select(edit, layout.totals, start=start) for edit in self._unseen(start)]
        ctx = Context(layout, (), [*resolved, *unseen], plan=model.plan, absent=model.spec.absent)
        writer = _Writer(self.cache, layout)
        values = {RESID: model.embed(chosen[:, None], ctx)}
        model.run_calls(range(self.first), values, ctx, writer)
        made = self._recur(values, ctx, writer)
        logits = self._read(values, ctx, writer)
        if self.lookup == "latest":
            self._leave_latest(writer, made)
        else:
            self._leave_nothing(writer)
        self.cache = writer.finish(chosen[:, None], model.identity, model.plan, self.edits)
        width = self.cache.segments[-1].tokens.shape[1]
        grown = torch.full((len(start), width), self.most)
        grown[:, : self.steps.shape[1]] = self.steps
        self.steps = grown.scatter(1, start[:, None], made[:, None])
        return logits, made

    def _recur(self, values: dict[str, Tensor], ctx: Context, writer: _Writer) -> Tensor:
        """Run the steps on the streams; a row that has ended keeps its state."""
        running = torch.ones(len(values[RESID]), dtype=torch.bool, device=self.model.device)
        made = torch.full((len(running),), self.most)
        before = Prediction(values[RESID][:, 0])
        for step in range(1, self.most + 1):
            begin = self.first + (step - 1) * (self.core + 1)
            kept = values[RESID]
            self.model.run_calls(range(begin, begin + self.core + 1), values, ctx, writer)
            values[RESID] = torch.where(running[:, None, None], values[RESID], kept)
            now = Prediction(values[RESID][:, 0])
            if self.rule.criterion != "latent":
                logits = self._read(dict(values), ctx, writer)
                now = Prediction(now.state, logits.float().log_softmax(-1))
            ended = running & self.rule.reached(now.change(before, self.rule.criterion), step)
            made[ended.cpu()] = step
            running = running & ~ended
            before = now
            if not bool(running.any()):
                break
        return made

    def _read(self, values: dict[str, Tensor], ctx: Context, writer: _Writer) -> Tensor:
        """Logits [batch, vocabulary] of the present state."""
        model = self.model
        depth = model.run_calls(range(self.after, len(model.plan.calls)), values, ctx, writer)
        logits = model.read_logits(ctx.site("resid", depth, values[RESID]), ctx, "last")
        assert logits is not None
        return logits

    def _slots(self, step: int) -> list[int]:
        """Cache slots of a step's blocks."""
        prelude = self.model.spec.recurs.prelude
        return [prelude + step * self.core + block for block in range(self.core)]

    def _leave_latest(self, writer: _Writer, made: Tensor) -> None:
        """The last step's keys and values in the slots of the steps that a row did not make."""
        for block in range(self.core):
            slots = [self._slots(step)[block] for step in range(self.most)]
            new = [writer.new[slot] for slot in slots if slot in writer.new]
            rows = torch.arange(len(made))
            for step in range(int(made.min()), self.most):
                source = made.clamp(max=step + 1) - 1
                keys, values = (torch.stack(part)[source, rows] for part in zip(*new, strict=True))
                writer.extend(slots[step], keys, values)

    def _leave_nothing(self, writer: _Writer) -> None:
        """Room in the slots of the steps that no row made."""
        for step in range(self.most):
            for slot, known in zip(self._slots(step), self._slots(0), strict=True):
                if slot not in writer.new:
                    writer.extend(slot, *(torch.zeros_like(part) for part in writer.new[known]))

    def _unseen(self, start: Tensor) -> list[Edit]:
        """Edits that hide, at each step, the cached tokens that did not make it."""
        if self.lookup == "latest":
            return []
        hidden = []
        for step in range(int(self.steps.min()), self.most):
            absent = torch.nn.functional.pad(self.steps <= step, (0, 1))
            absent.scatter_(1, start[:, None], False)
            hide = Function(partial(_hidden, absent=absent.to(self.model.device)))
            hidden += [Edit("scores", slot, -1, hide) for slot in self._slots(step)]
        return hidden


def _hidden(scores: Tensor, absent: Tensor) -> Tensor:
    """Scores [row, head, key] with -inf at absent keys [row, key]."""
    return scores.masked_fill(absent[:, None, : scores.shape[-1]], -torch.inf)
