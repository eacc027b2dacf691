import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from morphem.errors import DataError
from morphem.ingest.lock import LOCK, locked

HOLD = """
import sys, time
from pathlib import Path
from morphem.ingest.lock import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_and_the_first_one_named(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(DataError, match=rf"another run .*process {os.getpid()} on {socket.gethostname()}"),
        locked(tmp_path),
    ):
        pytest.fail("two runs hold the lock")


def test_the_lock_leaves_nothing_behind(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path / "new"):
            assert (tmp_path / "new" / LOCK).exists()
        assert not list((tmp_path / "new").iterdir())


@pytest.mark.slow
def test_the_lock_of_a_killed_run_is_taken_over(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(DataError, match=f"process {other.pid}"), locked(tmp_path):
            pytest.fail("two runs hold the lock")
        other.kill()
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize(("host", "process", "free"), [(None, 2**22 + 1, True), (None, 1, False), ("other", 1, False)])
def test_without_locks_of_the_file_system_the_owner_counts_while_it_may_live(
    tmp_path: Path, host: str | None, process: int, free: bool
) -> None:
    owner = {"host": host or socket.gethostname(), "process": process}
    (tmp_path / LOCK).write_text(json.dumps(owner))
    if free:
        with locked(tmp_path):
            return
    with pytest.raises(DataError, match=r"or delete '.*\.ingest\.lock' if it was killed"), locked(tmp_path):
        pytest.fail("two runs hold the lock")
    assert json.loads((tmp_path / LOCK).read_text()) == owner
