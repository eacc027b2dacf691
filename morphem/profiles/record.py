"""Records of steps: joined when a step ran plate by plate, and as lines for people."""

from collections.abc import Mapping, Sequence
from typing import Any

_SMALLEST = ("smallest_group", "rank")
_SAME = ("features_in", "features_out")
_REMARKS_SHOWN = 20


def merge_records(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one record for a step that ran on several chunks of a table.

    Args:
        parts: The records of the chunks, at least one, of the same step.
    """
    merged = {key: _merge(key, [part[key] for part in parts if key in part]) for key in dict.fromkeys(_keys(parts))}
    leaks: dict[tuple[str, str], dict[str, Any]] = {}
    for leak in (leak for part in parts for leak in part["leaks"]):
        kept = leaks.setdefault((leak["what"], leak["query"]), {**leak, "rows": 0, "of_rows": 0})
        kept["rows"] += leak["rows"]
    held = [part["leaks"] for part in parts]
    for (what, query), kept in leaks.items():
        kept["of_rows"] = sum(
            leak["of_rows"] for chunk in held for leak in chunk if (leak["what"], leak["query"]) == (what, query)
        )
    merged["leaks"] = list(leaks.values())
    remarks = list(dict.fromkeys(remark for part in parts for remark in part["remarks"]))
    more = len(remarks) - _REMARKS_SHOWN
    merged["remarks"] = remarks[:_REMARKS_SHOWN] + ([f"and {more} more remarks of this kind"] if more > 0 else [])
    merged["chunks"] = len(parts)
    return merged


def _keys(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    return [key for part in parts for key in part if key not in ("leaks", "remarks")]


def _merge(key: str, values: Sequence[Any]) -> Any:
    first = values[0]
    if key == "settings" or key in _SAME or isinstance(first, str) or first is None:
        return first
    if isinstance(first, Mapping):
        return {name: _merge(name, [value[name] for value in values if name in value]) for name in _names(values)}
    if isinstance(first, list):
        return list(dict.fromkeys(item for value in values for item in value))
    return min(values) if key in _SMALLEST else sum(values)


def _names(values: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for value in values for name in value))


def leak_sentence(leak: Mapping[str, Any]) -> str:
    """Return what a leak means.

    Args:
        leak: As `morphem.profiles.step.Leak`.
    """
    if leak["what"] == "labels":
        return f"used the labels {leak['query']}: a score of these labels is not fair after this step"
    return f"learned from {leak['rows']} of {leak['of_rows']} {leak['what']} ({leak['query']})"


def describe(record: Mapping[str, Any]) -> list[str]:
    """Return a record as lines: what happened, what it was fitted on, and what a reader should know.

    Args:
        record: Of one step.
    """
    size = f"{record['rows_out']} rows x {record['features_out']}"
    if record["rows_in"] != record["rows_out"]:
        size += f", from {record['rows_in']} rows"
    if record["features_in"] != record["features_out"]:
        size += f", from {record['features_in']} features"
    lines = [f"{record['step']:16} {size}"]
    fitted = record["fitted_on"]
    if fitted:
        which = "all rows" if fitted["samples"] == "all" else fitted["samples"]
        groups = f", {fitted['groups']} groups by {' and '.join(fitted['per'])}" if fitted.get("per") else ", pooled"
        lines.append(f"fitted on {fitted['rows']} of {fitted['of_rows']} rows ({which}){groups}")
    lines += [f"leak: {leak_sentence(leak)}" for leak in record["leaks"]]
    return lines + [f"note: {remark}" for remark in record["remarks"]]
