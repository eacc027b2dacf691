import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from morphem.errors import ConfigError, DataError
from morphem.ingest import IngestSettings, ingest, workers
from morphem.sources.base import Source
from tests.ingest.studies import DELAY, LOG, NamedStudy, files_of, finished_parts, images_read, wait_for_parts

SETTINGS = IngestSettings(part_images=2, max_shard_images=9)
N_IMAGES = 40

RUN = """
import sys
from tests.ingest.studies import NamedStudy
from tests.ingest.test_workers import N_IMAGES, SETTINGS
from morphem.ingest import ingest, workers
workers.ALONE_SECONDS = 0
ingest([NamedStudy(n_images=N_IMAGES)], sys.argv[1], SETTINGS, workers=int(sys.argv[2]))
"""


class Deadly(NamedStudy):
    """Kills the process that reads it."""

    def load(self, image_id: str):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("undisturbed")
    ingest([NamedStudy(n_images=N_IMAGES)], root, SETTINGS)
    return files_of(root)


@pytest.fixture
def processes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share out all parts, among new processes: those of an earlier test do not know this one's variables."""
    from joblib.externals.loky import get_reusable_executor

    monkeypatch.setattr(workers, "ALONE_SECONDS", 0)
    get_reusable_executor().shutdown(wait=True)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Reading takes a while, and is noted in a file."""
    monkeypatch.setenv(DELAY, "0.05")
    monkeypatch.setenv(LOG, str(tmp_path / "log"))
    return tmp_path / "log"


def in_a_process(root: Path, n_workers: int) -> subprocess.Popen[str]:
    """Start a run in a process group of its own."""
    words = [sys.executable, "-c", RUN, str(root), str(n_workers)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def test_wrong_crews_are_refused() -> None:
    with pytest.raises(ConfigError, match="workers is 0"):
        workers.Crew(0)


@pytest.mark.slow
@pytest.mark.usefixtures("processes_at_once")
def test_two_processes_write_the_same_bytes_as_one(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    ingest([NamedStudy(n_images=N_IMAGES)], tmp_path, SETTINGS, workers=2)
    assert files_of(tmp_path) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("n_workers", [1, 2])
def test_a_run_that_is_killed_goes_on_and_gives_the_same_bytes(
    tmp_path: Path, undisturbed: dict[str, bytes], slow: Path, n_workers: int
) -> None:
    root = tmp_path / "out"
    for count in (4, 9):  # killed twice
        process = in_a_process(root, n_workers)
        wait_for_parts(root, count)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert sorted(path.name for path in root.iterdir()) == [".incoming", ".ingest.lock"]
    done = len(finished_parts(root))
    assert 9 <= done < 20
    ingest([NamedStudy(n_images=N_IMAGES)], root, SETTINGS)
    assert files_of(root) == undisturbed
    read = images_read(slow)
    assert len(set(read)) == N_IMAGES
    assert len(read) <= N_IMAGES + 2 * 2 * n_workers  # again only what was being read when it was killed


@pytest.mark.slow
@pytest.mark.usefixtures("processes_at_once")
def test_a_killed_worker_process_costs_nothing_but_its_part(
    tmp_path: Path, undisturbed: dict[str, bytes], slow: Path
) -> None:
    killed: list[int] = []

    def kill_one() -> None:
        wait_for_parts(tmp_path / "out", 3)
        killed.append(int(slow.read_text().split()[-1]))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    ingest([NamedStudy(n_images=N_IMAGES)], tmp_path / "out", SETTINGS, workers=2)
    killer.join()
    assert killed
    assert killed[0] != os.getpid()
    assert files_of(tmp_path / "out") == undisturbed


@pytest.mark.slow
@pytest.mark.usefixtures("processes_at_once")
def test_workers_that_always_die_end_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"killed 3 times without finishing a part.*fewer --workers"):
        ingest([Deadly()], tmp_path, SETTINGS, workers=2)


@pytest.mark.slow
@pytest.mark.parametrize("n_workers", [1, 2])
def test_ctrl_c_ends_all_processes_and_the_same_command_goes_on(
    tmp_path: Path, undisturbed: dict[str, bytes], slow: Path, n_workers: int
) -> None:
    process = in_a_process(tmp_path / "out", n_workers)
    wait_for_parts(tmp_path / "out", 4)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    _, said = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in said
    read = len(images_read(slow))
    time.sleep(0.5)
    assert len(images_read(slow)) == read, "a worker went on"
    assert not (tmp_path / "out" / ".ingest.lock").exists()
    ingest([NamedStudy(n_images=N_IMAGES)], tmp_path / "out", SETTINGS)
    assert files_of(tmp_path / "out") == undisturbed


@pytest.fixture
def cluster(slow: Path):
    """Two Dask workers on this machine, which see the variables that slow reading down."""
    from dask.distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1") as running:
        yield running


@pytest.mark.slow
def test_a_dask_worker_that_is_killed_in_the_middle_loses_and_doubles_nothing(
    tmp_path: Path, undisturbed: dict[str, bytes], cluster, slow: Path
) -> None:
    killed: list[int] = []

    def kill_one() -> None:
        wait_for_parts(tmp_path / "out", 3)
        killed.append(cluster.workers[0].process.pid)
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    source: Source = NamedStudy(n_images=N_IMAGES)
    ingest([source], tmp_path / "out", SETTINGS, dask=cluster.scheduler_address)
    killer.join()
    assert killed
    assert killed[0] != os.getpid()
    assert files_of(tmp_path / "out") == undisturbed
    read = images_read(slow)
    assert N_IMAGES <= len(read) <= N_IMAGES + 8


@pytest.mark.slow
def test_dask_workers_that_always_die_end_in_a_sentence(tmp_path: Path, cluster) -> None:
    with pytest.raises(DataError, match=r"workers of the cluster at .* were killed again and again by one part"):
        ingest([Deadly()], tmp_path, SETTINGS, dask=cluster.scheduler_address)


@pytest.mark.slow
def test_an_address_without_a_scheduler_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "2s")
    with pytest.raises(DataError, match=r"no Dask scheduler at 'tcp://127\.0\.0\.1:9'"):
        ingest([NamedStudy()], tmp_path, SETTINGS, dask="tcp://127.0.0.1:9")
