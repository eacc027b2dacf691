"""Benchmarks: published evaluation protocols; feature tables in, scores out, without torch.

A protocol is one file with one class, registered under `morphem.benchmarks`; see `morphem.benchmarks.base`.
"""

from morphem.benchmarks.base import (
    Benchmark,
    Column,
    FeatureRecipe,
    Inputs,
    Part,
    PublishedRow,
    SideTable,
    column,
    make_table,
    take,
    with_values,
)
from morphem.benchmarks.score import Interval, Score

__all__ = [
    "Benchmark",
    "Column",
    "FeatureRecipe",
    "Inputs",
    "Interval",
    "Part",
    "PublishedRow",
    "Score",
    "SideTable",
    "column",
    "make_table",
    "take",
    "with_values",
]
