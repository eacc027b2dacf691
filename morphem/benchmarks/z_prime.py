"""Z'-score of embeddings: are two groups of wells far apart, compared with how much wells of each vary?

Source: Hurry et al. 2025 (Campfire) and GSK-AI/campfire at b034f8d; Z' is that of Zhang, Chung and Oldenburg 1999,
J. Biomol. Screen. 4:67; the robust mean is Algorithm A of the Analytical Methods Committee 1989, Analyst 114:1693.
Differs from it: the paper and its code take the direction between two groups from the same wells that they then score.
In many dimensions that alone makes noise look separated (on noise of 1,024 features, eight wells a group give a median
Z' of 0.64), so here half of the wells give the direction and the other half the score, and what shuffled groups give
stands beside every score. The published forms exist by name. No published number could be matched, as the fine-tuned
encoders are not public, so the default is the one that noise cannot pass.
"""

from collections.abc import Mapping
from itertools import permutations
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem.benchmarks.base import Benchmark, Column, FeatureRecipe, Inputs, Part, column, make_table, take
from morphem.benchmarks.bootstrap import generator, interval
from morphem.benchmarks.checks import is_missing
from morphem.benchmarks.mixing import content_order
from morphem.benchmarks.neighbours import Ints, codes
from morphem.benchmarks.score import Score
from morphem.benchmarks.separation import (
    FLOOR,
    halves_of_units,
    plain_moments,
    projected,
    robust_moments,
    shuffled,
    z_prime,
)
from morphem.benchmarks.tiny import planted
from morphem.benchmarks.well_rows import check_wells
from morphem.errors import ConfigError, DataError

_GROUP, _PLATE = "Metadata_Group", "Metadata_Plate"
Doubles = NDArray[np.float64]


class ZPrime(Benchmark):
    """Z': would a screen tell these groups of wells apart?

    Args:
        variant: See `variants`.
        seed: Of halves, of the null and of the interval.
        halves: `wells` divides the wells of each group at random; `plates` keeps plates together, so that a plate's own
            look cannot help. The published forms divide nothing.
        n_repeats: Divisions into halves, whose median counts; at least 1.
        n_null: Draws of the null, at least 20.
        max_groups: More groups are refused, because every ordered pair is scored; at least 2.

    Raises:
        ConfigError: If a setting is none of its values or out of range.
    """

    protocol_version = 1
    title = "Z'-score of embeddings: separation of groups of wells, with its null"
    measures = (
        "A screen works if control wells of one kind never look like those of another. Wells are projected on the "
        "line between two groups' means, and Z' compares the gap of the means with three deviations on both sides. "
        "The line comes from half of the wells and the score from the other half; with the line from the same wells "
        "even noise looks separated, the more so the longer the features."
    )
    reading = (
        "1 is perfect, above 0.5 is an excellent assay, 0 means that the bands of three deviations touch, below 0 they "
        "overlap. Always compare with `null`, what groups of shuffled wells give: strongly negative here, but far "
        "above 0 in the published form for few wells. Never compare that form between features of different length."
    )
    source = "Hurry et al. 2025 (Campfire); GSK-AI/campfire at b034f8d; Zhang et al. 1999, J. Biomol. Screen. 4:67"
    parts = (
        Part(
            "table",
            "one row per well, of two groups or more, for example negative and positive controls of two cell models",
            (
                Column(
                    _GROUP,
                    "group of wells; wells without one are left out",
                    ("Metadata_group", "Metadata_control_type", "Metadata_Control", "Metadata_Compound"),
                    missing_allowed=True,
                ),
                Column(_PLATE, "plate", required=False),
            ),
            recipe=FeatureRecipe(
                unit="tile",
                tile_size_px=112,
                aggregate="well",
                differs=(
                    "the published encoders were fine-tuned on wells of these plates with triplets, in code that is "
                    "not public",
                ),
            ),
        ),
    )
    score_names: ClassVar[Mapping[str, str]] = {
        "z_prime": "median Z' over ordered pairs of groups",
        "null": "the same for shuffled groups, median of the draws",
        "share_above_null": "share of ordered pairs whose Z' exceeds 95 % of its null",
        "worst": "smallest Z' of an ordered pair",
    }
    variants: ClassVar[Mapping[str, str]] = {
        "cross_fit": "direction from one half, score from the other, plain mean and deviation; ours, safe by default",
        "published_code": "direction from the wells that are scored, robust mean and deviation; as the code, inflated",
        "published_paper": "direction from the wells that are scored, plain mean and deviation; as the text, inflated",
    }
    interval_unit = "pair"
    biology = _GROUP
    tiny_finds = 0.4
    tiny_null = -0.2

    def __init__(
        self,
        variant: str | None = None,
        seed: int = 0,
        halves: Literal["wells", "plates"] = "wells",
        n_repeats: int = 10,
        n_null: int = 100,
        max_groups: int = 50,
    ) -> None:
        super().__init__(variant, seed)
        if halves not in ("wells", "plates") or n_repeats < 1 or n_null < 20 or max_groups < 2:
            raise ConfigError(
                f"z_prime: halves='{halves}' is 'wells' or 'plates', n_repeats={n_repeats} at least 1, n_null={n_null} "
                f"at least 20, max_groups={max_groups} at least 2."
            )
        self.halves = halves
        self.n_repeats = n_repeats
        self.n_null = n_null
        self.max_groups = max_groups

    def score(self, inputs: Inputs) -> Score:
        """Score every ordered pair of groups, and its null."""
        check_wells(inputs.table, "z_prime", directions=False)
        table = take(inputs.table, ~is_missing(inputs.table.metadata[_GROUP]))
        table = take(table, content_order(table, (_GROUP, _PLATE)))
        groups = column(table, _GROUP).astype(str)
        names = sorted(set(groups))
        if not 2 <= len(names) <= self.max_groups:
            raise DataError(
                f"z_prime: {len(names)} groups of wells; it takes 2 to max_groups={self.max_groups}; choose another "
                "column with --column Group=NAME."
            )
        units = self._units(table.metadata, groups, names)
        values = table.values.astype(np.float64)
        found: dict[tuple[str, str], float] = {}
        nulls: dict[tuple[str, str], Doubles] = {}
        for reference, target in permutations(names, 2):
            rows = np.flatnonzero((groups == reference) | (groups == target))
            is_target = groups[rows] == target
            random = generator(self.seed, "z_prime", reference, target)
            found[reference, target] = self._z(values[rows], is_target, units[rows], random, self.n_repeats)
            nulls[reference, target] = np.asarray(
                [
                    self._z(values[rows], shuffled(is_target, units[rows], random), units[rows], random, 1)
                    for _ in range(self.n_null)
                ]
            )
        scores = np.asarray(list(found.values()))
        bars = np.asarray([np.quantile(null, 0.95) for null in nulls.values()])
        pairs = [
            {
                "reference": pair[0],
                "target": pair[1],
                "z_prime": found[pair],
                "null_median": float(np.median(nulls[pair])),
                "null_95": float(bar),
                "p_value": float((1 + (nulls[pair] >= found[pair]).sum()) / (1 + self.n_null)),
            }
            for pair, bar in zip(found, bars, strict=True)
        ]
        return Score(
            values={
                "z_prime": float(np.median(scores)),
                "null": float(np.median(np.concatenate(list(nulls.values())))),
                "share_above_null": float((scores > bars).mean()),
                "worst": float(scores.min()),
            },
            details={"pairs": pairs, "floor": FLOOR, "n_features": values.shape[1]},
            intervals={
                "z_prime": interval(
                    lambda drawn: float(np.median(scores[drawn])), len(scores), self.interval_unit, seed=self.seed
                )
            },
            rules={
                "split": f"halves of {self.halves}, {self.n_repeats} times, median"
                if self.variant == "cross_fit"
                else "none: direction and score are from the same wells, which inflates the score",
                "null": f"{self.n_null} draws of shuffled groups of the same sizes",
                "p_value": f"(1 + draws at or above the score) / (1 + {self.n_null}), for every ordered pair",
                "variant": self.variants[self.variant],
            },
            counts={
                "wells": len(table),
                "wells_without_group": len(inputs.table) - len(table),
                "groups": len(names),
                **{f"wells_{n}": int((groups == n).sum()) for n in names},
            },
            notes=_notes(self.variant, self.halves, table.metadata),
        )

    def _units(self, metadata: pd.DataFrame, groups: NDArray[Any], names: list[str]) -> Ints:
        """Return what is kept together when wells are divided, as a number per well."""
        if self.halves == "plates" and _PLATE not in metadata:
            raise DataError("z_prime: halves='plates' needs Metadata_Plate; name it, or take halves='wells'.")
        units = codes(metadata[_PLATE].tolist()) if self.halves == "plates" else np.arange(len(metadata))
        least = 2 if self.variant != "cross_fit" or self.halves == "plates" else 4
        for name in names:
            count = len(np.unique(units[groups == name]))
            if count < least:
                raise DataError(
                    f"z_prime: the group '{name}' has {count} {self.halves}, but {least} are needed; leave it out."
                )
        return np.asarray(units, np.int64)

    def _z(
        self, values: Doubles, is_target: NDArray[np.bool_], units: Ints, random: np.random.Generator, repeats: int
    ) -> float:
        if self.variant != "cross_fit":
            moments = robust_moments if self.variant == "published_code" else plain_moments
            return z_prime(projected(values, is_target, values, is_target), is_target, moments)
        scores = []
        for _ in range(repeats):
            half = halves_of_units(is_target, units, random)
            for side in (False, True):
                learn, test = half == side, half != side
                p = projected(values[learn], is_target[learn], values[test], is_target[test])
                scores.append(z_prime(p, is_target[test], plain_moments))
        return float(np.median(scores))

    @classmethod
    def tiny_instance(cls) -> "ZPrime":
        """Return the protocol with a small null."""
        return cls(n_repeats=3, n_null=20)

    @classmethod
    def tiny(cls, seed: int, effect: float) -> Inputs:
        """Negative and positive controls of two cell models, twelve wells each on three plates."""
        metadata = pd.DataFrame(
            [
                {_GROUP: f"{kind}_{model}", _PLATE: f"P{well % 3}"}
                for kind in ("neg", "pos")
                for model in ("M1", "M2")
                for well in range(12)
            ]
        )
        values = planted(list(metadata[_GROUP]), seed=seed, effect=4 * effect, dim=48)
        return Inputs({"table": make_table(values, metadata)})


def _notes(variant: str, halves: str, metadata: pd.DataFrame) -> tuple[str, ...]:
    if variant != "cross_fit":
        return (
            "This form is inflated by the number of features; compare it with its null, and never between features of "
            "different length.",
        )
    if halves == "wells" and _PLATE in metadata:
        return ("Wells of one plate are in both halves; halves='plates' keeps them together.",)
    return ()
