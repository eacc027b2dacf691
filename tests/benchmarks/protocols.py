"""What tests of the protocols share: a score of changed tables, and the sentence of a refusal."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd

from morphem.benchmarks.base import Benchmark, Inputs, with_values
from morphem.benchmarks.runner import score_tables
from morphem.benchmarks.score import Score
from morphem.features import FeatureTable

Change = Callable[[FeatureTable], FeatureTable]


def score_of(cls: type[Benchmark], inputs: Inputs, benchmark: Benchmark | None = None) -> Score:
    """Score tables with all checks of the runner, without leak probes."""
    chosen = benchmark or cls.tiny_instance()
    return score_tables(cls.__name__, chosen, inputs.tables, inputs.side, leaks=False).score


def changed(inputs: Inputs, change: Change, part: str | None = None) -> Inputs:
    """Change one table, or all."""
    tables = {name: change(table) if part in (None, name) else table for name, table in inputs.tables.items()}
    return replace(inputs, tables=tables)


def with_column(**columns: object) -> Change:
    return lambda table: replace(table, metadata=table.metadata.assign(**columns))


def without_column(*names: str) -> Change:
    return lambda table: replace(table, metadata=table.metadata.drop(columns=list(names)))


def with_pixel(row: int, value: float) -> Change:
    def change(table: FeatureTable) -> FeatureTable:
        values = table.values.copy()
        values[row, 0] = value
        return with_values(table, values)

    return change


def with_side(inputs: Inputs, **frames: pd.DataFrame) -> Inputs:
    return replace(inputs, side={**inputs.side, **frames})


def shuffled(seed: int) -> Change:
    return lambda table: with_values(table, np.random.default_rng(seed).permutation(table.values))
