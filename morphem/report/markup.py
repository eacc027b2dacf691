"""Pieces of HTML: tables with aligned numbers, lists that fold, numbers with their nouns."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

MAX_NAMED = 200
"""Names in one list; report.json and metadata.parquet have all."""


class Raw(str):
    """HTML that is put into a table as it is."""


def count(number: int, what: str, many: str | None = None) -> str:
    """Return a number with its noun.

    Args:
        number: 0 or more.
        what: The noun for one.
        many: The noun for others; with an s where not given.
    """
    return f"{number:,} {what if number == 1 else many or what + 's'}"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], sums: Sequence[Any] | None = None) -> str:
    """Return an HTML table; whole numbers are written with commas and stand on the right.

    Args:
        head: Names of the columns.
        rows: Cells of each row: whole numbers, None (a dash), texts (which are escaped), or `Raw`, which is HTML.
        sums: A last row that stands apart.
    """
    body = [list(row) for row in rows]
    numeric = [any(isinstance(row[k], int) for row in body) for k in range(len(head))]
    names = "".join(f"<th{' class=n' if n else ''}>{escape(name)}</th>" for name, n in zip(head, numeric, strict=True))
    lines = [f"<tr>{_cells(row)}</tr>" for row in body]
    lines += [f"<tr class=sum>{_cells(sums)}</tr>"] if sums is not None else []
    return f"<div class=scroll><table><thead><tr>{names}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"


def _cells(row: Sequence[Any]) -> str:
    parts = []
    for cell in row:
        if isinstance(cell, int):
            parts.append(f"<td class=n>{cell:,}</td>")
        elif cell is None:
            parts.append("<td class=n>–</td>")
        elif isinstance(cell, Raw):
            parts.append(cell if cell.startswith("<td") else f"<td>{cell}</td>")
        else:
            parts.append(f"<td>{escape(str(cell))}</td>")
    return "".join(parts)


def bar(share: float) -> Raw:
    """Return a table cell with a bar.

    Args:
        share: Its length, 0 to 1.
    """
    return Raw(f'<td class=bar><i style="width:{100 * min(1.0, max(0.0, share)):.1f}%"></i></td>')


def named(names: Sequence[str], limit: int) -> str:
    """Return names with commas between; those past the limit are counted.

    Args:
        names: Any number.
        limit: 1 or more.
    """
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def folded(sentence: str, names: Sequence[str]) -> str:
    """Return a sentence that opens to a list of names.

    Args:
        sentence: What the names have in common.
        names: Any number; at most 200 are written.
    """
    more = f"<li>and {len(names) - MAX_NAMED:,} more</li>" if len(names) > MAX_NAMED else ""
    lines = "".join(f"<li>{escape(name)}</li>" for name in names[:MAX_NAMED])
    return f"<details><summary>{escape(sentence)}</summary><ul>{lines}{more}</ul></details>"
