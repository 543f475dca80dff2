"""interpcore: a compute core for interpretability experiments on transformer language models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interpcore.model.jacobians import JacobianOperator as JacobianOperator
    from interpcore.model.jacobians import jacobians as jacobians
    from interpcore.model.load import load as load

__version__ = "0.1.0"

# Public names and where they live; imported on first use, so that `import interpcore` stays light.
_PUBLIC = {
    "JacobianOperator": "interpcore.model.jacobians",
    "jacobians": "interpcore.model.jacobians",
    "load": "interpcore.model.load",
}


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    if name in ("model", "ops", "runs", "data"):
        return import_module(f"interpcore.{name}")
    raise AttributeError(f"module 'interpcore' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
