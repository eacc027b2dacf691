"""Which rows may be a row's neighbour: exclusion rules with the names of the papers, in their words and in their code.

A rule is a disjunction of clauses; a clause names columns that must all be equal. `NSC`: `(("compound",),)` excludes
every row of the query's compound. The codes of uniDINO and of Kim et al. keep neighbours of the same batch if their
label differs, which their words exclude; both forms exist here (`nsb`, `nsb_words`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from morphem.errors import ConfigError, DataError, unknown_name

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Exclusion:
    """Rows that a query's neighbour must not be; the query itself never is.

    Attributes:
        name: Short name.
        clauses: A candidate is excluded if, for any clause, it equals the query in all columns of the clause. Columns
            are roles: `label`, `compound`, `batch`, `source`, `plate`, `well`.
        words: One sentence.
    """

    name: str
    clauses: tuple[tuple[str, ...], ...]
    words: str

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles that the clauses name, sorted."""
        return tuple(sorted({role for clause in self.clauses for role in clause}))


EXCLUSIONS: Mapping[str, Exclusion] = {
    rule.name: rule
    for rule in (
        Exclusion("nn", (), "nothing but the query itself is excluded"),
        Exclusion("nsc", (("compound",),), "not the same compound"),
        Exclusion(
            "nsb", (("batch", "label"),), "not the same label in the same batch (other labels of the batch stay)"
        ),
        Exclusion("nsb_words", (("batch",),), "not the same batch"),
        Exclusion(
            "nscb", (("compound",), ("batch", "label")), "not the same compound, nor the same label in its batch"
        ),
        Exclusion("nscb_words", (("compound",), ("batch",)), "neither the same compound nor the same batch"),
        Exclusion("nss", (("label", "source"),), "not the same label from the same source (other labels stay)"),
        Exclusion("nss_words", (("source",),), "not the same source"),
        Exclusion(
            "nspw", (("well",), ("label", "plate")), "not the same well position, nor the same label on its plate"
        ),
        Exclusion("nspw_words", (("well",), ("plate",)), "neither the same well position nor the same plate"),
        Exclusion(
            "nscp", (("compound",), ("label", "plate")), "not the same compound, nor the same label on its plate"
        ),
        Exclusion("nscp_words", (("compound",), ("plate",)), "neither the same compound nor the same plate"),
        Exclusion(
            "nsbp", (("well",), ("batch", "label")), "not the same well position, nor the same label in its batch"
        ),
        Exclusion("nsbp_words", (("batch",), ("compound",)), "neither the same batch nor the same perturbation"),
    )
}
"""Source: facts of uniDINO's and Kim's released code and of their papers' words (peer models, 6.0)."""


def exclusion(name: str) -> Exclusion:
    """Return a rule by name.

    Raises:
        ConfigError: If there is none, with the nearest.
    """
    if name not in EXCLUSIONS:
        raise ConfigError(unknown_name("exclusion rule", name, EXCLUSIONS))
    return EXCLUSIONS[name]


def codes(values: Sequence[Any] | NDArray[Any]) -> Ints:
    """Number the values of a column by their sorted text, (R,).

    Args:
        values: Without missing values.
    """
    return np.unique(np.asarray([str(value) for value in values]), return_inverse=True)[1].reshape(-1).astype(np.int64)


def clause_codes(rule: Exclusion, columns: Mapping[str, Sequence[Any] | NDArray[Any]]) -> Ints:
    """Return one code per clause and row, (K, R): rows are excluded for each other where any code is equal.

    Args:
        rule: The rule.
        columns: Values by role, R each.

    Raises:
        DataError: If a role has no column.
    """
    lost = [role for role in rule.roles if role not in columns]
    if lost:
        raise DataError(f"the rule {rule.name} ({rule.words}) needs {', '.join(lost)}; name their columns.")
    n_rows = len(next(iter(columns.values()))) if columns else 0
    result = np.zeros((len(rule.clauses), n_rows), np.int64)
    for number, clause in enumerate(rule.clauses):
        result[number] = codes(list(zip(*(map(str, columns[role]) for role in clause), strict=True)))
    return result


def excluded(query: Ints, candidates: Ints) -> NDArray[np.bool_]:
    """Return which candidates are excluded for which queries, (Q, C).

    Args:
        query: Clause codes of the queries, (K, Q).
        candidates: Clause codes of the candidates, (K, C), numbered together with those of the queries.
    """
    result = np.zeros((query.shape[1], candidates.shape[1]), bool)
    for mine, theirs in zip(query, candidates, strict=True):
        result |= mine[:, None] == theirs[None, :]
    return result
