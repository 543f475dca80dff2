"""Runs on disk: run folders with cards, atomic artifacts and a ledger; progress; and resumable sweeps."""

from interpcore.errors import Refused, RunError
from interpcore.runs.artifacts import (
    atomic_path,
    read_bytes,
    read_json,
    read_metadata,
    read_tensors,
    write_bytes,
    write_json,
    write_tensors,
)
from interpcore.runs.backend import Backend, InProcess, run_cell
from interpcore.runs.canonical import canonical_json, cell_seed, plain
from interpcore.runs.card import Difference, RunCard, compare, current_versions
from interpcore.runs.cells import Cells
from interpcore.runs.checkpoint import Checkpoint, checkpointed
from interpcore.runs.folder import Artifacts, RunFolder, is_run, read_card
from interpcore.runs.grid import Cell
from interpcore.runs.hashes import same_weights, tensors_hash, tokenizer_hash
from interpcore.runs.ledger import Ledger, Row
from interpcore.runs.processes import LocalProcesses
from interpcore.runs.progress import Progress
from interpcore.runs.ray_actors import RayActors, RayWorkers
from interpcore.runs.sweeps import CellError, sweep

__all__ = [
    "Artifacts",
    "Backend",
    "Cell",
    "CellError",
    "Cells",
    "Checkpoint",
    "Difference",
    "InProcess",
    "Ledger",
    "LocalProcesses",
    "Progress",
    "RayActors",
    "RayWorkers",
    "Refused",
    "Row",
    "RunCard",
    "RunError",
    "RunFolder",
    "atomic_path",
    "canonical_json",
    "cell_seed",
    "checkpointed",
    "compare",
    "current_versions",
    "is_run",
    "plain",
    "read_bytes",
    "read_card",
    "read_json",
    "read_metadata",
    "read_tensors",
    "run_cell",
    "same_weights",
    "sweep",
    "tensors_hash",
    "tokenizer_hash",
    "write_bytes",
    "write_json",
    "write_tensors",
]
