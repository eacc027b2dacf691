"""A step of a profile recipe: a table in, a table out, and a record of what it did and what it was fitted on."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, TypedDict

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem.errors import ConfigError, DataError
from morphem.features import FeatureTable
from morphem.profiles.conventions import (
    PLATE,
    Mask,
    check_channels,
    count_unanswered,
    describe_row,
    group_codes,
    listed,
    select_rows,
    values_asked,
)
from morphem.profiles.record import leak_sentence

Doubles = NDArray[np.float64]
RECORD = "profile"
"""Where the records stand in a table's provenance: a list, one entry per step, in order."""


class Leak(TypedDict):
    """What a step learned from that a fair test would hide from it.

    Attributes:
        what: `held-out rows`, `rows that are no controls`, or `labels`.
        rows: How many such rows it learned from.
        of_rows: How many there are.
        query: Which rows, or the names of the labels.
    """

    what: str
    rows: int
    of_rows: int
    query: str


@dataclass
class Note:
    """What a step writes down while it runs.

    Attributes:
        fitted_on: What the step learned from: `samples`, `per`, `groups`, `rows`, `smallest_group`.
        leaks: What the step saw that a fair test would hide from it.
        remarks: Sentences on anything else that a reader should know.
        details: Further plain data, such as the names of removed features.
        held_out: Query of the rows that no step may learn from; empty where there are none.
        controls: Query of the controls that the recipe names; empty where it names none.
    """

    fitted_on: dict[str, Any] | None = None
    leaks: list[Leak] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    held_out: str = ""
    controls: str = ""


class Step(ABC):
    """One step; a frozen dataclass whose fields are its settings.

    Attributes:
        name: What recipes and errors call it.
        keeps_rows: Whether the same rows come out in the same order.
    """

    name: ClassVar[str]
    keeps_rows: ClassVar[bool] = True

    @abstractmethod
    def run(self, table: FeatureTable, note: Note) -> FeatureTable:
        """Do the step.

        Args:
            table: Checked rows.
            note: Where to write down what the step was fitted on.

        Raises:
            ConfigError: If a setting does not fit the table.
            DataError: If the rows are not what the step needs.
        """

    def prepare(self) -> None:  # noqa: B027 - most steps need nothing
        """Find out, before a table is read, whether what the step needs is there.

        Raises:
            ConfigError: If a library or a file is missing, or a library is known to be wrong.
        """

    def chunks_by(self, plate: str) -> bool:
        """Whether the step gives the same rows when it sees one plate after another instead of all.

        Args:
            plate: The column that names plates.
        """
        return False

    def __call__(
        self, table: FeatureTable, *, controls: str = "", held_out: str = "", forbid_leaks: bool = False
    ) -> FeatureTable:
        """Do the step and write it down in the table's provenance.

        Args:
            table: Any table with `Metadata_` columns.
            controls: Query of the controls; `samples: controls` means these rows.
            held_out: Query of the rows that no step may learn from.
            forbid_leaks: Whether a step that learns from what a fair test would hide is an error.

        Returns:
            The result; the last entry of `provenance['profile']` is the record of this step.

        Raises:
            ConfigError: If a setting does not fit the table.
            DataError: If the rows are not what the step needs.
        """
        if not len(table):
            raise DataError(f"{self.name}: the table has no rows.")
        note = Note(held_out=held_out, controls=controls)
        result = self.run(table, note)
        if self.keeps_rows and len(result) != len(table):
            raise DataError(
                f"{self.name}: {len(table)} rows went in and {len(result)} came out; this is a fault of the step."
            )
        if forbid_leaks and note.leaks:
            raise DataError(
                f"{self.name}: {leak_sentence(note.leaks[0])}, which the recipe forbids (leaks: error); choose other "
                "samples, or allow it (leaks: record)."
            )
        record = {
            "step": self.name,
            "settings": self.settings(),
            "rows_in": len(table),
            "rows_out": len(result),
            "features_in": len(table.columns),
            "features_out": len(result.columns),
            "fitted_on": note.fitted_on,
            "leaks": note.leaks,
            "remarks": note.remarks,
            **note.details,
        }
        earlier = list(table.provenance.get(RECORD, []))
        return replace(result, provenance={**result.provenance, RECORD: [*earlier, record]})

    def settings(self) -> dict[str, Any]:
        """Return the settings as plain data, defaults included."""
        names = [field.name for field in fields(self)]  # type: ignore[arg-type]
        return {name: _plain(getattr(self, name)) for name in names}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def records(table: FeatureTable) -> list[Mapping[str, Any]]:
    """Return the records of the steps that made a table, in order.

    Args:
        table: Any table.
    """
    return list(table.provenance.get(RECORD, []))


@dataclass(frozen=True)
class Group:
    """Rows that a step treats together.

    Attributes:
        name: For errors.
        rows: Positions of all its rows, (n,).
        fit: Positions of the rows that it learns from, (m,).
    """

    name: str
    rows: NDArray[np.int64]
    fit: NDArray[np.int64]


def fit_groups(table: FeatureTable, samples: str, per: Sequence[str], step: str, note: Note) -> list[Group]:
    """Split rows into groups, choose the rows that each is fitted on, and write both down.

    Args:
        table: Rows.
        samples: Query of the rows to learn from; `controls` for those that the recipe names, `all` for every row.
        per: Columns that name a group; with none, all rows are one group.
        step: Who asks.
        note: Where `fitted_on` and `leaks` are written.

    Raises:
        ConfigError: If the query does not fit.
        DataError: If a group has no row to learn from.
    """
    chosen = choose_samples(table, samples, step, note)
    codes, names = group_codes(table.metadata, per, step)
    check_channels(table.metadata, codes, names, step)
    if not per and not chosen.any():
        query = resolve(samples, note)
        raise DataError(
            f'{step}: no row matches "{query}", so there is nothing to learn from '
            f"({values_asked(table.metadata, query)}); correct the query."
        )
    groups = [Group(n, np.flatnonzero(codes == i), np.flatnonzero((codes == i) & chosen)) for i, n in enumerate(names)]
    empty = [group.name for group in groups if not len(group.fit)]
    if empty:
        raise DataError(
            f'{step}: no row of {listed(empty)} matches "{resolve(samples, note)}", so there is nothing to learn from '
            f"({len(empty)} of {len(groups)} groups by {' and '.join(per) or 'all rows'}); correct 'samples', fit on "
            "all "
            "plates together (per: []), or leave the rows out (step filter)."
        )
    note_fit(table, chosen, samples, note)
    assert note.fitted_on is not None
    note.fitted_on |= {
        "per": list(per),
        "groups": len(groups),
        "smallest_group": min(len(group.fit) for group in groups),
    }
    return groups


def resolve(samples: str, note: Note) -> str:
    """Return the query behind `controls`, and any other as it is."""
    return note.controls if samples == "controls" else samples


def choose_samples(table: FeatureTable, samples: str, step: str, note: Note) -> Mask:
    """Return the rows that a step learns from, (R,).

    Raises:
        ConfigError: If the query does not fit, or `controls` is asked for and not named.
    """
    query = resolve(samples, note)
    if not query:
        raise ConfigError(
            f"{step}: samples is 'controls', but no controls are named; write controls: \"Metadata_control_type == "
            "'negcon'\" at the top of the recipe, or give the query as samples."
        )
    return select_rows(table.metadata, query, step)


def note_fit(table: FeatureTable, chosen: Mask, samples: str, note: Note) -> None:
    """Write down what a step learns from, and what of it a fair test would hide.

    Args:
        table: Rows.
        chosen: The rows that it learns from.
        samples: As the recipe says.
        note: Where to write.
    """
    query = resolve(samples, note)
    note.fitted_on = {"samples": query, "rows": int(chosen.sum()), "of_rows": len(table)}
    unanswered = count_unanswered(table.metadata, query)
    if unanswered:
        note.fitted_on["rows_without_an_answer"] = unanswered
    if note.held_out:
        held = select_rows(table.metadata, note.held_out, "held_out")
        seen = int((held & chosen).sum())
        note.fitted_on["held_out_rows_seen"] = seen
        if seen:
            note.leaks.append(Leak(what="held-out rows", rows=seen, of_rows=int(held.sum()), query=note.held_out))
    if note.controls:
        treated = ~select_rows(table.metadata, note.controls, "controls")
        seen = int((treated & chosen).sum())
        if seen:
            note.leaks.append(
                Leak(what="rows that are no controls", rows=seen, of_rows=int(treated.sum()), query=note.controls)
            )
    if query != "all" and PLATE in table.metadata:
        lost = sorted(set(table.metadata[PLATE].dropna().astype(str)) - set(table.metadata[PLATE][chosen].astype(str)))
        if lost:
            note.remarks.append(f"no row of plate {listed(lost)} is among the rows that it learned from ({query})")


def check_finite(table: FeatureTable, step: str, rows: NDArray[np.int64] | None = None) -> None:
    """Refuse features with missing or infinite values.

    Args:
        table: Rows.
        step: Who asks.
        rows: Positions to look at; all where not given.

    Raises:
        DataError: With the first feature and row, and the remedy.
    """
    values = table.values if rows is None else table.values[rows]
    bad = ~np.isfinite(values)
    if not bad.any():
        return
    counts = bad.sum(0)
    first = int(np.argmax(counts > 0))
    row = int(np.argmax(bad[:, first]))
    row = row if rows is None else int(rows[row])
    raise DataError(
        f"{step}: {int((counts > 0).sum())} features have NaN or infinite values, first '{table.columns[first]}' with "
        f"{int(counts[first])}, at {describe_row(table.metadata, row)}; remove such features (step select_features, "
        "operations: [nan]), fill them (step impute), or leave the rows out (step filter)."
    )


def note_forced_apart(groups: Sequence[Group], rank: int, note: Note) -> None:
    """Write down where fitted rows are too few to say anything about themselves afterwards.

    Whitening with no more rows than directions puts all fitted rows of a group at the same distance from each other,
    whatever they were: the plate can then hardly be told from them, which looks like a success and is none.

    Args:
        groups: With the rows that each was fitted on.
        rank: Directions that were whitened.
        note: Where to write.
    """
    few = [group.name for group in groups if len(group.fit) <= rank + 1]
    if few:
        note.remarks.append(
            f"{listed(few, 3)}: fitted on no more rows than directions, which forces these rows apart; do not judge "
            "plate effects by them"
        )


def without_rounding(spread: Doubles, fit: Doubles) -> Doubles:
    """Return a spread per feature, (F,), that is zero where it is no more than the rounding of the values to float32.

    Args:
        spread: One number per feature, (F,).
        fit: The rows that it comes from, (n, F).
    """
    rounding = float(np.finfo(np.float32).eps) * np.abs(fit).max(0)
    return np.where((np.ptp(fit, axis=0) > 0) & (spread > rounding), spread, 0.0)


def check_spread(spread: Doubles, columns: Sequence[str], group: str, what: str, step: str) -> None:
    """Refuse to divide by a spread of zero.

    Args:
        spread: One number per feature, (F,).
        columns: Names of the features.
        group: Which rows.
        what: What the spread is, for example `standard deviation`.
        step: Who asks.

    Raises:
        DataError: With the features and the remedy.
    """
    flat = [name for name, value in zip(columns, spread, strict=True) if not value > 0]
    if flat:
        raise DataError(
            f"{step}: {len(flat)} features have a {what} of zero among the rows that {group} is fitted on "
            f"({listed(flat, 3)}); remove them first (step select_features, operations: [constant], same samples and "
            "per)."
        )


def in_order(metadata: pd.DataFrame, chosen: Mask) -> pd.DataFrame:
    """Return the chosen rows, numbered anew."""
    return metadata[chosen].reset_index(drop=True)


def batches(n: int, size: int) -> Iterator[slice]:
    """Yield slices of at most `size` rows that cover `n` rows."""
    for begin in range(0, n, size):
        yield slice(begin, min(begin + size, n))
