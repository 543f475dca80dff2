"""Locks that the operating system drops with their process, so that kill -9 leaves none behind."""

import errno
import fcntl
import hashlib
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from interpcore.errors import RunError

_SECONDS_TO_BEGIN = 600.0


def refuse_link(path: Path) -> None:
    """Refuses to take a symbolic link for one of a run's own files: it may lead to somebody's other file.

    Raises:
        RunError: it is one.
    """
    if path.is_symlink():
        raise RunError(
            f"{path} is a symbolic link, and a run's own files are never followed elsewhere; remove it, or "
            "copy what it leads to in its place"
        )


def _opened(path: Path) -> int:
    refuse_link(path)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)


class UseLock:
    """Who may use a folder: one exclusive user, or any number of shared ones.

    Args:
        path: the lock file, made if missing; it holds the last user's name for the message.
        shared: allow other shared users.
        what: how to name the locked thing in the error.

    Raises:
        RunError: another user holds it.
    """

    def __init__(self, path: Path, *, shared: bool, what: str) -> None:
        handle = _opened(path)
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            user = os.pread(handle, 200, 0).decode(errors="replace") or "another process"
            os.close(handle)
            raise RunError(
                f"{what} is in use by {user}; wait until it ends, or choose another folder"
            ) from error
        said = os.pread(handle, 200, 0)
        if said and not said.startswith(b"process "):  # such as another file's content, by a hard link
            os.close(handle)
            raise RunError(f"{path} holds something else than a lock; remove it from the folder")
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        self._handle: int | None = handle
        self._shared = shared

    def alone(self) -> bool:
        """Whether there is no other user now."""
        if not self._shared:
            return True
        assert self._handle is not None
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            fcntl.flock(self._handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return True

    def close(self) -> None:
        """Lets go; again is no harm."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


class Alive:
    """A lock file that says, to whoever finds what this process left, whether the process still lives.

    Args:
        path: the file, made.
    """

    def __init__(self, path: Path) -> None:
        new = path.with_name(f"{path.name}.new")
        self._handle = _opened(new)
        with suppress(OSError):  # where a file system has no locks, nobody takes the process for dead
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        new.rename(path)  # it is locked when it appears

    def __enter__(self) -> "Alive":
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._handle)

    @staticmethod
    def there(path: Path) -> bool:
        """Whether the process that made the file lives.

        Args:
            path: the file; where there is none, its folder may be so new that it will come.
        """
        try:
            handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            folder = path.parent
            return not folder.exists() or time.time() - folder.stat().st_mtime < _SECONDS_TO_BEGIN
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(handle)
        return False


class Claims:
    """Which process works on which cell: one byte-range lock per key in one file.

    Processes that sweep into the same folder share out the cells by it. It excludes other processes only, not
    other users in this one; a cell computed twice for that reason costs time and changes nothing, as the
    ledger keeps the first result.

    Args:
        path: the file, made if missing; None when there is nobody to share with, and every claim succeeds.
    """

    def __init__(self, path: Path | None) -> None:
        self._handle = None if path is None else _opened(path)

    def take(self, key: str) -> bool:
        """Claims a key; False when another process holds it."""
        if self._handle is None:
            return True
        try:
            fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _offset(key))
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise
        return True

    def release(self, key: str) -> None:
        """Gives a claimed key back."""
        if self._handle is not None:
            fcntl.lockf(self._handle, fcntl.LOCK_UN, 1, _offset(key))

    @contextmanager
    def hold(self, key: str) -> Iterator[None]:
        """Waits for a key and holds it for the block."""
        if self._handle is not None:
            fcntl.lockf(self._handle, fcntl.LOCK_EX, 1, _offset(key))
        try:
            yield
        finally:
            self.release(key)

    def close(self) -> None:
        """Gives everything back; again is no harm."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _offset(key: str) -> int:
    """A byte offset that stands for the key: 62 bits of its hash, which a signed file offset can hold."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 2
