"""The files of a study, wherever they lie: in a folder, a zip or an object store. Nothing is unpacked to disk."""

import io
import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from morphem.errors import DataError

_LITTER = (".DS_Store", "Thumbs.db", "desktop.ini")  # operating systems leave these behind
_ENCRYPTED = 0x1  # bit of a zip member's flags


class Files(ABC):
    """Files of one location by name; names use '/' and are relative to it. Can be pickled, and opens again lazily.

    Attributes:
        location: As the user gave it.
    """

    location: str

    @cached_property
    def _names(self) -> list[str]:
        return sorted(name for name in self._listed() if not _is_litter(name))

    def names(self) -> list[str]:
        """Return the names of all files, sorted; looked up once. Files that operating systems add are left out."""
        return self._names

    @cached_property
    def known(self) -> frozenset[str]:
        """The names as a set."""
        return frozenset(self._names)

    def describe(self, name: str) -> str:
        """Return how to call a file in a message: location and name."""
        return f"{self.location.rstrip('/')}/{name}"

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Read a file or a part of it.

        Args:
            name: A file's name.
            offset: First byte.
            length: Number of bytes; None reads to the end.

        Raises:
            DataError: If there is no such file, it cannot be read, or its name leaves the location.
        """
        with self.open(name) as file:
            try:
                file.seek(offset)
                return file.read(-1 if length is None else length)
            except (OSError, zipfile.BadZipFile, EOFError) as fault:
                raise DataError(f"'{self.describe(name)}' cannot be read: {fault}.") from fault

    @abstractmethod
    def open(self, name: str) -> BinaryIO:
        """Open a file for reading; the result can seek and is to be closed.

        Raises:
            DataError: If there is no such file, it cannot be read, or its name leaves the location.
        """

    @abstractmethod
    def size(self, name: str) -> int:
        """Return the size of a file in bytes, unpacked.

        Raises:
            DataError: If there is no such file or its name leaves the location.
        """

    def local(self, name: str) -> Path | None:
        """Return the path of a file on this machine, or None where it has none of its own.

        Raises:
            DataError: If its name leaves the location.
        """
        return None

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return name in self.known

    def has_folder(self, name: str) -> bool:
        """Whether there is a folder of this name with a file in it."""
        return any(file.startswith(f"{name}/") for file in self.names())

    @abstractmethod
    def _listed(self) -> list[str]:
        """Names of all files in any order."""

    def _missing(self, name: str) -> DataError:
        return DataError(f"'{self.describe(name)}' is missing; restore it or take its rows out of the table.")

    def _checked(self, name: str) -> str:
        """Return the name with its dots resolved; one that leaves the location is refused."""
        parts: list[str] = []
        for part in name.split("/"):
            if part == ".." and not parts:
                raise self._outside(name)
            if part == "..":
                parts.pop()
            elif part not in ("", "."):
                parts.append(part)
        if name.startswith("/") or name[1:3] in (":/", ":\\") or not parts or "\0" in name:
            raise self._outside(name)
        return "/".join(parts)

    def _outside(self, name: str) -> DataError:
        return DataError(
            f"'{name}' leads out of '{self.location}'; name files relative to it, without '..' and links to elsewhere."
        )

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what can be looked up again, so that a part of a large study is small to send."""
        return {key: value for key, value in self.__dict__.items() if key not in ("_names", "known", "_archive", "_fs")}


class FolderFiles(Files):
    """Files of a folder on this machine.

    Args:
        folder: The folder.
        only: List this one file alone; others can still be read by name.

    Raises:
        DataError: If it is no folder.
    """

    def __init__(self, folder: str | Path, only: str | None = None) -> None:
        self.location = str(folder)
        self.root = Path(folder).resolve()
        self.only = only
        if not self.root.is_dir():
            raise DataError(f"There is no folder '{folder}'; give the folder of a study.")

    def _listed(self) -> list[str]:
        if self.only is not None:
            return [self.only]
        found = []
        for folder, folders, names in os.walk(self.root, onerror=self._refuse):
            folders.sort()
            inside = Path(folder).relative_to(self.root).as_posix()
            found += [name if inside == "." else f"{inside}/{name}" for name in names]
        return found

    def _refuse(self, fault: OSError) -> None:
        raise DataError(f"'{fault.filename}' cannot be listed: {fault.strerror}; allow reading it.") from fault

    def local(self, name: str) -> Path:
        """Return the path of a file; it need not exist.

        Raises:
            DataError: If its name or a link in it leads out of the folder.
        """
        path = self.root / self._checked(name)
        if not path.resolve().is_relative_to(self.root):
            raise self._outside(name)
        return path

    def has(self, name: str) -> bool:
        """Whether there is such a file; the folder is not listed for it."""
        return self.local(name).is_file()

    def has_folder(self, name: str) -> bool:
        """Whether there is a folder of this name; nothing is listed for it."""
        return self.local(name).is_dir()

    def open(self, name: str) -> BinaryIO:
        """Open a file; see `Files.open`."""
        path = self.local(name)
        try:
            return path.open("rb")
        except (FileNotFoundError, NotADirectoryError) as fault:
            raise self._missing(name) from fault
        except OSError as fault:
            raise DataError(f"'{path}' cannot be read: {fault.strerror}.") from fault

    def size(self, name: str) -> int:
        """Return the size of a file in bytes; see `Files.size`."""
        try:
            return self.local(name).stat().st_size
        except OSError as fault:
            raise self._missing(name) from fault


class ZipFiles(Files):
    """Members of a zip, read in place.

    Args:
        location: Path or address of the zip.
        storage_options: Of the object store, where it lies in one.

    Raises:
        DataError: If it is missing, no zip, or encrypted.
    """

    def __init__(self, location: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.location = location
        self._path = location if "://" in location else str(Path(location).resolve())
        self._options = dict(storage_options or {})
        locked = [member.filename for member in self._archive.infolist() if member.flag_bits & _ENCRYPTED]
        if locked:
            raise DataError(f"'{location}' is encrypted (for example '{locked[0]}'); unpack it and give the folder.")

    @cached_property
    def _archive(self) -> zipfile.ZipFile:
        try:
            file = _open_remote(self._path, self._options) if "://" in self._path else self._path
            return zipfile.ZipFile(file)
        except FileNotFoundError as fault:
            raise DataError(f"There is no file '{self.location}'; give a folder, a zip or an address.") from fault
        except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as fault:
            raise DataError(f"'{self.location}' cannot be read as a zip: {fault}; fetch it again.") from fault

    @cached_property
    def _members(self) -> dict[str, list[zipfile.ZipInfo]]:
        """Members by name; some programs write backslashes between folders."""
        members: dict[str, list[zipfile.ZipInfo]] = {}
        for member in self._archive.infolist():
            if not member.is_dir():
                members.setdefault(member.filename.replace("\\", "/"), []).append(member)
        return members

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the open archive and its directory."""
        return {key: value for key, value in super().__getstate__().items() if key != "_members"}

    def _listed(self) -> list[str]:
        return list(self._members)

    def _member(self, name: str) -> zipfile.ZipInfo:
        found = self._members.get(name) or self._members.get(self._checked(name))
        self._checked(name)
        if not found:
            raise self._missing(name)
        if len(found) > 1:
            raise DataError(f"'{self.location}' has {len(found)} members named '{name}'; keep one of them.")
        return found[0]

    def open(self, name: str) -> BinaryIO:
        """Open a member; see `Files.open`."""
        try:
            return cast(BinaryIO, self._archive.open(self._member(name)))
        except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as fault:
            raise DataError(f"'{self.describe(name)}' cannot be read: {fault}.") from fault

    def size(self, name: str) -> int:
        """Return the unpacked size that the zip's directory states, in bytes; reading never yields more."""
        return self._member(name).file_size


class RemoteFiles(Files):
    """Files below an address that fsspec understands, for example `s3://bucket/folder`.

    Args:
        location: The address. Public buckets of S3 are read without credentials unless the options say otherwise.
        storage_options: For the file system, for example `{"anon": False}`.

    Raises:
        DataError: If the address cannot be understood or has no files.
    """

    def __init__(self, location: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.location = location
        self._options = dict(storage_options or {})
        self._root = str(_file_system(location, self._options)._strip_protocol(location)).rstrip("/")
        if not self.names():
            raise DataError(f"There is nothing at '{location}'; give the address of a folder with files.")

    @cached_property
    def _fs(self) -> Any:
        return _file_system(self.location, self._options)

    def _listed(self) -> list[str]:
        try:
            return [str(path)[len(self._root) :].lstrip("/") for path in self._fs.find(self._root)]
        except Exception as fault:  # each store has errors of its own
            raise DataError(f"'{self.location}' cannot be listed: {type(fault).__name__}: {fault}.") from fault

    def _path(self, name: str) -> str:
        return f"{self._root}/{self._checked(name)}"

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Read a file or a part of it in one request; see `Files.read`."""
        path = self._path(name)
        try:
            return bytes(self._fs.cat_file(path, start=offset, end=None if length is None else offset + length))
        except FileNotFoundError as fault:
            raise self._missing(name) from fault
        except Exception as fault:  # each store has errors of its own
            raise DataError(f"'{self.describe(name)}' cannot be read: {type(fault).__name__}: {fault}.") from fault

    def open(self, name: str) -> BinaryIO:
        """Fetch a file into memory and open it; see `Files.open`."""
        return io.BytesIO(self.read(name))

    def size(self, name: str) -> int:
        """Return the size of a file in bytes; see `Files.size`."""
        path = self._path(name)
        try:
            return int(self._fs.size(path))
        except FileNotFoundError as fault:
            raise self._missing(name) from fault


def open_files(location: str, storage_options: Mapping[str, Any] | None = None) -> Files:
    """Return the files of a location.

    Args:
        location: A folder; a zip; one file, which is then the only name, its folder being readable; or an address of an
            object store (of a folder or of a zip).
        storage_options: Settings of the object store. S3 is read anonymously by default.

    Raises:
        DataError: If there is nothing, or nothing readable.
    """
    if "://" in location:
        remote = RemoteFiles if not location.lower().endswith(".zip") else ZipFiles
        return remote(location, storage_options)
    path = Path(location)
    if path.is_dir():
        return FolderFiles(location)
    if path.is_file() and zipfile.is_zipfile(path):
        return ZipFiles(location)
    if path.suffix.lower() == ".zip":
        return ZipFiles(location)  # says what is wrong with it
    if path.is_file():
        return FolderFiles(path.parent, only=path.name)
    raise DataError(f"There is no folder '{location}'; give the folder of a study.")


def _file_system(location: str, options: Mapping[str, Any]) -> Any:
    import fsspec

    protocol = location.partition("://")[0]
    defaults = {"anon": True} if protocol in ("s3", "s3a") else {}
    try:
        return fsspec.filesystem(protocol, **{**defaults, **options})
    except (ImportError, ValueError) as fault:
        raise DataError(f"'{location}' cannot be opened: {fault}.") from fault


def _open_remote(location: str, options: Mapping[str, Any]) -> Any:
    return _file_system(location, options).open(location, "rb")


def _is_litter(name: str) -> bool:
    path = PurePosixPath(name)
    return path.name in _LITTER or path.name.startswith("._") or "__MACOSX" in path.parts
