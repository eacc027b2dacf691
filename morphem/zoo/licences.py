"""Licences that restrict what weights may be used for: shown before a download, accepted once, remembered."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from morphem.data.cache import cache_folder
from morphem.errors import WeightsError
from morphem.zoo.base import Record

_SPELLINGS = {
    name.casefold(): name
    for name in ("MIT", "Apache-2.0", "BSD-3-Clause", "CC-BY-4.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "CC0-1.0")
}


def title(license: str) -> str:  # noqa: A002
    """Return a licence as SPDX spells it, or as it stands.

    Args:
        license: Of a record; the hub spells it in small letters.
    """
    return _SPELLINGS.get(license.casefold(), license)


def stated(card: Mapping[str, Any]) -> str:
    """Return the licence that a model card states, or those that it may be; empty where it states none.

    Args:
        card: What `config.json` says beyond the architecture.
    """
    possible = " or ".join(title(name) for name in card.get("possible_licenses", ()))
    return title(str(card["license"])) if card.get("license") else possible


def notice(record: Record) -> str:
    """Say in a line under what licence weights are.

    Args:
        record: Of the weights.
    """
    kind = "restricts use: read it before you go on" if record.restricted else "no restriction of use known"
    return f"{record.name}: licence {title(record.license)} ({kind}), from {record.source}"


def _file(record: Record) -> Path:
    return cache_folder() / "zoo" / record.name / "licence.json"


def is_accepted(record: Record) -> bool:
    """Whether the licence of a record, under its present name, was accepted on this machine.

    Args:
        record: Of the weights.

    Raises:
        WeightsError: If what was remembered cannot be read.
    """
    file = _file(record)
    if not file.is_file():
        return False
    try:
        return bool(json.loads(file.read_text(encoding="utf-8"))["license"] == record.license)
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise WeightsError(f"{file} is damaged ({fault}); delete it and accept the licence again.") from fault


def accept(record: Record) -> None:
    """Remember that the user accepts the licence of a record.

    Args:
        record: Of the weights.
    """
    file = _file(record)
    file.parent.mkdir(parents=True, exist_ok=True)
    note = {"record": record.name, "license": record.license, "accepted": datetime.now(UTC).isoformat()}
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    partial.replace(file)


def require(record: Record, accepts: bool) -> None:
    """Refuse weights whose licence restricts use and was never accepted.

    Args:
        record: Of the weights.
        accepts: Whether the user accepts it now; remembered.

    Raises:
        WeightsError: With the licence, and how to accept it.
    """
    if not record.restricted or is_accepted(record):
        return
    if accepts:
        accept(record)
        return
    raise WeightsError(
        f"the weights '{record.name}' are under the licence {record.license}, which restricts what they may be used "
        f"for; read it at {record.source.split(' at ')[0]}, then accept it once: "
        f"`morphem models download {record.name} --accept-license`, or morphem.load(..., accept_license=True)."
    )
