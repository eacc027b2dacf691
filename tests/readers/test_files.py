import io
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from morphem.errors import DataError
from morphem.readers.files import Files, FolderFiles, RemoteFiles, ZipFiles, open_files

CONTENT = {"a.txt": b"0123456789", "plate 1/B02.f1+é.tif": b"pixels", "plate 1/deep/c..txt": b"c"}


def folder(tmp_path: Path) -> str:
    for name, data in CONTENT.items():
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(data)
    return str(tmp_path / "data")


def zipped(tmp_path: Path) -> str:
    with zipfile.ZipFile(tmp_path / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in CONTENT.items():
            archive.writestr(name, data)
        archive.mkdir("plate 1/empty")
    return str(tmp_path / "data.zip")


@pytest.fixture
def bucket() -> Iterator[fsspec.AbstractFileSystem]:
    store = fsspec.filesystem("memory")
    yield store
    store.rm("/", recursive=True)


def remote(tmp_path: Path) -> str:
    store = fsspec.filesystem("memory")
    for name, data in CONTENT.items():
        store.pipe(f"/bucket/data/{name}", data)
    return "memory://bucket/data"


@pytest.fixture(params=[folder, zipped, remote])
def files(request: pytest.FixtureRequest, tmp_path: Path, bucket: object) -> Files:
    write: Callable[[Path], str] = request.param
    return open_files(write(tmp_path))


def test_files_are_listed_and_read_alike_wherever_they_lie(files: Files) -> None:
    assert files.names() == sorted(CONTENT)
    for name, data in CONTENT.items():
        assert files.read(name) == data
        assert files.size(name) == len(data)
        with files.open(name) as file:
            assert file.seek(1) == 1
            assert file.read() == data[1:]
    assert files.read("a.txt", 3, 4) == b"3456"
    assert files.has("a.txt")
    assert not files.has("b.txt")
    assert files.has_folder("plate 1")
    assert not files.has_folder("plate")


def test_a_missing_file_is_named(files: Files) -> None:
    for call in (files.read, files.size, files.open):
        with pytest.raises(DataError, match=r"data.*/gone\.tif' is missing; restore it"):
            call("gone.tif")


@pytest.mark.parametrize("name", ["../secret", "plate 1/../../secret", "/etc/passwd", "C:/secret", "", ".", "a\0b"])
def test_a_name_that_leaves_the_location_is_refused(files: Files, name: str) -> None:
    for call in (files.read, files.size, files.open):
        with pytest.raises(DataError, match="leads out of"):
            call(name)


def test_dots_inside_the_location_are_followed(files: Files) -> None:
    assert files.read("./plate 1/../a.txt") == CONTENT["a.txt"]


def test_files_can_be_sent_to_another_process_and_stay_small(files: Files) -> None:
    files.names()
    files.read("a.txt")
    sent = pickle.dumps(files)
    assert b"plate 1" not in sent
    assert pickle.loads(sent).read("a.txt") == CONTENT["a.txt"]


def test_what_operating_systems_leave_behind_is_not_listed(tmp_path: Path) -> None:
    for name in (".DS_Store", "Thumbs.db", "._a.tif", "__MACOSX/a.tif", "a.tif", ".hidden.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert FolderFiles(tmp_path).names() == [".hidden.tif", "a.tif"]


def test_a_link_inside_the_folder_is_followed_and_one_that_leads_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "in" / "a").write_bytes(b"a")
    (tmp_path / "in" / "good").symlink_to("a")
    (tmp_path / "in" / "bad").symlink_to("../secret")
    (tmp_path / "in" / "up").symlink_to("..", target_is_directory=True)
    files = FolderFiles(tmp_path / "in")
    assert files.read("good") == b"a"
    for name in ("bad", "up/secret"):
        with pytest.raises(DataError, match=f"'{name}' leads out of"):
            files.read(name)


def test_a_folder_that_is_a_link_itself_is_read(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_bytes(b"a")
    (tmp_path / "link").symlink_to("real", target_is_directory=True)
    assert FolderFiles(tmp_path / "link").read("a") == b"a"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").touch(mode=0)
    with pytest.raises(DataError, match="a' cannot be read: Permission denied"):
        FolderFiles(tmp_path).open("a")


@pytest.mark.parametrize("name", ["../evil.png", "/abs.png", "C:\\evil.png"])
def test_a_zip_member_with_a_hostile_name_is_refused_and_the_others_are_read(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr(name, b"evil")
        archive.writestr("good.png", b"good")
    files = open_files(str(tmp_path / "z.zip"))
    assert files.read("good.png") == b"good"
    with pytest.raises(DataError, match="leads out of"):
        files.read(name.replace("\\", "/"))


def test_a_zip_with_backslashes_between_folders_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("plate\\a.png", b"a")
    files = open_files(str(tmp_path / "z.zip"))
    assert files.names() == ["plate/a.png"]
    assert files.read("plate/a.png") == b"a"


def test_a_zip_with_two_members_of_one_name_does_not_guess(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("a", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a", b"2")
    with pytest.raises(DataError, match="has 2 members named 'a'"):
        open_files(str(tmp_path / "z.zip")).read("a")


def test_an_encrypted_zip_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = Path(zipped(tmp_path))
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"data\.zip' is encrypted \(for example 'a\.txt'\); unpack it"):
        ZipFiles(str(path))


def test_a_damaged_member_of_a_zip_is_named(tmp_path: Path) -> None:
    path = Path(zipped(tmp_path))
    data = bytearray(path.read_bytes())
    data[data.index(b"a.txt") + 8] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"data\.zip/a\.txt' cannot be read"):
        ZipFiles(str(path)).read("a.txt")


def test_a_zip_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "z.zip").write_bytes(b"<html>")
    with pytest.raises(DataError, match="cannot be read as a zip"):
        open_files(str(tmp_path / "z.zip"))
    with pytest.raises(DataError, match="There is no file"):
        open_files(str(tmp_path / "gone.zip"))


def test_a_zip_in_an_object_store_is_read_in_place(tmp_path: Path, bucket: fsspec.AbstractFileSystem) -> None:
    bucket.pipe("/bucket/data.zip", Path(zipped(tmp_path)).read_bytes())
    files = open_files("memory://bucket/data.zip")
    assert files.names() == sorted(CONTENT)
    assert pickle.loads(pickle.dumps(files)).read("a.txt") == CONTENT["a.txt"]


def test_one_file_is_a_location_whose_neighbours_can_be_read(tmp_path: Path) -> None:
    files = open_files(folder(tmp_path) + "/a.txt")
    assert files.names() == ["a.txt"]
    assert files.read("plate 1/deep/c..txt") == b"c"


def test_a_location_that_is_nothing_is_refused(tmp_path: Path, bucket: object) -> None:
    with pytest.raises(DataError, match="There is no folder"):
        open_files(str(tmp_path / "gone"))
    with pytest.raises(DataError, match="There is nothing at 'memory://bucket/gone'"):
        open_files("memory://bucket/gone")
    with pytest.raises(DataError, match="'nonsense://x' cannot be opened"):
        open_files("nonsense://x")


def test_public_buckets_need_no_credentials_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Store:
        def __init__(self, protocol: str, **options: object) -> None:
            asked.append((protocol, options))

        def _strip_protocol(self, path: str) -> str:
            return path.partition("://")[2]

        def find(self, path: str) -> list[str]:
            return [f"{path}/a"]

    asked: list[tuple[str, dict[str, object]]] = []
    monkeypatch.setattr(fsspec, "filesystem", Store)
    for location, options in (("s3://b", None), ("s3://b", {"anon": False}), ("gs://b", None)):
        assert RemoteFiles(location, options).names() == ["a"]
    assert asked[::2] == [("s3", {"anon": True}), ("s3", {"anon": False}), ("gs", {})]


def test_local_paths_are_given_for_folders_alone(tmp_path: Path, bucket: object) -> None:
    assert open_files(folder(tmp_path)).local("a.txt") == (tmp_path / "data" / "a.txt").resolve()
    assert open_files(zipped(tmp_path)).local("a.txt") is None
    assert isinstance(open_files(zipped(tmp_path)).open("a.txt"), io.BufferedIOBase)
