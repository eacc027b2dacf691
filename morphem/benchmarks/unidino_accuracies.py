"""uniDINO's accuracies: which label has to match at which level, after which exclusions, for each of its data sets.

Source: uniDINO, Comput. Struct. Biotechnol. J. 2025; Bayer-Group/uniDINO at 03c5ee3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOA, COMPOUND = "Metadata_MoA", "Metadata_Compound"
PLATE, WELL, BATCH = "Metadata_Plate", "Metadata_Well", "Metadata_Batch"
ROLES = {"compound": COMPOUND, "batch": BATCH, "source": "Metadata_Source", "plate": PLATE, "well": WELL}
WORDED = ("nsb", "nscb", "nss", "nspw", "nscp")
"""Rules of which code and words differ."""


@dataclass(frozen=True)
class Accuracy:
    """One matching accuracy.

    Attributes:
        rule: Exclusion rule: `nsc`, `nsb`, `nscb`, `nss`, `nspw` or `nscp`.
        label: Canonical column that has to match.
        level: Columns whose rows are averaged to one profile first; none for wells as they are.
        without: Values of the label that are left out.
    """

    rule: str
    label: str
    level: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


_TREATMENT = ("Metadata_Compound", "Metadata_Concentration", "Metadata_Batch")
_IN_ONE_BATCH = ("Cholesterol-lowering", "Kinase inhibitors")  # BBBC021: each of these mechanisms is in one batch alone
ACCURACIES: Mapping[str, Mapping[str, Accuracy]] = {
    "bbbc021": {
        "nsc_treatment": Accuracy("nsc", MOA, _TREATMENT),
        "nsc_well": Accuracy("nsc", MOA),
        "nscb_well": Accuracy("nscb", MOA, without=_IN_ONE_BATCH),
        "nspw_well": Accuracy("nspw", COMPOUND),
    },
    "jump_target2": {
        "nsc_batch": Accuracy("nsc", MOA, ("Metadata_Compound", "Metadata_Batch")),
        "nscb_batch": Accuracy("nscb", MOA, ("Metadata_Compound", "Metadata_Batch")),
        "nsb_well": Accuracy("nsb", COMPOUND),
        "nss_well": Accuracy("nss", COMPOUND),
    },
    "insect": {
        "insect_nsc_treatment": Accuracy("nsc", MOA, _TREATMENT),
        "insect_nsc_well": Accuracy("nsc", MOA),
        "insect_nscp_well": Accuracy("nscp", MOA),
        "insect_nspw_well": Accuracy("nspw", COMPOUND),
    },
}
"""The accuracies of each data set of the paper, by name of the score."""


@dataclass(frozen=True)
class Matches:
    """Whether the nearest neighbour of each profile has its label.

    Attributes:
        hits: (Q,).
        compounds: Of the queries, (Q,).
        labels: Of the queries, (Q,).
        without: Queries without a legal neighbour, which are left out.
    """

    hits: NDArray[np.bool_]
    compounds: NDArray[Any]
    labels: NDArray[Any]
    without: int

    @property
    def share(self) -> float:
        """Accuracy."""
        return float(self.hits.mean())

    def details(self) -> dict[str, Any]:
        """Accuracy by label, and what to compare the score with."""
        by_label = {str(label): float(self.hits[self.labels == label].mean()) for label in np.unique(self.labels)}
        counted_wrong = float(self.hits.sum() / (len(self.hits) + self.without))
        chance = float((np.unique(self.labels, return_counts=True)[1] / len(self.labels)).max())
        return {
            "by_label": by_label,
            "accuracy_if_profiles_without_candidate_count_as_wrong": counted_wrong,
            "largest_class": chance,
        }
