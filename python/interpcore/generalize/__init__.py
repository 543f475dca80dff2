"""Does a finding hold on another model, on new data, with another method: trials that can fail.

A `Trial` says before it runs what it measures, over which units, against which threshold, and what must not
pass it (its controls). A run registers its trials, measures them, judges them, and reports what failed. This
floor imports no family: a `Suite` brings its trials and the `Context` in which they run.
"""

from typing import Any

from interpcore._faces import names, shown

_FACE = {
    "context": "Context Setting Suite untrained",
    "measured": "Measured",
    "options": "Options",
    "published": "PUBLISHED replay",
    "sizes": "units_for_correlation units_for_share",
    "study": "Trials open_trials",
    "suites": "find_suite open_run",
    "definition": "CRITERIA Trial trial",
    "verdict": "Gate Judged Outcome criterion gate in_words judge settle",
}
__all__ = names(_FACE)


def __getattr__(name: str) -> Any:
    return shown(__name__, _FACE, name)
