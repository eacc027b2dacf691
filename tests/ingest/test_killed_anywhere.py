"""A run that is killed before any one of its operations on files goes on and gives the same bytes."""

import subprocess
import sys
from pathlib import Path

import pytest

# Each run is a process of its own, forked before anything has started a thread, that ends without any cleaning up.
DRIVER = """
import os, sys
from pathlib import Path
import morphem.curation.selection, morphem.data.shards, morphem.sources.base, pandas, pyarrow.parquet
from morphem.ingest import IngestSettings, ingest
from tests.ingest.studies import NamedStudy, files_of

root, overwrite = Path(sys.argv[1]), sys.argv[2] == "overwrite"
SETTINGS = IngestSettings(part_images=3, max_shard_images=2, overwrite=overwrite)
OPERATIONS = ("replace", "rename", "unlink", "rmdir", "mkdir", "fsync", "symlink")

def run(out, settings, die_at=None):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    count = 0
    def counted(real):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == die_at:
                os._exit(9)
            return real(*args, **kwargs)
        return call
    if die_at is not None:
        for name in OPERATIONS:
            setattr(os, name, counted(getattr(os, name)))
    try:
        ingest([NamedStudy("b", n_images=5), NamedStudy("a", n_images=4, bad=())], out, settings)
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

def start(name):
    out = root / name
    if overwrite:  # with one more shard than the new ones
        assert run(out, IngestSettings(part_images=2, max_shard_images=1)) == 0
    return out

assert run(start("whole"), SETTINGS) == 0
expected = files_of(root / "whole")
step, kills = 1, 0
while True:
    out = start(str(step))
    code = run(out, SETTINGS, step)
    if code == 0:
        break
    assert code == 9, (step, code)
    assert run(out, SETTINGS) == 0, f"operation {step}: it does not go on"
    found = files_of(out)
    assert found == expected, (f"operation {step}", sorted(found.keys() ^ expected.keys()))
    kills, step = kills + 1, step + int(sys.argv[3])
print(kills)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "stride", "least"), [("new", 1, 120), ("overwrite", 2, 60)])
def test_a_run_killed_before_any_operation_on_files_goes_on(tmp_path: Path, mode: str, stride: int, least: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(tmp_path), mode, str(stride)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[-1]) >= least
