"""The file of a record: from the hub, from an address, or from where the user put it; every one in the caches.

Files of the Hugging Face hub lie in its own cache. All others lie in `zoo/NAME/` of morphem's cache
(`MORPHEM_CACHE`, or else `~/.cache/morphem`), and what a user puts there by hand is found, for every kind of record.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from morphem import weights
from morphem.data.cache import cache_folder
from morphem.errors import WeightsError
from morphem.zoo import http, licences
from morphem.zoo.base import ByHand, HubFile, Record, WebFile


@dataclass(frozen=True)
class Fetched:
    """A file of a record on this machine.

    Attributes:
        path: Where it is.
        revision: Commit of the hub, or `sha256:...` of the file.
    """

    path: Path
    revision: str


def folder_of(record: Record) -> Path:
    """Return the folder where a file of a record may be put by hand.

    Args:
        record: Of the weights.
    """
    return cache_folder() / "zoo" / record.name


def fetch(
    record: Record,
    *,
    revision: str | None = None,
    local_files_only: bool | None = None,
    accept_license: bool = False,
    progress: bool = True,
) -> Fetched:
    """Return the file of a record, downloading what is missing.

    Args:
        record: Of the weights.
        revision: Commit, tag or branch, for files on the hub.
        local_files_only: Look in the caches only; where not given, as `HF_HUB_OFFLINE` says.
        accept_license: Whether the user accepts a licence that restricts use; remembered.
        progress: Whether to show a bar.

    Raises:
        WeightsError: If the licence was not accepted, the file is not to be had (with what to fetch and where to put
            it), or it is not the one that was published.
    """
    licences.require(record, accept_license)
    location = record.location
    if revision is not None and not isinstance(location, HubFile):
        raise WeightsError(f"'{record.name}' has no revisions ('{revision}'); only files on the hub have.")
    offline = weights.is_offline() if local_files_only is None else local_files_only
    if isinstance(location, HubFile):
        return _from_hub(record, location, revision, offline)
    if isinstance(location, WebFile):
        return _from_web(record, location, offline, progress)
    if isinstance(location, ByHand):
        return _by_hand(record, location)
    raise WeightsError(f"'{record.name}' has no file: {location.words}")


def _from_hub(record: Record, location: HubFile, revision: str | None, offline: bool) -> Fetched:
    own = folder_of(record) / Path(location.file).name
    if revision is None and own.is_file():
        return Fetched(own, f"sha256:{_checked(own)}")
    files = [location.file, *location.sidecars]
    try:
        folder = weights.fetch(location.hub_id, files, revision or location.revision, offline)
    except WeightsError as fault:
        raise WeightsError(f"{fault} Files put into {folder_of(record)} are found too.") from fault
    return Fetched(folder / location.file, folder.name)  # the hub's cache names a snapshot after its commit


def _from_web(record: Record, location: WebFile, offline: bool, progress: bool) -> Fetched:
    folder = folder_of(record)
    path = folder / http.file_name(location.url)
    addresses = {path: location.url, **{folder / http.file_name(url): url for url in location.sidecars}}
    absent = {place: url for place, url in addresses.items() if not place.is_file()}
    if absent and offline:
        raise WeightsError(_missing(record, list(absent.values()), "offline, and not in the cache"))
    for place, url in absent.items():
        expected = (location.sha256 if place == path else None) or _remembered(place, url)
        try:
            digest = http.download(url, place, sha256=expected, progress=progress)
        except WeightsError as fault:
            raise WeightsError(f"{fault} Or {_instructions(record, [url])}") from fault
        _remember(place, url, digest)
    return Fetched(path, f"sha256:{_checked(path, location.sha256, location.url)}")


def _by_hand(record: Record, location: ByHand) -> Fetched:
    path = folder_of(record) / location.file
    if path.is_file():
        return Fetched(path, f"sha256:{_checked(path)}")
    raise WeightsError(
        f"'{record.name}' cannot be downloaded by a program: {location.words.rstrip('.')} (see {location.page}); put "
        f"the file at {path}, or give its path: morphem.load(PATH, record='{record.name}')."
    )


def _missing(record: Record, urls: list[str], why: str) -> str:
    return f"'{record.name}' cannot be loaded ({why}): {_instructions(record, urls)}"


def _instructions(record: Record, urls: list[str]) -> str:
    return f"fetch {' and '.join(urls)} by hand and put it into {folder_of(record)}."


def _marker(path: Path) -> Path:
    return path.with_name(f"{path.name}.origin.json")


def _read_marker(path: Path) -> dict[str, Any]:
    try:
        note = json.loads(_marker(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as fault:
        raise WeightsError(f"{_marker(path)} is damaged ({fault}); delete it.") from fault
    return note if isinstance(note, dict) else {}


def _remembered(path: Path, url: str) -> str | None:
    """Return the hash that the first download of an address had; a later one must be the same file."""
    note = _read_marker(path)
    return str(note["sha256"]) if note.get("url") == url else None


def _remember(path: Path, url: str, sha256: str) -> None:
    """Note the hash of a file, with size and time, so that it is computed once and not at every start."""
    state = path.stat()
    note = {"url": url, "sha256": sha256, "size": state.st_size, "mtime_ns": state.st_mtime_ns}
    _marker(path).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")


def _checked(path: Path, published: str | None = None, url: str = "") -> str:
    """Return the hash of a file, after comparing it with the published one or the one of the first download.

    A file that was put there by hand, of which no hash is known, is taken as it is.

    Raises:
        WeightsError: If they differ.
    """
    note, state = _read_marker(path), path.stat()
    is_same = (note.get("size"), note.get("mtime_ns")) == (state.st_size, state.st_mtime_ns)
    found = str(note["sha256"]) if is_same else weights.file_sha256(path)
    expected = published or (note.get("sha256") if url and note.get("url") == url else None)
    if expected is not None and found != str(expected).lower():
        raise WeightsError(
            f"{path} is not the file that was published (SHA-256 {found}, expected {expected}); "
            f"delete it and fetch {url} again."
        )
    if not is_same:
        _remember(path, url, found)
    return found
