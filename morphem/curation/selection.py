"""What curation kept and what it removed."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

import pandas as pd

COUNTS = ("study", "step", "before", "removed", "after")
"""Columns of the table of counts."""


@dataclass
class Selection:
    """What a recipe left of one study.

    Attributes:
        study: Its name.
        n_found: Images before the first step.
        kept: Names of the images that stay, in order.
        removed: For each step that ran, in order, the names of the images that it removed.
        remarks: Sentences on images that a step could not judge and therefore kept.
    """

    study: str
    n_found: int
    kept: list[str]
    removed: dict[str, list[str]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row per step with `study`, `step` and the numbers of images `before`, `removed` and `after`."""
        rows, before = [], self.n_found
        for step, names in self.removed.items():
            after = before - len(names)
            rows.append(dict(zip(COUNTS, (self.study, step, before, len(names), after), strict=True)))
            before = after
        return rows

    @property
    def counts(self) -> pd.DataFrame:
        """The table of counts: one row per step."""
        return pd.DataFrame(self.rows, columns=list(COUNTS))

    def then(self, later: "Selection") -> "Selection":
        """Return what this selection and a later one on the images that it kept did together.

        Args:
            later: Of the same study.
        """
        removed = {**self.removed, **later.removed}
        return Selection(self.study, self.n_found, later.kept, removed, [*self.remarks, *later.remarks])

    def to_json(self) -> dict[str, Any]:
        """Return the selection as dictionaries, lists, texts and numbers."""
        return {
            "study": self.study,
            "n_found": self.n_found,
            "kept": self.kept,
            "removed": self.removed,
            "counts": self.rows,
            "remarks": self.remarks,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Return the selection that `to_json` described."""
        return cls(data["study"], data["n_found"], data["kept"], data["removed"], data["remarks"])


def table_of(selections: Iterable[Selection]) -> pd.DataFrame:
    """Return the counts of several studies in one table.

    Args:
        selections: One per study.
    """
    return pd.DataFrame([row for selection in selections for row in selection.rows], columns=list(COUNTS))
