"""What a package shows at its door, imported on first use, so that help and options never load torch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any


def shown(package: str, face: Mapping[str, str], name: str) -> Any:
    """A package's attribute, for its `__getattr__`.

    Args:
        package: the package's `__name__`.
        face: module below the package -> the names it shows, with spaces between them.
        name: what is asked for.
    Raises: AttributeError for what is not shown.
    """
    for module, names in face.items():
        if name in names.split():
            return getattr(import_module(f"{package}.{module}"), name)
    raise AttributeError(f"module {package!r} has no attribute {name!r}")


def names(face: Mapping[str, str]) -> list[str]:
    """All names that a face shows, sorted: the package's `__all__`."""
    return sorted(name for shown_there in face.values() for name in shown_there.split())
