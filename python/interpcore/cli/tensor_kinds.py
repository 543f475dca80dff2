"""What a file of tensors is, told by its header."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from interpcore.errors import InterpcoreError, Refused
from interpcore.runs.artifacts import read_metadata, read_tensors

Found = tuple[str, str]
"""What it is, and what it holds."""


def tensor_file(path: Path, model: str | None) -> Found:
    """A safetensors file: a lens, directions, an intervention, an operator, scores, or plain tensors."""
    from interpcore.circuits.files import load_scores
    from interpcore.lens.lens import Lens
    from interpcore.lens.options import KIND as LENS
    from interpcore.lre.operator import Operator
    from interpcore.steering.directions import Directions
    from interpcore.steering.files import KIND as EDIT
    from interpcore.steering.files import read_own as read_edit
    from interpcore.steering.options import KIND as DIRECTIONS

    header = read_metadata(path)
    kind = header.get("kind")
    if kind == LENS:
        return _lens(Lens.load(path))
    if kind == DIRECTIONS:
        found = Directions.load(path)
        return "steering directions", ", ".join(
            f"{site} {tuple(v.shape)}" for site, v in found.vectors.items()
        )
    if kind == EDIT:
        return "intervention", f"{len(read_edit(path).parts)} parts"
    if "depths" in header:
        operator, _ = Operator.load(path)
        return "LRE operator", f"from {len(operator.depths)} depths, d_model {operator.bias.shape[-1]}"
    if "interpcore" in header:
        return _scores(path, *load_scores(path))
    tensors, _ = read_tensors(path)
    return "tensors", ", ".join(f"{name} {tuple(each.shape)}" for name, each in list(tensors.items())[:4])


def torch_file(path: Path, model: str | None) -> Found:
    """A published lens, scores, or lm-eval's steering file."""
    from interpcore.circuits.files import load_scores
    from interpcore.lens.published import load_lens

    said = []
    for read in (lambda: _lens(load_lens(path)), lambda: _scores(path, *load_scores(path))):
        try:
            return read()
        except InterpcoreError as error:
            said.append(str(error))
    if model is not None:
        return steering_file(path, model)
    raise Refused(f"{' '.join(said)} A steering file is read with --model.")


def steering_file(path: Path, model: str | None) -> Found:
    """A steering file of another library, which only a model gives its shapes."""
    import interpcore
    from interpcore.steering.files import load

    if model is None:
        raise Refused(f"{path}: to read a steering file, say of which --model.")
    return "steering file", f"{len(load(path, interpcore.load(model)).parts)} parts"


def _lens(lens: Any) -> Found:
    return "Jacobian lens", f"{len(lens.depths)} depths to depth {lens.target_depth}, of {lens.count} prompts"


def _scores(path: Path, scores: Any, circuit: Any) -> Found:
    said = " ".join(part for part in (scores.model, scores.task, scores.method) if part)
    return "scores", f"{said}: {scores.size} {scores.level}s, {circuit.n_edges} edges in the circuit"


def mib_scores(path: Path, model: str | None) -> Found:
    """Scores in the form of the MIB benchmark."""
    from interpcore.circuits.files import load_scores

    return _scores(path, *load_scores(path))
