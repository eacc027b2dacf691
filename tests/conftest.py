"""What all tests share: real data where it is present, and a closed network."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

# One thread per process: the default run has one test process per core, and small tensors do not gain from threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(os.environ.get("MORPHEM_TEST_DATA", Path(__file__).resolve().parents[2] / "shared"))


def _folder(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"needs the folder {folder} (set MORPHEM_TEST_DATA to the folder that holds '{name}')")
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Small real studies, one folder each, with a metadata.csv."""
    return _folder("data")


@pytest.fixture(scope="session")
def golden() -> Path:
    """Checkpoints and outputs of published models' own code."""
    return _folder("golden")


@pytest.fixture(autouse=True)
def closed_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse connections to anything but this machine, except in tests marked `network`."""
    if request.node.get_closest_marker("network"):
        return
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else None
        if host is not None and host not in {"::1", "localhost", "0.0.0.0"} and not str(host).startswith("127."):
            raise OSError(f"the tests have no network; something tried to reach {host}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)


TINY_RUN = """\
trainer:
  accelerator: cpu
  devices: 1
  max_epochs: 2
  precision: 32-true
  num_sanity_val_steps: 0
  enable_progress_bar: false
  log_every_n_steps: 1
  logger:
    class_path: CSVLogger
    init_args: {{save_dir: {folder}, name: run}}
  callbacks:
    - class_path: ModelCheckpoint
      init_args:
        every_n_train_steps: 1
        save_last: true
        filename: "step{{step}}"
        auto_insert_metric_name: false
    - class_path: GracefulStop
model:
  class_path: dino
  init_args:
    n_prototypes: 64
    head_hidden_dim: 32
    head_bottleneck_dim: 16
    warmup_epochs: 0
    lr: 1.0e-3
    encoder:
      class_path: Encoder
      init_args:
        input_size_px: 32
        channels:
          class_path: bag_of_channels
          init_args:
            backbone:
              class_path: vit
              init_args: {{name: test_vit, drop_path_rate: 0.1}}
        normalizer:
          class_path: SelfNormalize
          init_args: {{saturation_noise: true}}
    views:
      class_path: MultiCrop
      init_args:
        recipes:
          - {{count: 2, size_px: 32, area: [0.4, 1.0]}}
          - {{count: 2, size_px: 16, area: [0.05, 0.4]}}
data:
  root: {root}
  batch_size: 4
  unit: plane
  num_workers: {workers}
"""


@pytest.fixture(scope="session")
def sample_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the sample data of this test session lie (the user's own cache is left alone)."""
    folder = Path(os.environ.get("MORPHEM_TEST_CACHE") or tmp_path_factory.getbasetemp().parent / "morphem-cache")
    os.environ["MORPHEM_CACHE"] = str(folder)
    return folder


@pytest.fixture
def tiny_run(tmp_path: Path, sample_cache: Path) -> Callable[..., str]:
    """Write the config of a run that takes seconds, and return its path."""

    def write(*, root: str = "sample://tiny", workers: int = 0, **replaced: str) -> str:
        text = TINY_RUN.format(folder=tmp_path / "runs", root=root, workers=workers)
        for old, new in replaced.items():
            assert old in text, old
            text = text.replace(old, new)
        path = tmp_path / "tiny.yaml"
        path.write_text(text)
        return str(path)

    return write
