"""Published trials, restated: the counts that they give, and which verdict these support.

Facts from the `evaluation/` folders of two public repositories, `Elena-Baixy/relations_eval` and
`Elena-Baixy/universal-neurons_eval`, at the commits named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from interpcore.errors import Refused
from interpcore.generalize.sizes import units_for_share
from interpcore.generalize.verdict import FAIL, INCONCLUSIVE, PASS
from interpcore.stats import Interval, mean_over_clusters

if TYPE_CHECKING:
    import pandas as pd

BAR = 0.6
"""The share of relations' answers that a restated trial must exceed."""
RELATIONS, NEURONS = "relations_eval", "universal-neurons_eval"


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published trial.

    Attributes:
        name: what `replay` takes.
        what: what was counted.
        hits, of: the counts; None where they were not stated.
        stated: the verdict as published.
        source: repository and commit.
        trial: the trial that restates it.
        suite: of that trial.
        tested: whether the counts are a test of the finding at `BAR`.
        note: what else must be known.
    """

    name: str
    what: str
    hits: int | None
    of: int | None
    stated: str
    source: str
    trial: str
    suite: str = "relations"
    tested: bool = True
    note: str = ""

    @property
    def interval(self) -> Interval | None:
        """Exact 95% interval of the share, units taken as independent; None without counts."""
        if self.hits is None or self.of is None:
            return None
        return mean_over_clusters([1.0] * self.hits + [0.0] * (self.of - self.hits), range(self.of))

    @property
    def supported(self) -> str:
        """The verdict that the counts support against 0.6; "no test" where they are none of the finding."""
        found = self.interval
        if not self.tested or found is None:
            return "no test"
        return PASS if found.low > BAR else FAIL if found.high < BAR else INCONCLUSIVE


def _relations(
    name: str, what: str, hits: int, of: int, stated: str, commit: str, trial: str, note: str = ""
) -> Published:
    source = f"{RELATIONS} {commit}"
    return Published(
        name=name, what=what, hits=hits, of=of, stated=stated, source=source, trial=trial, note=note
    )


def _neurons(
    name: str, what: str, hits: int | None, of: int | None, stated: str, trial: str, note: str
) -> Published:
    return Published(
        name=name,
        what=what,
        hits=hits,
        of=of,
        stated=stated,
        source=f"{NEURONS} 72d5b12",
        trial=trial,
        suite="neurons",
        tested=False,
        note=note,
    )


ANY = "passes if one trial of up to three succeeds"
PUBLISHED = (
    _relations("re-gt1", "capital cities on GPT-2 medium", 2, 3, "PASS", "73f773c", "R1", ANY),
    _relations("re-gt2", "Poland, Sweden, Norway", 3, 3, "PASS", "73f773c", "R3", "not checked to be known"),
    _relations(
        "re-gt3-sentiment",
        "word sentiment",
        4,
        5,
        "PASS",
        "73f773c",
        "R6-bias",
        "every answer is 'positive'; the majority answer scores 4/5, too",
    ),
    _relations(
        "re-gt3-antonym", "adjective antonym", 0, 2, "ignored", "73f773c", "R6-linguistic", "one row, twice"
    ),
    _relations("re-gt3-language", "country language", 2, 3, "PASS", "73f773c", "R6-factual", ANY),
    _relations("re-gt1-large", "capital cities on GPT-2 large", 2, 3, "PASS", "523e9e2", "R1", ANY),
    _relations(
        "re-gt2-large", "Poland, Thailand, Kenya", 1, 3, "PASS", "523e9e2", "R3", "a hit is among the top 10"
    ),
    _relations("re-gt3-large", "adjective comparative", 3, 3, "PASS", "523e9e2", "R6-linguistic", ANY),
    _relations("re-gt2-gptj", "new capital cities on GPT-J", 0, 3, "FAIL", "54c65cc", "R3"),
    _relations("re-gt3-gptj", "relations above .3 of three", 1, 3, "PASS", "54c65cc", "R6-factual"),
    _relations(
        "re-replication",
        "capital cities on GPT-J, replicated",
        5,
        19,
        "no match with .789",
        "54c65cc",
        "R1",
        "fits a stale cache in the published code on current transformers",
    ),
    _relations("re-demo", "capital cities on GPT-J, demonstration", 15, 19, "-", "the original", "R1"),
    _neurons(
        "un-gt1-2",
        "neurons with a negative input bias",
        91747,
        98304,
        "PASS",
        "N2",
        "all neurons, not universal ones; neurons of a layer are not independent",
    ),
    _neurons(
        "un-gt1-3",
        "residual units below one half",
        516,
        1024,
        "PASS",
        "N3",
        "not neurons; half below one half is symmetric noise",
    ),
    _neurons(
        "un-gt3-2",
        "dimensions above their own 90th percentile",
        102,
        1024,
        "PASS",
        "N7",
        "fixed by construction",
    ),
    _neurons(
        "un-gt3-3",
        "neurons that tell number tokens",
        0,
        None,
        "FAIL",
        "N8",
        "how many were tested is not stated; no null",
    ),
    _neurons(
        "un-universal-medium",
        "universal neurons of GPT-2 medium, five seeds",
        1533,
        36864,
        "1-5%",
        "N9",
        "a description: units are not independent",
    ),
    _neurons(
        "un-universal-410m",
        "universal neurons of Pythia-410m",
        1211,
        98304,
        "1-5%",
        "N9",
        "a description: units are not independent",
    ),
    _neurons(
        "un-universal-160m",
        "universal neurons of Pythia-160m",
        465,
        36864,
        "1-5%",
        "N9",
        "a description: units are not independent",
    ),
)


def replay(name: str = "published") -> pd.DataFrame:
    """What published counts support: one row per trial.

    Args:
        name: one trial's name, or "published" for all.
    Returns: name, what, counts, low, high, stated, supported, needed (units for power 0.8 at this share),
        restated (the trial of ours), note, source.
    Raises: Refused for an unknown name.
    """
    import pandas as pd

    return pd.DataFrame([_row(each) for each in named(name)])


def named(name: str) -> Sequence[Published]:
    """Published trials by name. Raises: Refused for an unknown one."""
    found = [each for each in PUBLISHED if name in ("published", each.name)]
    if not found:
        listed = ", ".join(each.name for each in PUBLISHED)
        raise Refused(f"There is no published trial {name!r}; there are {listed}, or published for all.")
    return found


def _row(each: Published) -> dict[str, object]:
    found = each.interval
    counts = f"{each.hits}/{'?' if each.of is None else each.of}"
    needed = units_for_share(BAR, found.value) if each.tested and found is not None else None
    return {
        "name": each.name,
        "what": each.what,
        "counts": counts,
        "low": float("nan") if found is None else found.low,
        "high": float("nan") if found is None else found.high,
        "stated": each.stated,
        "supported": each.supported,
        "needed": "" if needed is None else str(needed),
        "restated": f"{each.suite} {each.trial}",
        "note": each.note,
        "source": each.source,
    }
