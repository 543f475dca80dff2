"""interpcore: a compute core for interpretability experiments on transformer language models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from interpcore._version import __version__ as __version__

if TYPE_CHECKING:
    from interpcore.model.jacobians import JacobianOperator as JacobianOperator
    from interpcore.model.jacobians import jacobians as jacobians
    from interpcore.model.load import load as load

# Public names and where they live; imported on first use, so that `import interpcore` stays light.
_PUBLIC = {
    "JacobianOperator": "interpcore.model.jacobians",
    "jacobians": "interpcore.model.jacobians",
    "load": "interpcore.model.load",
}
_FOLDERS = (
    "ops",
    "runs",
    "stats",
    "model",
    "data",
    "agent",
    "generalize",
    "lre",
    "lens",
    "circuits",
    "neurons",
)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    if name in _FOLDERS:
        return import_module(f"interpcore.{name}")
    raise AttributeError(f"module 'interpcore' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC, *_FOLDERS})
