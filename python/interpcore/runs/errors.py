"""How programs tell expected errors: in one sentence; defects keep their traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from interpcore.errors import InterpcoreError, Refused, RunError

__all__ = ["Refused", "RunError", "sentence", "told_in_a_sentence"]


@contextmanager
def told_in_a_sentence(program: str) -> Iterator[None]:
    """Ends the program with one sentence on standard error and status 1 where an expected error comes out.

    Any other error is a defect and passes through.

    Args:
        program: its name, in front of the sentence.
    """
    try:
        yield
    except (InterpcoreError, OSError, ImportError) as error:
        sys.stderr.write(f"{program}: {sentence(error)}\n")
        raise SystemExit(1) from None
    except SystemExit as end:
        if end.code == 130:  # Ctrl-C
            sys.stderr.write(f"{program}: stopped; what is finished is kept, and the same command goes on.\n")
        raise


def sentence(error: BaseException) -> str:
    """What an expected error says, with what to do where Python's own words leave that open."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"this needs {error.name}, which is not installed; pip install {error.name}."
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}; check the name, and that it may be read or written."
    return str(error)
