"""The libraries that a group of commands needs beyond the package's own."""

from __future__ import annotations

import re
from importlib.metadata import requires
from importlib.util import find_spec

from interpcore._version import DISTRIBUTION


def require(extra: str) -> None:
    """Refuses to begin work whose tables and figures could not be written.

    Args:
        extra: the extra of the package that names the libraries, such as "lre".
    Raises: ModuleNotFoundError with the libraries that are not installed.
    """
    listed = [r for r in requires(DISTRIBUTION) or () if re.search(rf"extra == ['\"]{extra}['\"]", r)]
    named = [re.split(r"[^\w.-]", r, maxsplit=1)[0] for r in listed]
    missing = [name for name in named if find_spec(name.replace("-", "_")) is None]
    if missing:
        raise ModuleNotFoundError(
            f"{extra} needs {', '.join(missing)}, which this Python lacks; pip install {' '.join(missing)}."
        )
