"""Files of a sheet that was written on another machine, found by the ends of their paths."""

from functools import cached_property
from urllib.parse import unquote

from morphem.errors import DataError
from morphem.readers.files import Files, FolderFiles


class PathFinder:
    """Finds files by paths that may begin with folders of another machine.

    Args:
        files: Where the images are.
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self._root = f"{files.root.as_posix()}/" if isinstance(files, FolderFiles) else f"{files.location.rstrip('/')}/"

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in self._files.names():
            found.setdefault(name.rpartition("/")[2], []).append(name)
        return found

    def find(self, path: str) -> str:
        """Return the name of a file inside the location.

        A path inside the location is taken as it is. Of any other path the file is taken that agrees with it in most
        folders from the end, at least in its own name.

        Args:
            path: A path with slashes or backslashes, absolute or relative, or a URL.

        Raises:
            DataError: If no file has that name, or several agree equally well.
        """
        wanted = unquote(path.partition("://")[2]) if "://" in path else path.replace("\\", "/")
        for inside in (path.removeprefix(self._root), wanted.removeprefix(self._root), wanted):
            if inside in self._files.known:
                return inside
        parts = [part for part in wanted.split("/") if part not in ("", ".")]
        candidates = self._by_name.get(parts[-1], []) if parts else []
        if not candidates:
            raise DataError(
                f"'{self._files.location}' has no file '{path}'; restore it or take its row out of the sheet."
            )
        agreeing = [_common_end(parts, name.split("/")) for name in candidates]
        best = [name for name, count in zip(candidates, agreeing, strict=True) if count == max(agreeing)]
        if len(best) > 1:
            raise DataError(
                f"'{path}' can be '{best[0]}' or '{best[1]}' of '{self._files.location}'; write it out in full."
            )
        return best[0]


def _common_end(one: list[str], other: list[str]) -> int:
    """How many entries two lists share from their ends."""
    length = 0
    for mine, theirs in zip(reversed(one), reversed(other), strict=False):
        if mine != theirs:
            break
        length += 1
    return length
