"""Records as text: the table of `morphem models list`, the page of `show`, and the tables of docs/zoo.md."""

import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from morphem.zoo import catalogue, licences, verify
from morphem.zoo.base import ByHand, Computed, HubFile, Pretrained, Record, WebFile
from morphem.zoo.download import folder_of

_GAP = 2
_LICENCE_WIDTH, _CHANNELS_WIDTH = 22, 30  # at most, at least: these two columns wrap


def select(pattern: str = "", *, open_only: bool = False) -> list[catalogue.Entry]:
    """Return records, family by family.

    Args:
        pattern: Part of a name, a family or a summary, without regard to case; empty for all.
        open_only: Leave out those whose licence restricts use.
    """
    wanted = pattern.casefold()
    return [
        entry
        for entry in catalogue.entries().values()
        if wanted in f"{entry.record.name} {entry.family} {entry.record.summary}".casefold()
        and not (open_only and entry.record.restricted)
    ]


def _cells(entry: catalogue.Entry) -> tuple[str, ...]:
    record = entry.record
    licence = licences.title(record.license) + (" *" if record.restricted else "")
    return record.name, str(record.embed_dim), licence, how(record), record.channel_rule


def how(record: Record) -> str:
    """Say in a word where a file comes from.

    Args:
        record: Of the weights.
    """
    kinds = {HubFile: "hub", WebFile: "web", ByHand: "by hand", Computed: "computed"}
    return kinds[type(record.location)]


def terminal(entries: Sequence[catalogue.Entry], width: int) -> list[str]:
    """Return the table for a terminal; long cells go on in the next line, and nothing is cut off.

    Args:
        entries: Records.
        width: Columns of the terminal.
    """
    if not entries:
        return ["no record matches"]
    heads = ("name", "features", "licence", "from", "channels")
    rows = [_cells(entry) for entry in entries]
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    widths[2] = min(widths[2], _LICENCE_WIDTH)
    widths[4] = max(_CHANNELS_WIDTH, width - sum(widths[:4]) - _GAP * 4)
    lines = _wrapped(heads, widths)
    family = ""
    for entry, row in zip(entries, rows, strict=True):
        if entry.family != family:
            lines.append("")
            family = entry.family
        lines += _wrapped(row, widths)
    restricted = any(entry.record.restricted for entry in entries)
    note = ["* restricts use: shown by `morphem models show NAME`, accepted once with --accept-license"]
    count = f"{len(entries)} record{'s' * (len(entries) != 1)}"
    return [*lines, "", count, *(note if restricted else [])]


def _wrapped(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    cells = [
        textwrap.wrap(cell, width, break_long_words=False) or [""] for cell, width in zip(row, widths, strict=True)
    ]
    height = max(len(cell) for cell in cells)
    gap = " " * _GAP
    return [
        gap.join(
            (cell[i] if i < len(cell) else "").ljust(width) for cell, width in zip(cells, widths, strict=True)
        ).rstrip()
        for i in range(height)
    ]


def show(entry: catalogue.Entry) -> list[str]:
    """Return all that is known of a record, a line or more per fact.

    Args:
        entry: The record.
    """
    record = entry.record
    accepted = "accepted on this machine" if licences.is_accepted(record) else "to be accepted once: --accept-license"
    restricts = f"restricts use; {accepted}" if record.restricted else "no restriction of use known"
    facts: dict[str, Any] = {
        "name": record.name,
        "family": entry.family,
        "what": record.summary,
        "licence": f"{licences.title(record.license)} ({restricts})",
        "cite": record.citation,
        "source": record.source,
        **_location(record),
        "network": {"only": "the only one"}.get(record.exported, record.exported),
        "pixels": record.input_domain,
        "preparation": record.preparation,
        "native size": f"{record.native_size_px} px" if record.native_size_px else "any",
        "channels": record.channel_rule,
        "knows": ", ".join(record.vocabulary) or "any channel",
        "pooling": record.pooling,
        "features": record.embed_dim,
        "facts": ", ".join(f"{key}={value}" for key, value in record.facts.items()) or "none beyond the shapes",
    }
    lines = []
    for name, value in facts.items():
        lines += _indented(f"{name:<13}", str(value))
    return [*lines, *_options(entry.cls, record.facts)]


def _indented(head: str, text: str) -> list[str]:
    first, *more = textwrap.wrap(text, 100, break_long_words=False, break_on_hyphens=False) or [""]
    return [f"{head}{first}".rstrip(), *(" " * len(head) + line for line in more)]


def _location(record: Record) -> dict[str, str]:
    location = record.location
    if isinstance(location, HubFile):
        revision = location.revision or "the newest commit (none was verified)"
        return {"file": f"{location.file} of https://huggingface.co/{location.hub_id}", "revision": revision}
    if isinstance(location, WebFile):
        digest = location.sha256 or "not published; that of the first download is remembered"
        return {"file": location.url, "sha256": digest}
    if isinstance(location, ByHand):
        words = f"{location.words.rstrip('.')} (see {location.page})"
        return {"file": words, "put it at": str(folder_of(record) / location.file)}
    return {"file": f"none: {location.words}"}


def _options(cls: type[Pretrained], facts: Mapping[str, Any]) -> list[str]:
    """Return the arguments of a family: what they are for this record, and what they mean."""
    meanings, lines = meanings_of(cls), []
    for name, parameter in inspect.signature(cls).parameters.items():
        lines += _indented("  ", f"{name}={facts.get(name, parameter.default)!r}  {meanings.get(name, '')}")
    return ["options", *lines] if lines else []


def markdown(entries: Sequence[catalogue.Entry]) -> str:
    """Return the table of all records for docs/zoo.md.

    Args:
        entries: Records.
    """
    lines = [
        "| name | family | what it is | features | licence | restricted | from | channels |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry in entries:
        record = entry.record
        cells = (
            f"`{record.name}`",
            f"`{entry.family}`",
            record.summary,
            str(record.embed_dim),
            licences.title(record.license),
            "yes" if record.restricted else "no",
            how(record),
            record.channel_rule,
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def not_compared_markdown() -> str:
    """Return the table of what no golden record proves, by family, for docs/zoo.md."""
    rows = [
        f"| `{name}` | `{key}` | {reason} |"
        for name, cls in catalogue.families().items()
        for key, reason in cls.not_compared.items()
    ]
    if not rows:
        return "Nothing: every output of every case is computed and compared."
    return "\n".join(["| family | left out | reason |", "|---|---|---|", *rows])


def golden_markdown(paths: Sequence[Path]) -> str:
    """Verify golden records, and return what they prove, for docs/zoo.md.

    Args:
        paths: JSON files.

    Raises:
        WeightsError: If a record cannot be verified.
    """
    lines = [
        "| record | family | outputs compared (in float64) | largest difference | of its tolerance | left out |",
        "|---|---|---|---|---|---|",
    ]
    for path in paths:
        report = verify.verify(path)
        double = sum(comparison.double for comparison in report.comparisons)
        state = f"{verify.largest(report.comparisons):.1e}" if report.ok else "WRONG"
        share = f"{verify.severity(report.worst):.2f}" if report.worst is not None else "-"
        left = ", ".join(f"`{o.case}.{o.output}`" for o in report.omissions) or "nothing"
        count = f"{len(report.comparisons)} ({double})"
        lines.append(f"| `{report.name}` | `{report.family}` | {count} | {state} | {share} | {left} |")
    return "\n".join(lines)


def options_markdown() -> str:
    """Return the table of the options of every family, with their defaults, for docs/zoo.md."""
    lines = ["| family | option | default | what it is |", "|---|---|---|---|"]
    for name, cls in catalogue.families().items():
        meanings = meanings_of(cls)
        for option, parameter in inspect.signature(cls).parameters.items():
            meaning = meanings.get(option, "").replace("|", "\\|")
            lines.append(f"| `{name}` | `{option}` | `{parameter.default!r}` | {meaning} |")
    return "\n".join(lines)


def meanings_of(cls: type[Pretrained]) -> dict[str, str]:
    """Return what a family's docstring says of its arguments.

    Args:
        cls: The family.
    """
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        found |= _arguments(inspect.cleandoc(base.__doc__ or ""))
    return found


def _arguments(docstring: str) -> dict[str, str]:
    """Return the section `Args` of a docstring."""
    _, _, rest = docstring.partition("\nArgs:\n")
    found: dict[str, str] = {}
    name = ""
    for line in rest.splitlines():
        if not line.startswith("    "):
            break
        start = re.match(r"    (\w+): (.*)", line)
        if start is not None:
            name = start[1]
            found[name] = start[2].strip()
        elif name:
            found[name] += f" {line.strip()}"
    return found
