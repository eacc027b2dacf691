"""Downloads survive what networks do, and what arrives is the file that was published or nothing."""

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from morphem.errors import WeightsError
from morphem.zoo import http
from tests.zoo.servers import Behaviour, serving

DATA = np.random.default_rng(0).bytes(300_000)
HASH = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def behaviour() -> Behaviour:
    return Behaviour(DATA)


@pytest.fixture
def url(behaviour: Behaviour) -> Iterator[str]:
    with serving(behaviour) as address:
        yield f"{address}/files/weights.pth?download=1"


def get(url: str, folder: Path, sha256: str | None = HASH) -> Path:
    target = folder / "weights.pth"
    assert http.download(url, target, sha256=sha256, progress=False, pause_s=0.01) == HASH
    assert target.read_bytes() == DATA
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".lock") == ["weights.pth"]
    return target


def test_a_file_is_fetched_and_hashed(url: str, behaviour: Behaviour, tmp_path: Path) -> None:
    get(url, tmp_path)
    assert behaviour.requests == [None]


def test_a_connection_that_is_cut_again_and_again_goes_on_where_it_was(
    url: str, behaviour: Behaviour, tmp_path: Path
) -> None:
    behaviour.cut_after = [100_000, 50_000, 1, 20_000, 7, 7, 7]
    get(url, tmp_path)
    starts = [0, 100_000, 150_000, 150_001, 170_001, 170_008, 170_015, 170_022]
    assert behaviour.requests == [None, *(f"bytes={start}-" for start in starts[1:])]


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(url: str, behaviour: Behaviour, tmp_path: Path) -> None:
    behaviour.cut_after, behaviour.status = [90_000], []
    with pytest.raises(
        WeightsError, match=r"503 .* 90000 bytes are kept in .*weights\.pth\.part; the next try goes on"
    ):
        cut_then_down(url, behaviour, tmp_path)
    get(url, tmp_path)
    assert behaviour.requests[-1] == "bytes=90000-"


def cut_then_down(url: str, behaviour: Behaviour, folder: Path) -> None:
    original = http._transfer

    def transfer(*args: object) -> None:
        try:
            original(*args)
        finally:
            behaviour.status = [503]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http, "_transfer", transfer)
        http.download(url, folder / "weights.pth", sha256=HASH, progress=False, pause_s=0.001)


def test_a_server_without_ranges_sends_all_of_it_again(url: str, behaviour: Behaviour, tmp_path: Path) -> None:
    behaviour.cut_after, behaviour.ranges = [100_000], False
    get(url, tmp_path)
    assert behaviour.requests == [None, "bytes=100000-"]


def test_a_file_that_changed_on_the_server_is_not_glued_to_its_old_half(
    url: str, behaviour: Behaviour, tmp_path: Path
) -> None:
    (tmp_path / "weights.pth.part").write_bytes(b"x" * 1000)
    (tmp_path / "weights.pth.part.json").write_text(f'{{"url": "{url}", "etag": "\\"old\\"", "modified": ""}}')
    get(url, tmp_path, None)
    assert behaviour.requests == ["bytes=1000-"]


@pytest.mark.parametrize(("tags", "sha256"), [(False, None), (True, None), (False, HASH)])
def test_a_half_is_only_used_if_something_vouches_for_it(
    url: str, behaviour: Behaviour, tmp_path: Path, tags: bool, sha256: str | None
) -> None:
    behaviour.cut_after, behaviour.tags = [100_000], tags
    get(url, tmp_path, sha256)
    assert behaviour.requests[1] == ("bytes=100000-" if tags or sha256 else None)


def test_a_whole_part_is_not_fetched_again(url: str, behaviour: Behaviour, tmp_path: Path) -> None:
    (tmp_path / "weights.pth.part").write_bytes(DATA)
    (tmp_path / "weights.pth.part.json").write_text(f'{{"url": "{url}"}}')
    get(url, tmp_path)
    assert behaviour.requests == ["bytes=300000-"]


def test_another_file_than_the_published_one_is_not_kept(url: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=rf"is not the file that was published \(SHA-256 {HASH}, expected 00"):
        http.download(url, tmp_path / "weights.pth", sha256="0" * 64, progress=False)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_a_damaged_part_is_dropped_and_the_next_try_is_clean(url: str, tmp_path: Path) -> None:
    (tmp_path / "weights.pth.part").write_bytes(b"x" * 1000)
    (tmp_path / "weights.pth.part.json").write_text(f'{{"url": "{url}"}}')
    with pytest.raises(WeightsError, match="is not the file that was published"):
        http.download(url, tmp_path / "weights.pth", sha256=HASH, progress=False)
    get(url, tmp_path)


def test_a_server_that_stumbles_is_asked_again(url: str, behaviour: Behaviour, tmp_path: Path) -> None:
    behaviour.status = [503, 429, 500]
    get(url, tmp_path)
    assert len(behaviour.requests) == 4


def test_a_file_that_is_not_there_is_not_asked_for_again(url: str, behaviour: Behaviour, tmp_path: Path) -> None:
    behaviour.status = [404]
    with pytest.raises(WeightsError, match="the server says 404 Not Found"):
        http.download(url, tmp_path / "weights.pth", progress=False)
    assert len(behaviour.requests) == 1


def test_a_server_that_is_gone_is_named_after_a_few_tries(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"http://127\.0\.0\.1:1/x cannot be fetched: .*refused"):
        http.download("http://127.0.0.1:1/x", tmp_path / "x", progress=False, pause_s=0.001)


@pytest.mark.parametrize("url", ["http://example.org/x", "ftp://example.org/x", "file:///etc/passwd"])
def test_only_https_is_fetched_from_elsewhere(url: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="https only"):
        http.download(url, tmp_path / "x")


def test_processes_that_want_one_file_download_it_once(url: str, behaviour: Behaviour, tmp_path: Path) -> None:
    threads = [threading.Thread(target=get, args=(url, tmp_path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert behaviour.requests == [None]


def test_a_bar_shows_how_far_it_is(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    http.download(url, tmp_path / "weights.pth")
    assert "weights.pth: 100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://zenodo.org/records/1/files/uni%20dino.pth?download=1", "uni dino.pth"),
        ("https://zenodo.org/api/records/1/files/a.pth/content", "a.pth"),
        ("https://github.com/a/b/releases/download/v1.0.0/c.ckpt", "c.ckpt"),
    ],
)
def test_the_name_of_a_file_is_read_off_its_address(url: str, name: str) -> None:
    assert http.file_name(url) == name
