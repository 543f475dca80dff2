"""Metrics of a task at the last token: differences of answers and divergences from the clean run.

Every metric is larger where the model does better, so that score = metric(clean) - metric(corrupted) is
positive for what helps: divergences are their own negative, and `natural` gives them back as usual.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from interpcore.circuits.options import METRICS, SEQUENCE
from interpcore.circuits.pairs import Pairs
from interpcore.errors import Refused, did_you_mean
from interpcore.model import Model
from interpcore.model.projection import Projection
from interpcore.runs.options import PROTOCOLS

ALIASES = {"kl_divergence": "kl", "js_divergence": "js"}


class MetricError(Refused):
    """A metric that does not exist or cannot do what is asked."""


@dataclass(frozen=True)
class Metric:
    """One number per example from the logits at its last token.

    Args:
        name: "logit_diff", "prob_diff" (good minus bad answers), "logprob_diff" (log of the good ones'
            probability, summed, minus that of the bad ones; 0 for none), "kl" (of the clean run's
            distribution from this one's, in nats), "js" (Jensen-Shannon, nats) or "accuracy" (the best good
            answer above the best bad one; above all tokens where the task has no bad ones).
        protocol: "paper" divides divergences by the size of the vocabulary, as published.
    """

    name: str
    protocol: str = "default"

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", ALIASES.get(self.name, self.name))
        if self.name not in METRICS:
            near = did_you_mean(self.name, METRICS)
            raise MetricError(f"There is no metric {self.name!r}; metrics are {', '.join(METRICS)}.{near}")
        if self.protocol not in PROTOCOLS:
            raise MetricError(f"The protocol is 'default' or 'paper'; got {self.protocol!r}.")

    @property
    def positions(self) -> str:
        """Where it reads the logits; the unembedding is computed there alone."""
        return "last"

    @property
    def answers_only(self) -> bool:
        """Whether it reads the answers' logits and no others."""
        return self.name == "logit_diff"

    @property
    def divergence(self) -> bool:
        """Whether it compares with the clean run and needs its logits."""
        return self.name in ("kl", "js")

    @property
    def differentiable(self) -> bool:
        """Whether it has a gradient at all."""
        return self.name != "accuracy"

    @property
    def differentiable_at_clean(self) -> bool:
        """Whether its gradient on the clean prompt says anything."""
        return self.differentiable and not self.divergence

    @property
    def gradient_refusal(self) -> str | None:
        """Why no gradient method can use it; None where one can."""
        if self.differentiable:
            return None
        return (
            "accuracy is a step function of the logits, so its gradient is zero wherever it exists; use "
            "logit_diff, or exact patching."
        )

    @property
    def clean_refusal(self) -> str | None:
        """Why a gradient taken on the clean prompt alone (EAP) cannot use it; None where it can."""
        if self.divergence:
            return (
                f"The {self.name} divergence from the clean run has its minimum there, so its gradient on "
                "the clean prompt is zero; use integrated gradients (eap-ig-inputs) or exact patching."
            )
        return self.gradient_refusal

    def __call__(self, logits: Tensor, pairs: Pairs, clean_logits: Tensor | None = None) -> Tensor:
        """The metric of each example, larger = better.

        Args:
            logits: at the last token [batch, vocabulary], or [copies, batch, vocabulary].
            pairs: the rows of this batch.
            clean_logits: of the clean run [batch, vocabulary]; divergences need them, others ignore them.
        Returns: [batch] or [copies, batch], in the logits' dtype (float32 for narrower ones).
        Raises: MetricError for missing clean logits or answers outside the vocabulary.
        """
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        if self.divergence:
            if clean_logits is None:
                raise MetricError(f"The metric {self.name} needs the clean run's logits.")
            return -_DIVERGENCES[self.name](logits, clean_logits.to(logits.dtype)) * self._scale(logits)
        _check_answers(pairs, logits.shape[-1])
        if self.name == SEQUENCE:
            values = logits.log_softmax(-1)
            return _log_sum(values, pairs.good) - _log_sum(values, pairs.bad)
        if pairs.pair is not None:
            raise MetricError(
                f"Answers of several tokens are measured by {SEQUENCE}, kl or js; {self.name} reads one."
            )
        if self.name == "accuracy":
            return _accuracy(logits, pairs)
        values = logits if self.name == "logit_diff" else logits.softmax(-1)
        by = pairs.logits_by if self.name == "logit_diff" else "sum"
        return _joined(values, pairs.good, by) - _joined(values, pairs.bad, by)

    def natural(self, value: float) -> float:
        """A value as it is usually written: divergences positive."""
        return 0.0 - value if self.divergence else value  # not -0.0

    def _scale(self, logits: Tensor) -> float:
        return 1 / logits.shape[-1] if self.protocol == "paper" else 1.0

    def __str__(self) -> str:
        return self.name if self.protocol != "paper" or not self.divergence else f"{self.name}/vocabulary"


def as_metrics(metrics: str | Metric | Sequence[str | Metric]) -> list[Metric]:
    """Metrics given by name or ready, one or several.

    Raises: MetricError for none, or two of the same name.
    """
    listed = [metrics] if isinstance(metrics, str | Metric) else metrics
    found = [Metric(metric) if isinstance(metric, str) else metric for metric in listed]
    names = [metric.name for metric in found]
    if not names or len(set(names)) < len(names):
        raise MetricError(f"Give one metric or several different ones; got {', '.join(names) or 'none'}.")
    return found


def restrict_to_answers(model: Model, pairs: Pairs, metrics: Sequence[Metric]) -> tuple[Model, Pairs]:
    """A model whose only logits are those of the pairs' answers, and the pairs in its numbering; both as they
    are where a metric reads other logits too."""
    if not all(metric.answers_only for metric in metrics):
        return model, pairs
    _check_answers(pairs, model.spec.vocab_size)
    tokens = torch.cat([pairs.good.flatten(), pairs.bad.flatten()]).unique()
    tokens = tokens[tokens >= 0]
    good, bad = (
        torch.where(side >= 0, torch.searchsorted(tokens, side.contiguous()), -1)
        for side in (pairs.good, pairs.bad)
    )
    whole, columns = model.unembedding, tokens.to(model.device)
    bias = None if whole.bias is None else whole.bias[columns]
    narrow = Projection(whole.weight[:, columns], bias)
    return replace(model, unembedding=narrow), replace(pairs, good=good, bad=bad)


def _check_answers(pairs: Pairs, vocabulary: int) -> None:
    if max(int(side.max()) if side.numel() else -1 for side in (pairs.good, pairs.bad)) >= vocabulary:
        raise MetricError(
            f"An answer of {pairs.task} is outside the vocabulary of {vocabulary}; these pairs were made for "
            "another tokenizer."
        )


def _joined(values: Tensor, answers: Tensor, by: str) -> Tensor:
    """Sum or mean of values [..., batch, vocabulary] at answers [batch, k] (-1 for none): [..., batch]."""
    answers = answers.to(values.device)
    there = answers >= 0
    index = answers.clamp(min=0).expand(*values.shape[:-1], answers.shape[-1])
    total = (values.gather(-1, index) * there).sum(-1)
    return total / there.sum(-1).clamp(min=1) if by == "mean" else total


def _log_sum(values: Tensor, answers: Tensor) -> Tensor:
    """Log of the summed probability at answers [batch, k] (-1 for none), of log-probabilities [..., batch,
    vocabulary]: [..., batch]; 0 where there is none."""
    answers = answers.to(values.device)
    there = answers >= 0
    if not answers.shape[-1]:
        return values.new_zeros(values.shape[:-1])
    index = answers.clamp(min=0).expand(*values.shape[:-1], answers.shape[-1])
    some = there.any(-1)
    # Rows without an answer keep one, so that no gradient is NaN; they count for nothing.
    found = values.gather(-1, index).masked_fill(~there & some[:, None], -math.inf).logsumexp(-1)
    return torch.where(some, found, torch.zeros_like(found))


def _accuracy(logits: Tensor, pairs: Pairs) -> Tensor:
    good, bad = _best(logits, pairs.good), _best(logits, pairs.bad)
    free = (pairs.bad < 0).all(-1).to(logits.device)
    return torch.where(free, good >= logits.amax(-1), good > bad).to(logits.dtype)


def _best(logits: Tensor, answers: Tensor) -> Tensor:
    """Largest of the logits at answers [batch, k] (-1 for none): [..., batch]; -inf where there is none."""
    if not answers.shape[-1]:
        return logits.new_full(logits.shape[:-1], -math.inf)
    answers = answers.to(logits.device)
    index = answers.clamp(min=0).expand(*logits.shape[:-1], answers.shape[-1])
    return logits.gather(-1, index).masked_fill(answers < 0, -math.inf).amax(-1)


def _kl(logits: Tensor, clean: Tensor) -> Tensor:
    """sum over the vocabulary of q (log q - log p), with q the clean distribution."""
    log_p, log_q = F.log_softmax(logits, -1), F.log_softmax(clean, -1)
    return (log_q.exp() * (log_q - log_p)).sum(-1)


def _js(logits: Tensor, clean: Tensor) -> Tensor:
    """Mean of the divergences of both distributions from their middle."""
    log_p, log_q = F.log_softmax(logits, -1), F.log_softmax(clean, -1)
    log_m = torch.logaddexp(log_p, log_q.expand_as(log_p)) - math.log(2)
    return ((log_p.exp() * (log_p - log_m)) + (log_q.exp() * (log_q - log_m))).sum(-1) / 2


_DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"kl": _kl, "js": _js}
