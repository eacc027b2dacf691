"""A run beside the published rows, as a table of text."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from morphem.benchmarks.base import PublishedRow
from morphem.benchmarks.record import Record

_MARKS = "*†‡§"
_WIDTH, _NAME = 118, 44


@dataclass(frozen=True)
class _Line:
    """A row of the table: name, scores, mark, and whether it is the run."""

    name: str
    scores: Mapping[str, float]
    mark: str
    is_run: bool
    source: str


def leaderboard(record: Record, run_name: str = "this run") -> str:
    """Return the table: best headline first, the run marked with `>`, differences of protocol with a mark and a note.

    Published rows that share no score with the run are left out. Scores are in percent, as papers print them, where all
    of them lie between 0 and 1.

    Args:
        record: The run.
        run_name: What to call it.
    """
    benchmark = record.benchmark
    names = [name for name in type(benchmark).score_names if name in record.score.values]
    notes: dict[str, str] = {}
    mark = _mark(" ".join(record.differs), notes) if record.differs else ""
    lines = [_Line(run_name, record.score.values, mark, True, "here")]
    for row in _published(record):
        lines.append(_Line(row.model, row.scores, _mark(row.note, notes) if row.note else "", False, row.table))
    headline = benchmark.headline
    sign = -1 if headline in type(benchmark).lower_is_better else 1
    lines.sort(key=lambda line: -sign * line.scores.get(headline, -sign * float("inf")))
    scale = 100.0 if all(0 <= value <= 1 for line in lines for value in line.scores.values()) else 1.0
    text: list[str] = []
    rest = names
    while rest:  # many scores go below each other, in tables that fit a terminal
        count = next(n for n in range(len(rest), 0, -1) if n == 1 or _width(_rows(lines, rest[:n], scale)) <= _WIDTH)
        text += ([""] if text else []) + _align(_rows(lines, rest[:count], scale), numbers=range(2, 2 + count))
        rest = rest[count:]
    text += [textwrap.fill(f"{mark} {note}", _WIDTH, subsequent_indent="  ") for note, mark in notes.items()]
    return "\n".join(text)


def _rows(lines: Sequence[_Line], names: Sequence[str], scale: float) -> list[list[str]]:
    """Return the cells of a table with some of the scores, its head first."""
    rows = [["", "model", *[f"{name} %" if scale == 100 else name for name in names], "source"]]
    for line in [line for line in lines if line.is_run or set(line.scores) & set(names)]:
        shown = [_number(line.scores.get(name), scale) for name in names]
        rows.append([">" if line.is_run else "", _short(line.name) + line.mark, *shown, line.source])
    return rows


def _short(name: str) -> str:
    return name if len(name) <= _NAME else "..." + name[3 - _NAME :]


def _width(rows: Sequence[Sequence[str]]) -> int:
    return sum(max(len(row[i]) for row in rows) + 2 for i in range(len(rows[0]))) - 2


def _published(record: Record) -> Sequence[PublishedRow]:
    return [row for row in type(record.benchmark).published if set(row.scores) & set(record.score.values)]


def _mark(note: str, notes: dict[str, str]) -> str:
    """Return the mark of a note; equal notes share one."""
    if note not in notes:
        number = len(notes)
        notes[note] = _MARKS[number % len(_MARKS)] * (number // len(_MARKS) + 1)
    return notes[note]


def _number(value: float | None, scale: float) -> str:
    if value is None:
        return "-"
    return f"{value * scale:.2f}" if scale == 100 else f"{value:.4g}"


def _align(rows: Sequence[Sequence[str]], numbers: range) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if i in numbers else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths).rstrip())
    return lines


def summary(record: Record) -> str:
    """Return scores with intervals, rules, leak probes and warnings, as text for a terminal."""
    benchmark = record.benchmark
    lines = [f"{record.name}: {type(benchmark).title}  (protocol {benchmark.protocol_version}, {benchmark.variant})"]
    for name, value in record.score.values.items():
        lines.append(f"  {name:24} {value:.4f}{_interval(record, name)}")
    lines += [f"  {name:24} not given: {reason}" for name, reason in record.score.missing.items()]
    for name in ("split", "negatives", "p_value"):
        if name in record.score.rules:
            lines.append(_wrapped(name, record.score.rules[name]))
    for part, report in record.leaks.items():
        shown = [f"{leak.nuisance} {leak.score:.2f} ({leak.chance:.2f})" for leak in report.leaks]
        where = f" of {part}" if len(record.leaks) > 1 else ""
        text = ", ".join(shown) if shown else "none could be run: " + _reasons(report.missing)
        lines.append(f"  {'leak probes' + where:24} {text}" + ("   score (chance), on control rows" if shown else ""))
    lines += [_wrapped("note", note) for note in record.score.notes]
    lines += [_wrapped("warning", text) for text in record.warnings]
    return "\n".join(lines)


def _wrapped(name: str, text: str) -> str:
    return textwrap.fill(text, 118, initial_indent=f"  {name:24} ", subsequent_indent=" " * 27)


def _interval(record: Record, name: str) -> str:
    interval: Any = record.score.intervals.get(name)
    if interval is None:
        return ""
    bounds = f"{interval.low:.4f} to {interval.high:.4f}"
    return f"   {interval.level:.0%} interval {bounds} over {interval.n_units} {interval.unit}s"


def _reasons(missing: Mapping[str, str]) -> str:
    return "; ".join(dict.fromkeys(missing.values()))
