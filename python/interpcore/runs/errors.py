"""The errors that `interpcore.runs` raises about what is on disk or in a sweep."""


class RunError(Exception):
    """A run folder, artifact, ledger or sweep is not as it must be; the message says what to do."""
