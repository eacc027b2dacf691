"""One file from an address: resumed where it was cut, checked against its hash, whole or not there at all."""

import http.client
import json
import time
import urllib.error
import urllib.request
from email.message import Message
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from filelock import FileLock
from tqdm import tqdm

from morphem.errors import WeightsError
from morphem.weights import file_sha256

_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 30.0
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_CUT = (OSError, http.client.HTTPException)  # URLError is an OSError


class _AnsweredBadlyError(Exception):
    """What a server may do better in a moment: another part, a part that is too short."""


def file_name(url: str) -> str:
    """Return what the file behind an address is called.

    Args:
        url: For example a release asset, or Zenodo's `.../files/NAME/content`.
    """
    parts = [unquote(part) for part in urlsplit(url).path.split("/") if part]
    if parts and parts[-1] == "content":
        parts.pop()
    return parts[-1] if parts else ""


def download(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    progress: bool = True,
    attempts: int = 5,
    pause_s: float = 1.0,
) -> str:
    """Download a file, from where an earlier call stopped, and return its SHA-256.

    Several processes may call it at once for the same file: one downloads, the others wait.

    Args:
        url: Address; https, or plain http on this machine alone.
        target: Where the file goes; `NAME.part` beside it holds what has come so far.
        sha256: What the file must hash to; None to take what comes.
        progress: Whether to show a bar.
        attempts: How often in a row to try without getting a byte further.
        pause_s: Before the second try; doubled for each further one.

    Raises:
        WeightsError: If the server refuses, the connection stays cut, or the hash differs.
    """
    _check_address(url)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f"{target.name}.lock")):
        if not target.is_file():
            part = target.with_name(f"{target.name}.part")
            _complete(url, part, sha256, progress, attempts, pause_s)
            found = file_sha256(part)
            if sha256 is not None and found != sha256.lower():
                _forget(part)
                raise WeightsError(
                    f"what {url} sends is not the file that was published (SHA-256 {found}, expected {sha256}); "
                    "it was not kept: try again, and if it stays so, ask its authors whether they replaced it."
                )
            part.replace(target)
            _notes(part).unlink(missing_ok=True)
            return found
    return file_sha256(target)


def _check_address(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise WeightsError(f"{url} is not fetched: weights come over https only.")


def _complete(url: str, part: Path, sha256: str | None, progress: bool, attempts: int, pause_s: float) -> None:
    """Call the server until the file is whole; tries that bring nothing count, others do not."""
    failures, reason = 0, ""
    while failures < attempts:
        before = _size(part)
        try:
            _transfer(url, part, sha256 is not None, progress)
            return
        except urllib.error.HTTPError as fault:
            if fault.code < 500 and fault.code not in (408, 416, 429):
                raise WeightsError(f"{url} cannot be fetched: the server says {fault.code} {fault.reason}.") from fault
            reason = f"the server says {fault.code} {fault.reason}"
        except _AnsweredBadlyError as fault:
            reason = str(fault)
        except _CUT as fault:
            reason = str(getattr(fault, "reason", "") or fault or type(fault).__name__)
        failures = 0 if _size(part) > before else failures + 1
        time.sleep(min(pause_s * 2**failures, 30.0) if failures < attempts else 0.0)
    kept = f" {_size(part)} bytes are kept in {part}; the next try goes on from there." if _size(part) else ""
    raise WeightsError(f"{url} cannot be fetched: {reason.rstrip('.')}.{kept}")


def _transfer(url: str, part: Path, is_checked: bool, progress: bool) -> None:
    """Fetch what is missing in one connection."""
    have, known = _size(part), _read_notes(part)
    validator = known.get("etag") or known.get("modified")
    if known.get("url") != url or not (validator or is_checked):
        have = 0  # nothing would tell a half of one file from a half of another
    headers = {"User-Agent": f"morphem/{version('morphem')}", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", **({"If-Range": validator} if validator else {})}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as fault:
        if fault.code == 416 and _total(fault.headers) == have:
            return  # all of it is here already
        if fault.code == 416:
            _forget(part)
        raise
    with response:
        _check_address(response.geturl())
        if response.status == 206 and not str(response.headers.get("Content-Range", "")).startswith(f"bytes {have}-"):
            _forget(part)
            raise _AnsweredBadlyError("the server sent another part than the one asked for")
        if response.status != 206:
            have = 0
        _write_notes(part, url, response.headers)
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        _receive(response, part, have, total, progress)
    if total is not None and _size(part) < total:
        raise _AnsweredBadlyError(f"the connection was cut after {_size(part)} of {total} bytes")


def _receive(response: Any, part: Path, have: int, total: int | None, progress: bool) -> None:
    bar = tqdm(
        total=total, initial=have, unit="B", unit_scale=True, desc=part.name.removesuffix(".part"), disable=not progress
    )
    with part.open("r+b" if have else "wb") as stream, bar:
        stream.seek(have)
        stream.truncate()
        while chunk := response.read(_CHUNK_BYTES):
            stream.write(chunk)
            bar.update(len(chunk))


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _total(headers: "Message[str, str]") -> int | None:
    """Return the size of the whole file that an answer 416 tells, `bytes */SIZE`."""
    size = str(headers.get("Content-Range", "")).rpartition("/")[2]
    return int(size) if size.isdigit() else None


def _notes(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_notes(part: Path) -> dict[str, str]:
    try:
        notes = json.loads(_notes(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return notes if isinstance(notes, dict) else {}


def _write_notes(part: Path, url: str, headers: "Message[str, str]") -> None:
    """Remember which version of the file the part is of; a weak tag (W/) cannot vouch for bytes."""
    tag, modified = str(headers.get("ETag") or ""), str(headers.get("Last-Modified") or "")
    notes = {"url": url, "etag": "" if tag.startswith("W/") else tag, "modified": modified}
    _notes(part).write_text(json.dumps(notes), encoding="utf-8")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _notes(part).unlink(missing_ok=True)
