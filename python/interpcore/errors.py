"""The errors that are told in a sentence. They lie below every floor, as all of them raise some.

What ends a command and is none of these (nor an OSError or ImportError) is a defect: it keeps its traceback.
A function's contract with its caller (shapes, a cache of another model) is a plain ValueError.
"""

import difflib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class InterpcoreError(Exception):
    """The root: its message is a sentence for the user, saying what, where and what to do."""


class Refused(InterpcoreError, ValueError):
    """What the user gave cannot be used: an option, a name, a text, a file's content."""


class RunError(InterpcoreError):
    """What a run stands on is not as it must be: a folder, artifact, ledger, worker, or the memory."""


class Unavailable(InterpcoreError, RuntimeError):
    """What was asked for cannot run here: a backend or an instruction set."""


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """The question whether a known name was meant, to stand behind a sentence that refuses one; "" where none
    is like it."""
    like = difflib.get_close_matches(str(name), [str(each) for each in known], n=1)
    return f" Did you mean {like[0]}?" if like else ""


@contextmanager
def exit_on_error(program: str) -> Iterator[None]:
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
