"""Profiles: features aggregated, normalised, selected and corrected, step by step from a recipe. Imports no torch.

Example:
    >>> from morphem.profiles import Aggregate, MadRobustize, read_table
    >>> table = read_table("features.parquet")
    >>> wells = Aggregate(by="well")(table)
    >>> profiles = MadRobustize(samples="Metadata_control_type == 'negcon'")(wells)

A step is called with a table and gives a table; `apply` runs a whole recipe. See docs/profiles.md.
"""

from morphem.profiles.aggregate import Aggregate, Consensus
from morphem.profiles.apply import apply, apply_to_files, check_rows_are_kept
from morphem.profiles.combat import Combat
from morphem.profiles.conventions import infer_features, select_rows
from morphem.profiles.frames import from_frame
from morphem.profiles.integration import Harmony, Scanorama
from morphem.profiles.recipe import STEPS, Recipe, check_wells
from morphem.profiles.rows import Annotate, FillMetadata, Filter, Impute
from morphem.profiles.scaling import InverseNormal, MadRobustize, Robustize, Standardize
from morphem.profiles.selection import DropFeatures, SelectFeatures
from morphem.profiles.sphering import Sphere, Sphering, check_pycytominer
from morphem.profiles.step import Step, records
from morphem.profiles.tables import read_table, write_table
from morphem.profiles.tvn import TVN

__all__ = [
    "STEPS",
    "TVN",
    "Aggregate",
    "Annotate",
    "Combat",
    "Consensus",
    "DropFeatures",
    "FillMetadata",
    "Filter",
    "Harmony",
    "Impute",
    "InverseNormal",
    "MadRobustize",
    "Recipe",
    "Robustize",
    "Scanorama",
    "SelectFeatures",
    "Sphere",
    "Sphering",
    "Standardize",
    "Step",
    "apply",
    "apply_to_files",
    "check_pycytominer",
    "check_rows_are_kept",
    "check_wells",
    "from_frame",
    "infer_features",
    "read_table",
    "records",
    "select_rows",
    "write_table",
]
