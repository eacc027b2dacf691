"""Cell health: how many of seventy measured readouts of a cell line's health can be predicted from its profiles.

Source: Way et al. 2021, Mol. Biol. Cell 32:995 (the data); uniDINO, Comput. Struct. Biotechnol. J. 2025, and
Bayer-Group/uniDINO at 03c5ee3 (the score).
Paper and code differ: the paper clips R2 at zero and counts readouts at or above a threshold, the code does neither;
and the code shares one random state among parallel jobs, so that its folds depend on their timing. Here every readout
has folds and forests of its own seed.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem import rng
from morphem.benchmarks.base import Benchmark, Column, FeatureRecipe, Inputs, Part, PublishedRow, SideTable, column
from morphem.benchmarks.base import make_table as _table
from morphem.benchmarks.bootstrap import generator, interval
from morphem.benchmarks.score import Interval, Score
from morphem.benchmarks.splits import group_folds
from morphem.benchmarks.well_rows import plate_columns
from morphem.errors import ConfigError, DataError
from morphem.features import FeatureTable

CELL_LINES = ("A549", "ES2", "HCC44")
THRESHOLDS = np.arange(200) * 0.005
"""0, 0.005, ..., 0.995."""
_PLATE = "Metadata_Plate"
_KEYS = ("Metadata_Gene", "Metadata_Cell_Line", "Metadata_Guide")
Doubles = NDArray[np.float64]


def _row(model: str, values: tuple[float, float, float]) -> PublishedRow:
    scores = dict(zip((f"auc_s_{line.lower()}" for line in CELL_LINES), values, strict=True))
    return PublishedRow(model, scores, "uniDINO, cell health")


class CellHealth(Benchmark):
    """Cell health: do profiles of images predict what seventy other assays measured?

    Args:
        variant: `code` made the published numbers; `paper` follows the text.
        seed: Of folds, forests and bootstrap.
        n_trees: At least 1; published: 100.
        n_folds: At least 2; published: 5.
        normalise: `mad_per_plate` scales every plate by the median and the deviation of all its wells first, where the
            table names plates, as published; `none` leaves profiles as they are.
        n_jobs: Processes that fit forests; no influence on the score.

    Raises:
        ConfigError: If a number is out of range.
    """

    protocol_version = 1
    title = "Cell health: seventy readouts predicted from profiles of CRISPR knock-outs"
    measures = (
        "Cells of three lines had one gene knocked out each, and separate assays measured seventy properties: how "
        "many live, how many divide, how many are damaged. Random forests learn each property from the mean profile "
        "of a knock-out and predict those of knock-outs that they have not seen. The score counts how many properties"
        " can be predicted how well."
    )
    reading = (
        "AUC_S is the area under the share of readouts whose R2 exceeds a threshold, over thresholds from 0 to 1: 0 "
        "when nothing can be predicted, about 0.2 to 0.26 for CellProfiler and uniDINO, 1 at best."
    )
    source = "Way et al. 2021, Mol. Biol. Cell 32:995; Bayer-Group/uniDINO at 03c5ee3"
    parts = (
        Part(
            "table",
            "one row per well or per knock-out; rows of one gene, line and guide are averaged",
            (
                Column("Metadata_Gene", "gene that was knocked out", ("Metadata_gene_name",)),
                Column("Metadata_Cell_Line", "cell line", ("Metadata_cell_line", "Metadata_cell_id")),
                Column("Metadata_Guide", "guide", ("Metadata_guide", "Metadata_pert_name")),
                Column(_PLATE, "plate", required=False),
            ),
            recipe=FeatureRecipe(unit="tile", tile_size_px=224, aggregate="well"),
        ),
    )
    side_tables = (
        SideTable(
            "readouts",
            ("cell_health*.csv", "cell_health*.csv.gz", "cell_health*.tsv", "cell_health*.parquet"),
            "one row per gene, line and guide (the columns above), and a column of numbers for every readout",
            _KEYS,
        ),
    )
    score_names: ClassVar[Mapping[str, str]] = {
        "auc_s": "mean over cell lines of the area under the share of readouts with R2 above a threshold",
        **{f"auc_s_{line.lower()}": f"the same on {line}" for line in CELL_LINES},
        "median_r2": "median R2 over readouts and lines",
    }
    variants: ClassVar[Mapping[str, str]] = {
        "code": "mean R2 of folds as it is, counted where it is above the threshold; made the published numbers",
        "paper": "R2 clipped at zero, counted where it is at or above the threshold",
        "by_gene": "as code, but guides of one gene are never on both sides of a fold; ours, and harder",
    }
    published = (_row("uniDINO", (0.198, 0.260, 0.227)), _row("CellProfiler", (0.192, 0.270, 0.199)))
    interval_unit = "readout"
    biology = "Metadata_Gene"
    tiny_finds = 0.3
    tiny_null = 0.1

    def __init__(
        self,
        variant: str | None = None,
        seed: int = 0,
        n_trees: int = 100,
        n_folds: int = 5,
        n_jobs: int = 1,
        normalise: Literal["mad_per_plate", "none"] = "mad_per_plate",
    ) -> None:
        super().__init__(variant, seed)
        if n_trees < 1 or n_folds < 2 or n_jobs < 1:
            raise ConfigError(
                f"cell_health: n_trees={n_trees} and n_jobs={n_jobs} are at least 1, n_folds={n_folds} is at least 2."
            )
        if normalise not in ("mad_per_plate", "none"):
            raise ConfigError(f"cell_health: normalise='{normalise}' is 'mad_per_plate' or 'none'.")
        self.normalise = normalise
        self.n_trees = n_trees
        self.n_folds = n_folds
        self.n_jobs = n_jobs

    def adapt(self, inputs: Inputs) -> Inputs:
        """Scale every plate by all its wells, where plates are known."""
        if self.normalise == "none" or _PLATE not in inputs.table.metadata:
            return inputs
        from morphem.profiles import MadRobustize

        return Inputs({"table": MadRobustize(per=plate_columns(inputs.table))(inputs.table)}, inputs.side)

    def score(self, inputs: Inputs) -> Score:
        """Predict every readout of every cell line from profiles."""
        consensus, metadata = _consensus(inputs.table)
        readouts = inputs.side["readouts"]
        names = [str(name) for name in readouts.columns if name not in _KEYS and readouts[name].dtype.kind in "fiu"]
        if not names:
            raise DataError("cell_health: the table of readouts has no column of numbers besides gene, line and guide.")
        doubled = readouts.duplicated(list(_KEYS))
        if doubled.any():
            raise DataError(
                f"cell_health: the table of readouts has {int(doubled.sum())} repeated knock-outs; keep one."
            )
        joined = metadata.reset_index().merge(readouts.astype(dict.fromkeys(_KEYS, str)), on=list(_KEYS), how="inner")
        if not len(joined):
            raise DataError(
                "cell_health: no gene, line and guide of the profiles is among the readouts; spell them alike."
            )
        values: dict[str, float] = {}
        details: dict[str, Any] = {}
        intervals: dict[str, Interval] = {}
        missing: dict[str, str] = {}
        by_line: dict[str, Doubles] = {}
        counts = {"knock_outs": len(metadata), "matched": len(joined)}
        for line in CELL_LINES:
            name = f"auc_s_{line.lower()}"
            part = joined[joined["Metadata_Cell_Line"] == line].sort_values(list(_KEYS))
            if len(part) < 2 * self.n_folds:
                missing[name] = f"{line} has {len(part)} matched knock-outs; {2 * self.n_folds} are needed"
                continue
            r2, left_out = self._line(consensus[part["index"].to_numpy()], part, names, line)
            if not r2:
                missing[name] = f"no readout of {line} varies"
                continue
            scores = np.asarray([r2[key] for key in sorted(r2)])
            by_line[line] = scores
            values[name] = self._auc(scores)
            intervals[name] = self._interval(scores)
            details[line] = {"r2": r2, "left_out": left_out}
        if not values:
            raise DataError(f"cell_health: no cell line can be scored: {next(iter(missing.values()))}.")
        every = np.concatenate(list(by_line.values()))
        values["auc_s"] = float(np.mean([values[f"auc_s_{line.lower()}"] for line in by_line]))
        values["median_r2"] = float(np.median(every))
        intervals["auc_s"] = self._interval(every)
        return Score(
            values=values,
            details=details,
            intervals=intervals,
            rules={
                "split": f"{self.n_folds} shuffled folds over the "
                + ("genes" if self.variant == "by_gene" else "knock-outs, so guides of a gene may be on both sides,")
                + " of a line, for every readout its own",
                "regression": f"random forest of {self.n_trees} trees, leaves of 1 % of the rows or more; mean R2 of "
                "folds",
                "normalisation": self.normalise
                if _PLATE in inputs.table.metadata
                else "none: the table names no plates",
                "counting": self.variants[self.variant],
            },
            counts=counts,
            missing=missing,
        )

    def _line(
        self, profiles: Doubles, part: pd.DataFrame, names: list[str], line: str
    ) -> tuple[dict[str, float], dict[str, str]]:
        """Return the mean R2 of every readout, and why others were left out."""
        from joblib import Parallel, delayed

        jobs: list[tuple[str, NDArray[np.bool_]]] = []
        left_out: dict[str, str] = {}
        for name in names:
            known = part[name].notna().to_numpy() & np.isfinite(part[name].to_numpy(np.float64))
            truth = part[name].to_numpy(np.float64)[known]
            if known.sum() < 2 * self.n_folds:
                left_out[name] = f"{int(known.sum())} values; {2 * self.n_folds} are needed"
            elif not np.ptp(truth):
                left_out[name] = f"all {int(known.sum())} values are alike"
            else:
                jobs.append((name, known))
        found = Parallel(n_jobs=self.n_jobs)(
            delayed(forest_r2)(
                profiles[known],
                part[name].to_numpy(np.float64)[known],
                n_trees=self.n_trees,
                n_folds=self.n_folds,
                seed=rng.mix(self.seed, "cell_health", line, name) & 0x7FFFFFFF,
                genes=part["Metadata_Gene"].to_numpy(object)[known] if self.variant == "by_gene" else None,
            )
            for name, known in jobs
        )
        return {name: float(value) for (name, _), value in zip(jobs, found, strict=True)}, left_out

    def _auc(self, r2: Doubles) -> float:
        return auc_of_shares(r2, clip=self.variant == "paper", inclusive=self.variant == "paper")

    def _interval(self, r2: Doubles) -> Interval:
        ordered = np.sort(r2)
        return interval(lambda drawn: self._auc(ordered[drawn]), len(r2), self.interval_unit, seed=self.seed)

    @classmethod
    def tiny_instance(cls) -> "CellHealth":
        """Return the protocol with small forests."""
        return cls(n_trees=15, n_folds=3)

    @classmethod
    def tiny(cls, seed: int, effect: float) -> Inputs:
        """One line, 45 knock-outs of two wells; six readouts are sums of two features as far as the effect goes."""
        random = generator(seed, "cell_health")
        hidden = random.normal(size=(45, 4))
        noise = random.normal(size=(45, 2, 4))
        strength = min(effect, 1e6)
        rows = [
            {"Metadata_Gene": f"g{i}", "Metadata_Cell_Line": "A549", "Metadata_Guide": f"g{i}-1"} for i in range(45)
        ]
        profiles = (3 * strength * hidden[:, None] + noise).reshape(90, 4) / max(1.0, strength)
        metadata = pd.DataFrame(rows).loc[np.repeat(np.arange(45), 2)]
        readouts = pd.DataFrame(rows)
        for i in range(6):
            readouts[f"readout{i}"] = hidden[:, i % 4] + 0.1 * random.normal(size=45)
        return Inputs({"table": _table(profiles, metadata)}, {"readouts": readouts})


def forest_r2(
    profiles: Doubles, truth: Doubles, *, n_trees: int, n_folds: int, seed: int, genes: NDArray[Any] | None = None
) -> float:
    """Return the mean over folds of R2 of a random forest on the rows it has not seen.

    Args:
        profiles: (N, F).
        truth: (N,), finite, not all alike.
        n_trees: Trees of a forest.
        n_folds: Shuffled folds.
        seed: Of folds and trees.
        genes: Of the rows, (N,), kept together in folds; none: every row is dealt alone.
    """
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.metrics import r2_score
    from sklearn.model_selection import KFold

    scores = []
    folds = (
        KFold(n_folds, shuffle=True, random_state=seed).split(profiles)
        if genes is None
        else group_folds(np.zeros(len(truth), np.int64), genes, n_folds, seed=seed)
    )
    for train, test in folds:
        forest = RandomForestRegressor(n_trees, min_samples_leaf=0.01, random_state=seed, n_jobs=1)
        forest.fit(profiles[train], truth[train])
        if np.ptp(truth[test]):  # R2 has no meaning where nothing varies
            scores.append(r2_score(truth[test], forest.predict(profiles[test])))
    if not scores:
        raise DataError("cell_health: a readout varies in no fold; give more knock-outs.")
    return float(np.mean(scores))


def auc_of_shares(r2: Doubles, *, clip: bool, inclusive: bool) -> float:
    """Return the area under the share of readouts above a threshold, thresholds 0 to 0.995, by trapezoids.

    Args:
        r2: Of the readouts, (U,).
        clip: Raise negative values to zero first.
        inclusive: Count readouts at the threshold too.
    """
    values = np.maximum(r2, 0.0) if clip else r2
    above = values[:, None] >= THRESHOLDS if inclusive else values[:, None] > THRESHOLDS
    return float(np.trapezoid(above.mean(0), THRESHOLDS))


def _consensus(table: FeatureTable) -> tuple[Doubles, pd.DataFrame]:
    """Return the mean profile of every gene, line and guide, sorted by name, and their names."""
    keys = pd.DataFrame({key: column(table, key).astype(str) for key in _KEYS})
    names = keys.drop_duplicates().sort_values(list(_KEYS)).reset_index(drop=True)
    number = keys.merge(names.reset_index(), on=list(_KEYS), how="left", sort=False)["index"].to_numpy()
    sums = np.zeros((len(names), table.values.shape[1]))
    np.add.at(sums, number, table.values.astype(np.float64))
    return sums / np.bincount(number, minlength=len(names))[:, None], names
