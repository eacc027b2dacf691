"""What all tests share: real data where it is present, and a closed network."""

import os
import socket
from pathlib import Path

import pytest

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
        if host is not None and host not in {"127.0.0.1", "::1", "localhost", "0.0.0.0"} and not str(host).startswith("127."):
            raise OSError(f"the tests have no network; something tried to reach {host}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)
