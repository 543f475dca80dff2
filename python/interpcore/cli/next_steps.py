"""What may be typed after each command: SAME stands for its model, folder and study options, OUT for the
folder, MODEL for the model."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from interpcore.runs.experiment import Experiment
from interpcore.runs.options import Option, declared

_STEERED = "--model MODEL --directions DIRECTIONS --depth DEPTH"
NEXT: dict[str, tuple[str, ...]] = {
    "lre run": ("interpcore lre specificity SAME", "interpcore lre baselines SAME"),
    "lre baselines": ("interpcore lre run SAME", "interpcore lre ranks SAME"),
    "lre editors": ("interpcore lre run SAME", "interpcore lre ranks SAME"),
    "lre ranks": ("interpcore lre editors SAME",),
    "lre examples": ("interpcore lre templates SAME",),
    "lre templates": ("interpcore lre examples SAME",),
    "lre specificity": ("interpcore lre editors SAME",),
    "lre reconstruction": ("interpcore lre norms SAME",),
    "lre attribute": ("interpcore lre read SAME", "interpcore lre reconstruction SAME"),
    "lre read": ("interpcore lre attribute SAME",),
    "lre logit-lens": ("interpcore lre tracing SAME",),
    "lre tracing": ("interpcore lre editors SAME",),
    "lre data": ("interpcore lre known SAME",),
    "lre known": ("interpcore lre run SAME",),
    "lre sequences": ("interpcore lre baselines SAME",),
    "lre concepts": ("interpcore lre editors SAME",),
    "lre integral": ("interpcore lre reconstruction SAME", "interpcore lre norms SAME"),
    "lre cosines": ("interpcore lre specificity SAME",),
    "lre variance": ("interpcore lre run SAME", "interpcore lre norms SAME"),
    "lre norms": ("interpcore lre reconstruction SAME",),
    "lens fit": ("interpcore lens read OUT --model MODEL --prompt TEXT --out OUT-read",),
    "lens read": ("interpcore lens edit LENS --model MODEL --prompt TEXT --into ANSWER --out OUT-edit",),
    "lens edit": ("interpcore lens read LENS --model MODEL --prompt TEXT --out OUT-read",),
    "circuits attribute": ("interpcore circuits pareto SAME", "interpcore circuits compare SAME"),
    "circuits exact": ("interpcore circuits compare SAME",),
    "circuits evaluate": ("interpcore circuits pareto SAME",),
    "circuits pareto": ("interpcore circuits compare SAME", "interpcore circuits overlap SAME"),
    "circuits overlap": ("interpcore circuits cross-task SAME",),
    "circuits cross-task": ("interpcore circuits overlap SAME",),
    "circuits ig-steps": ("interpcore circuits compare SAME",),
    "circuits compare": ("interpcore circuits pareto SAME",),
    "circuits figures": ("interpcore circuits pareto SAME",),
    "neurons summarize": ("interpcore neurons explain SAME", "interpcore neurons view 0 0 SAME"),
    "neurons correlate": ("interpcore neurons dataframe SAME",),
    "neurons weights": ("interpcore neurons dataframe SAME",),
    "neurons dataframe": ("interpcore neurons report SAME", "interpcore neurons site OUT"),
    "neurons explain": ("interpcore neurons report SAME",),
    "neurons fourier": ("interpcore neurons explain SAME",),
    "neurons intervene": ("interpcore neurons deactivation SAME",),
    "neurons deactivation": ("interpcore neurons intervene SAME",),
    "neurons cache": ("interpcore neurons view 0 0 SAME",),
    "neurons view": ("interpcore neurons site OUT",),
    "neurons report": ("interpcore neurons site OUT",),
    "steering states": ("interpcore steering directions SAME", "interpcore steering probes SAME"),
    "steering directions": ("interpcore steering sweep --model MODEL --directions OUT --out OUT-sweep",),
    "steering sweep": (f"interpcore steering accuracy {_STEERED} --out OUT-accuracy",),
    "steering accuracy": (f"interpcore steering generate {_STEERED} --out OUT-text",),
    "steering effect": (f"interpcore steering accuracy {_STEERED} --out OUT-accuracy",),
    "steering evaluate": (f"interpcore steering generate {_STEERED} --out OUT-text",),
    "steering generate": (f"interpcore steering accuracy {_STEERED} --out OUT-accuracy",),
    "steering probes": ("interpcore steering directions SAME",),
    "surgery tasks": ("interpcore surgery map SAME",),
    "surgery run": ("interpcore surgery map SAME",),
    "surgery compare": ("interpcore surgery map SAME",),
    "surgery map": ("interpcore surgery repeat SAME", "interpcore surgery influence SAME"),
    "surgery repeat": ("interpcore surgery map SAME",),
    "surgery influence": ("interpcore surgery stand-in SAME",),
    "surgery tokens": ("interpcore surgery map SAME",),
    "surgery patch": ("interpcore surgery influence SAME",),
    "surgery trace": ("interpcore surgery patch SAME",),
    "surgery stand-in": ("interpcore surgery influence SAME",),
    "surgery talk": ("interpcore surgery map SAME",),
}


def next_commands(
    experiment: Experiment, *, out: Path, model: str, verifiable: bool, **given: Any
) -> list[str]:
    """What may be typed after an experiment has run.

    Args:
        experiment: that ran.
        out, model, given: what was typed, by option.
        verifiable: whether `verify` takes its folder.
    """
    words = {"OUT": shlex.quote(str(out)), "MODEL": shlex.quote(model)}
    study = " ".join(_words(each, given.get(each.name)) for each in declared(experiment.options))
    words["SAME"] = " ".join(f"--model {words['MODEL']} {study} --out {words['OUT']}".split())
    lines = (*experiment.then, *NEXT.get(experiment.name, ()))
    own = [re.sub(r"\b(OUT|MODEL|SAME)\b", lambda found: words[found[0]], line) for line in lines]
    checks = [f"interpcore verify {words['OUT']}"] if verifiable else []
    return [*own, *checks, f"interpcore show {words['OUT']}"]


def _words(option: Option, value: Any) -> str:
    """An option as it was typed; "" where it was not."""
    if value is None or option.required or str(value) == str(option.default):
        return ""
    if isinstance(value, bool):
        return option.typed if value else f"--no-{option.typed[2:]}"
    values = value if isinstance(value, list | tuple) else [value]
    return " ".join(f"{option.typed} {shlex.quote(str(each))}" for each in values)
