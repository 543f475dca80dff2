"""The errors that are told in a sentence. They lie below every floor, as all of them raise some.

What ends a command and is none of these (nor an OSError or ImportError) is a defect: it keeps its traceback.
A function's contract with its caller (shapes, a cache of another model) is a plain ValueError.
"""


class InterpcoreError(Exception):
    """The root: its message is a sentence for the user, saying what, where and what to do."""


class Refused(InterpcoreError, ValueError):
    """What the user gave cannot be used: an option, a name, a text, a file's content."""


class RunError(InterpcoreError):
    """What a run stands on is not as it must be: a folder, artifact, ledger, worker, or the memory."""


class Unavailable(InterpcoreError, RuntimeError):
    """What was asked for cannot run here: a backend or an instruction set."""
