"""Z'-score of embeddings: are two groups of wells far apart, compared with how much wells of each vary?

Source: Hurry et al. 2025 (Campfire) and GSK-AI/campfire at b034f8d; Z' is that of Zhang, Chung and Oldenburg 1999,
J. Biomol. Screen. 4:67; the robust mean is Algorithm A of the Analytical Methods Committee 1989, Analyst 114:1693.
Differs from it: the paper and its code take the direction between two groups from the same wells that they then score.
In many dimensions that alone makes noise look separated (on noise of 1,024 features, eight wells a group give a median
Z' of 0.64), so here half of the wells give the direction and the other half the score, and what shuffled groups give
stands beside every score. The published forms exist by name. No published number could be matched, as the fine-tuned
encoders are not public, so the default is the one that noise cannot pass.
"""

from collections.abc import Callable, Mapping
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
from morphem.benchmarks.tiny import planted
from morphem.benchmarks.well_rows import check_wells
from morphem.errors import ConfigError, DataError

FLOOR = -100.0
"""Z' of groups whose means fall together tends to minus infinity; all below this count as this."""
_GROUP, _PLATE = "Metadata_Group", "Metadata_Plate"
Doubles = NDArray[np.float64]
Moments = Callable[[Doubles], tuple[float, float]]


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


def projected(
    learn: Doubles, learn_target: NDArray[np.bool_], test: Doubles, test_target: NDArray[np.bool_]
) -> Doubles:
    """Return the place of wells on the line from the reference's mean (0) to the target's mean (1), (T,).

    The line comes from the wells to learn from; the wells to test on are measured from their own reference's mean.

    Args:
        learn: (M, F).
        learn_target: Which are of the target group, (M,).
        test: (T, F).
        test_target: Which are of the target group, (T,).
    """
    direction = learn[learn_target].mean(0) - learn[~learn_target].mean(0)
    length = float(direction @ direction)
    return np.asarray((test - test[~test_target].mean(0)) @ direction / (length if length > 0 else 1.0), np.float64)


def z_prime(places: Doubles, is_target: NDArray[np.bool_], moments: Moments) -> float:
    """Return 1 - 3 (deviation of reference + deviation of target) / gap of means; at least `FLOOR`.

    Args:
        places: On the line, (R,).
        is_target: (R,).
        moments: Gives mean and deviation.
    """
    (mean_r, deviation_r), (mean_t, deviation_t) = moments(places[~is_target]), moments(places[is_target])
    gap, spread = abs(mean_r - mean_t), 3 * (deviation_r + deviation_t)
    if gap <= 1e-12:
        return FLOOR
    return max(FLOOR, 1 - spread / gap)


def plain_moments(values: Doubles) -> tuple[float, float]:
    """Return mean and deviation (n - 1)."""
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0


def robust_moments(values: Doubles, tolerance: float = 1e-4, max_rounds: int = 1000) -> tuple[float, float]:
    """Return mean and deviation after winsorising at 1.5 deviations until they stand still.

    Each round clips values to mean +- 1.5 sqrt((n - 1) / n) deviation, and divides the variance of what comes out by
    0.778, which makes up for the clipping of a normal distribution. It starts from the median and 1.4826 times the
    median absolute deviation.

    Args:
        values: (R,).
        tolerance: Change of mean and deviation, relative to the deviation, at which it stops.
        max_rounds: At most.
    """
    mean = float(np.median(values))
    deviation = 1.4826 * float(np.median(np.abs(values - mean))) or plain_moments(values)[1]
    for _ in range(max_rounds):
        if deviation == 0:
            break
        reach = 1.5 * np.sqrt((len(values) - 1) / len(values)) * deviation
        clipped = np.clip(values, mean - reach, mean + reach)
        new_mean, new_deviation = float(clipped.mean()), float(np.sqrt(clipped.var(ddof=1) / 0.778))
        moved = max(abs(new_mean - mean), abs(new_deviation - deviation)) / deviation
        mean, deviation = new_mean, new_deviation
        if moved < tolerance:
            break
    return mean, deviation


def halves_of_units(is_target: NDArray[np.bool_], units: Ints, random: np.random.Generator) -> NDArray[np.bool_]:
    """Return which half every well is in, (R,): units stay whole, and each group's are divided evenly.

    A unit that holds wells of both groups is on one side for both.

    Args:
        is_target: (R,).
        units: (R,).
        random: Draws.

    Raises:
        DataError: If no division leaves both groups on both sides.
    """
    for _ in range(100):
        side = _draw_sides(is_target, units, random)
        half = np.asarray([side[int(unit)] for unit in units], bool)
        if all(len(set(half[is_target == group])) == 2 for group in (False, True)):
            return half
    raise DataError(
        "z_prime: no division of the plates leaves wells of both groups on both sides; add plates, or take "
        "halves='wells'."
    )


def _draw_sides(is_target: NDArray[np.bool_], units: Ints, random: np.random.Generator) -> dict[int, bool]:
    side: dict[int, bool] = {}
    for group in (False, True):
        own = np.unique(units[is_target == group])
        open_units = [int(unit) for unit in random.permutation(own) if int(unit) not in side]
        taken = sum(side[int(unit)] for unit in own if int(unit) in side)
        wanted = max(0, len(own) // 2 - taken)
        side |= {unit: i < wanted for i, unit in enumerate(open_units)}
    return side


def shuffled(is_target: NDArray[np.bool_], units: Ints, random: np.random.Generator) -> NDArray[np.bool_]:
    """Return shuffled groups: within units that hold wells of both groups, or over all wells where none does.

    Args:
        is_target: (R,).
        units: (R,).
        random: Draws.
    """
    result = is_target.copy()
    mixed = [unit for unit in np.unique(units) if len(set(is_target[units == unit])) == 2]
    for rows in [np.flatnonzero(units == unit) for unit in mixed] or [np.arange(len(units))]:
        result[rows] = random.permutation(result[rows])
    return result


def _notes(variant: str, halves: str, metadata: pd.DataFrame) -> tuple[str, ...]:
    if variant != "cross_fit":
        return (
            "This form is inflated by the number of features; compare it with its null, and never between features of "
            "different length.",
        )
    if halves == "wells" and _PLATE in metadata:
        return ("Wells of one plate are in both halves; halves='plates' keeps them together.",)
    return ()
