"""The published tasks: how each is measured and called. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """What the study does with a task.

    Args:
        name: published id.
        title: as figures write it.
        metric: published metric.
        logits_by: how its logit difference joins several answers.
    """

    name: str
    title: str
    metric: str
    logits_by: str


INDUCTION = "induction"
"""Random tokens twice, of any vocabulary; no published table."""
TASKS = {
    task.name: task
    for task in (
        Task("ioi", "IOI", "logit_diff", "sum"),
        Task("greater-than", "Greater-Than", "prob_diff", "mean"),
        Task("greater-than-price", "Greater-Than (Price)", "prob_diff", "mean"),
        Task("greater-than-sequence", "Greater-Than (Sequence)", "prob_diff", "mean"),
        Task("sva", "SVA", "prob_diff", "mean"),
        Task("gender-bias", "Gender-Bias", "logit_diff", "sum"),
        Task("fact-retrieval-comma", "Country-Capital", "logit_diff", "sum"),
        Task("hypernymy-comma", "Hypernymy", "prob_diff", "sum"),
        Task(INDUCTION, "Induction", "logit_diff", "sum"),
    )
}


def title_of(name: str) -> str:
    """A task as figures write it; one's own has its name."""
    return TASKS[name].title if name in TASKS else name
