"""What a spawned worker does with a run's artifacts: a module that another process can import."""

from __future__ import annotations

from typing import Any

from interpcore.runs import Artifacts, write_json


def write_as_a_worker(artifacts: Artifacts, value: Any) -> None:
    """Write one file."""
    write_json(artifacts.artifact("layer3/w.json"), value)
