"""One run at a time on an output folder."""

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from morphem.data import layout
from morphem.errors import DataError

LOCK = ".ingest.lock"
_UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.EINVAL, errno.ENOLCK)


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Keep other runs away from an output folder; the lock of a run that was killed is taken over.

    The file system holds the lock, which ends with the process that has it. On a file system that has no locks, the
    process that is named in the file counts as the owner for as long as it lives.

    Args:
        root: Folder of the shard set; made if it does not exist.

    Raises:
        DataError: If another run is writing into the folder, or it cannot be written.
    """
    path = root / LOCK
    with layout.writing(root):
        root.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is still locked, so that nobody's new lock is deleted
        os.close(descriptor)


def _acquire(path: Path) -> int:
    """Open and lock the file, and write into it who has it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _lock(descriptor):
                _refuse_living(path, descriptor)
            if _is_current(path, descriptor):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps({"host": socket.gethostname(), "process": os.getpid()}).encode(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its owner deleted it between opening and locking; the next file is the one


def _lock(descriptor: int) -> bool:
    """Lock a file, or return False where the file system has no locks.

    Raises:
        DataError: If somebody else has it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as fault:
        raise DataError(_taken(descriptor, "wait until it is done")) from fault
    except OSError as fault:
        if fault.errno in _UNSUPPORTED:
            return False
        raise
    return True


def _refuse_living(path: Path, descriptor: int) -> None:
    owner = _owner(descriptor)
    if owner is None or (owner["host"] == socket.gethostname() and not _lives(int(owner["process"]))):
        return
    raise DataError(_taken(descriptor, f"wait until it is done, or delete '{path}' if it was killed"))


def _owner(descriptor: int) -> dict[str, str] | None:
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
        return {"host": str(owner["host"]), "process": str(int(owner["process"]))}
    except (ValueError, TypeError, KeyError):  # empty: it was made a moment ago
        return None


def _taken(descriptor: int, remedy: str) -> str:
    owner = _owner(descriptor) or {"host": "an unknown host", "process": "unknown"}
    return (
        f"another run of `morphem ingest` writes into this folder (process {owner['process']} on {owner['host']}); "
        f"{remedy}."
    )


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is somebody else's
        return True
    return True


def _is_current(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
