"""Campfire's split of JUMP-CP wells: plates and compounds that training has seen or not, each shift alone.

Source: Hurry et al. 2025 (Campfire); GSK-AI/campfire at b034f8d, configuration and split script.
Differs from it: draws are by name with a generator of their own, so the order of rows, the pandas version and other
random numbers change nothing; hence the wells drawn are others than those of the authors, whose list is not published.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem import rng
from morphem.benchmarks.base import column
from morphem.benchmarks.checks import is_missing
from morphem.errors import ConfigError, DataError, MorphemError, unknown_name
from morphem.features import FeatureTable
from morphem.profiles.metadata_files import read_metadata

_NAMES = ("Metadata_Plate", "Metadata_Well", "Metadata_Compound")

CONTROL_COMPOUNDS = (
    "JCP2022_033924",  # DMSO
    "JCP2022_085227",
    "JCP2022_037716",
    "JCP2022_025848",
    "JCP2022_046054",
    "JCP2022_035095",
    "JCP2022_064022",
    "JCP2022_050797",
    "JCP2022_012818",
)
"""The nine classes of the probe of controls: DMSO and eight positive controls."""
HELD_OUT_PLATES = ("JCPQC051", "JCPQC052", "JCPQC053", "JCPQC054", "JCPQC034")
SPLITS = ("train", "val", "test", "ood_plate", "ood_compound", "ood_both", "unused")
"""What a well is for. `ood_plate`: a known compound on an unseen plate; `ood_compound`: an unseen compound on a known
plate; `ood_both`; `unused`: a further well of a compound on a plate of which one was drawn."""


@dataclass(frozen=True)
class SplitSettings:
    """How wells are divided.

    Attributes:
        held_out_plates: Plates that training never sees.
        n_held_out_compounds: Compounds that training never sees, drawn among those that are no controls.
        controls: Compounds that are never held out.
        n_train: Plates of every compound to learn from; each compound draws its own.
        n_val: Plates of every compound to validate on; the rest is tested.
        compound_share: Share of the wells of COMPOUND plates that join training. The paper says 0.5, the configuration
            0.6.
        seed: Of all draws. Published: 10.

    Raises:
        ConfigError: If a number is out of range.
    """

    held_out_plates: tuple[str, ...] = HELD_OUT_PLATES
    n_held_out_compounds: int = 60
    controls: tuple[str, ...] = CONTROL_COMPOUNDS
    n_train: int = 14
    n_val: int = 2
    compound_share: float = 0.6
    seed: int = 10

    def __post_init__(self) -> None:
        """Check the numbers."""
        if min(self.n_held_out_compounds, self.n_train, self.n_val) < 0 or not 0 <= self.compound_share <= 1:
            raise ConfigError(
                f"the split takes counts of at least 0 (n_held_out_compounds={self.n_held_out_compounds}, "
                f"n_train={self.n_train}, n_val={self.n_val}) and a compound_share={self.compound_share} from 0 to 1."
            )


def build_split(wells: pd.DataFrame, settings: SplitSettings | None = None) -> pd.Series:
    """Return what each well is for.

    For every compound that is not held out, plates are drawn separately: `n_train` to learn from, `n_val` to validate
    on, the rest to test on; on each plate one well of the compound is drawn, and its other wells are unused. Held-out
    plates and compounds keep all their wells. Wells of COMPOUND plates (`Metadata_Plate_Type`) join training with the
    share's probability, never those of held-out compounds.

    Args:
        wells: One row per well, with `Metadata_Plate`, `Metadata_Well`, `Metadata_Compound`, and, where plates of
            both kinds are there, `Metadata_Plate_Type` (`TARGET2` or `COMPOUND`).
        settings: Published numbers where not given.

    Returns:
        One of `SPLITS` per row, with the index of `wells`.

    Raises:
        DataError: If a column or value is missing, a well is there twice, a held-out plate is not there, or there are
            fewer compounds than are to be held out, or fewer plates than are to be drawn.
    """
    settings = settings or SplitSettings()
    _check(wells)
    names = wells[["Metadata_Plate", "Metadata_Well", "Metadata_Compound"]].astype(str)
    on_target = _on_target(wells)
    plates = sorted(set(names["Metadata_Plate"][on_target]))
    lost = [plate for plate in settings.held_out_plates if plate not in plates]
    if lost:
        raise DataError(f"campfire: held-out {unknown_name('plate', lost[0], plates)}")
    kept_plates = [plate for plate in plates if plate not in settings.held_out_plates]
    if len(kept_plates) <= settings.n_train + settings.n_val:
        raise DataError(
            f"campfire: {len(kept_plates)} plates remain, but {settings.n_train} are drawn to learn from and "
            f"{settings.n_val} to validate on; at least one has to be left to test on."
        )
    compounds = sorted(set(names["Metadata_Compound"][on_target]) - set(settings.controls))
    if len(compounds) <= settings.n_held_out_compounds:
        raise DataError(
            f"campfire: {len(compounds)} compounds besides controls, but {settings.n_held_out_compounds} are to be "
            "held out; lower n_held_out_compounds."
        )
    held_out = set(drawn(compounds, settings.n_held_out_compounds, settings.seed, "compounds"))
    result = pd.Series("unused", index=wells.index, dtype=object)
    new_plate = names["Metadata_Plate"].isin(settings.held_out_plates)
    new_compound = names["Metadata_Compound"].isin(held_out)
    result[on_target & new_plate & ~new_compound] = "ood_plate"
    result[on_target & ~new_plate & new_compound] = "ood_compound"
    result[on_target & new_plate & new_compound] = "ood_both"
    seen = names[on_target & ~new_plate & ~new_compound]
    for compound, group in seen.groupby("Metadata_Compound", sort=True):
        roles = _roles(str(compound), kept_plates, settings)
        for plate, rows in group.groupby("Metadata_Plate", sort=True):
            by_well = dict(zip(rows["Metadata_Well"], rows.index, strict=True))
            chosen = drawn(sorted(by_well), 1, settings.seed, "well", str(compound), str(plate))[0]
            result[by_well[chosen]] = roles[str(plate)]
    others = names[~on_target & ~new_compound]
    joins = [
        _uniform(settings.seed, "compound plate", plate, well) < settings.compound_share
        for plate, well in zip(others["Metadata_Plate"], others["Metadata_Well"], strict=True)
    ]
    result[others.index[joins]] = "train"
    return result


def split_of_cells(table: FeatureTable, settings: SplitSettings) -> NDArray[Any]:
    """Return what each cell is for, (R,): as `Metadata_Split` says where the table has it, else by `build_split`.

    Args:
        table: One row per cell, with `Metadata_Plate`, `Metadata_Well` and `Metadata_Compound`.
        settings: For `build_split`.

    Raises:
        DataError: If the table's own split has unknown words or a leak, or no split can be built.
    """
    if "Metadata_Split" in table.metadata:
        split = column(table, "Metadata_Split").astype(str)
        check_split(table.metadata, split)
        return split
    names = [name for name in (*_NAMES, "Metadata_Plate_Type") if name in table.metadata]
    wells = table.metadata[names].astype(str).drop_duplicates().reset_index(drop=True)
    wells["split"] = build_split(wells, settings).to_numpy()
    place = dict(zip(zip(wells[_NAMES[0]], wells[_NAMES[1]], strict=True), wells["split"], strict=True))
    keys = zip(column(table, _NAMES[0]).astype(str), column(table, _NAMES[1]).astype(str), strict=True)
    return np.asarray([place[key] for key in keys], dtype=object)


def check_split(rows: pd.DataFrame, split: Sequence[str] | NDArray[Any]) -> None:
    """Refuse a split in which a well has two roles, or an unseen plate or compound is also a seen one.

    Args:
        rows: With `Metadata_Plate`, `Metadata_Well` and `Metadata_Compound`.
        split: What each row is for.

    Raises:
        DataError: With the well, plate or compound.
    """
    roles = np.asarray(split).astype(str)
    wrong = sorted(set(roles) - set(SPLITS))
    if wrong:
        raise DataError(f"campfire: Metadata_Split holds '{wrong[0]}'; allowed: {', '.join(SPLITS)}.")
    plate, well, compound = (rows[name].astype(str).to_numpy(object) for name in _NAMES)
    _one_side(np.char.add(np.char.add(plate.astype(str), " "), well.astype(str)), roles, "well")
    used = roles != "unused"
    new_plate, new_compound = np.isin(roles, ("ood_plate", "ood_both")), np.isin(roles, ("ood_compound", "ood_both"))
    _one_side(plate[used], new_plate[used], "plate")
    _one_side(compound[used], new_compound[used], "compound")


def _one_side(names: NDArray[Any], sides: NDArray[Any], what: str) -> None:
    both = pd.DataFrame({"name": names, "side": sides}).drop_duplicates()["name"]
    doubled = sorted(set(both[both.duplicated()]))
    if doubled:
        has = "several roles" if what == "well" else "both a seen and an unseen role"
        raise DataError(
            f"campfire: Metadata_Split leaks: {what} {doubled[0]} has {has} ({len(doubled)} {what}s do); give each one."
        )


def drawn(names: Sequence[str], count: int, seed: int, *words: str) -> list[str]:
    """Return some names, drawn by hashing each with the seed: the order in which they come does not matter.

    Args:
        names: Distinct.
        count: How many.
        seed: Of the draw.
        words: What it is for.
    """
    return sorted(names, key=lambda name: (rng.mix(seed, "campfire", *words, name), name))[:count]


def _roles(compound: str, plates: list[str], settings: SplitSettings) -> dict[str, str]:
    """Return what each plate is for, for one compound."""
    order = drawn(plates, len(plates), settings.seed, "plates", compound)
    known = settings.n_train + settings.n_val
    return {plate: "train" if i < settings.n_train else "val" if i < known else "test" for i, plate in enumerate(order)}


def _uniform(seed: int, *words: str) -> float:
    return float((rng.mix(seed, "campfire", *words) & (2**53 - 1)) / 2**53)


def _on_target(wells: pd.DataFrame) -> "pd.Series[Any]":
    if "Metadata_Plate_Type" not in wells:
        return pd.Series(np.ones(len(wells), bool), index=wells.index)
    kinds = wells["Metadata_Plate_Type"].astype(str).str.upper()
    wrong = sorted(set(kinds) - {"TARGET2", "COMPOUND"})
    if wrong:
        raise DataError(f"campfire: Metadata_Plate_Type holds '{wrong[0]}'; it says TARGET2 or COMPOUND.")
    return pd.Series((kinds == "TARGET2").to_numpy(bool), index=wells.index)


def _check(wells: pd.DataFrame) -> None:
    for name in ("Metadata_Plate", "Metadata_Well", "Metadata_Compound"):
        if name not in wells:
            raise DataError(f"campfire: {unknown_name('metadata column', name, map(str, wells.columns))}")
        if is_missing(wells[name]).any():
            raise DataError(
                f"campfire: {int(is_missing(wells[name]).sum())} wells have no {name}; complete or drop them."
            )
    doubled = wells.duplicated(["Metadata_Plate", "Metadata_Well"])
    if doubled.any():
        first = wells[doubled].iloc[0]
        raise DataError(
            f"campfire: well {first['Metadata_Well']} of plate {first['Metadata_Plate']} is there twice; the split "
            "takes one row per well."
        )
    if not wells.index.is_unique:
        raise DataError("campfire: the rows of the wells need different index values; call reset_index first.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write what each well of a table of wells is for, so that an encoder is trained on wells of `train` alone.

    Args:
        arguments: Of the command line.
    """
    parser = argparse.ArgumentParser(
        prog="python -m morphem.benchmarks.campfire_split", description="Write Metadata_Split for a table of wells."
    )
    parser.add_argument("wells", help="CSV or Parquet: Metadata_Plate, Metadata_Well, Metadata_Compound")
    parser.add_argument("output", help="CSV with these columns and Metadata_Split")
    parser.add_argument("--held-out-plates", nargs="+", default=list(HELD_OUT_PLATES), metavar="PLATE")
    parser.add_argument("--n-held-out-compounds", type=int, default=60)
    parser.add_argument("--compound-share", type=float, default=0.6, help="0.6 in the code, 0.5 in the paper")
    parser.add_argument("--seed", type=int, default=10)
    options = parser.parse_args(arguments)
    try:
        wells = read_metadata(Path(options.wells), "table of wells")
        settings = SplitSettings(
            held_out_plates=tuple(options.held_out_plates),
            n_held_out_compounds=options.n_held_out_compounds,
            compound_share=options.compound_share,
            seed=options.seed,
        )
        split = build_split(wells, settings)
    except MorphemError as fault:
        parser.exit(1, f"campfire_split: error: {fault}\n")
    wells.assign(Metadata_Split=split).to_csv(options.output, index=False)
    print(f"wrote {options.output}:", ", ".join(f"{name} {count}" for name, count in split.value_counts().items()))


if __name__ == "__main__":
    main()
