"""Checks of benchmarks: the record is whole, planted effects are found and nulls are not, nothing leaks."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd

from morphem.benchmarks.base import Benchmark, Inputs, take, with_values
from morphem.benchmarks.bootstrap import generator
from morphem.benchmarks.score import Score, to_plain
from morphem.features import FeatureTable
from morphem.testing.contract import attempt, check_class, fail, require

SEEDS = (0, 1, 2)
_TEXTS = {"title": 8, "measures": 80, "reading": 40, "source": 8}


def check_benchmark(cls: type[Benchmark]) -> None:
    """Check that a benchmark keeps its contract.

    Its texts and published rows are whole. `tiny(seed, 1.0)` is found, `tiny(seed, 0.0)` is not, and neither are
    features that were shuffled between rows, features in which every row can be told by heart (a fit that saw the test
    rows would find them), nor features that hold nothing but a column of `robust_to`. The order of rows does not
    matter, noise does not help on average, the same seed gives the same score, and every headline has an interval or a
    reason for none.

    Args:
        cls: The class; its `tiny_instance()` on its `tiny(seed, effect)` is what is checked.

    Raises:
        ContractError: Names the class, what it broke and why that matters.
    """
    check_class(cls, Benchmark)
    _check_record(cls)
    scores = {effect: [_score(cls, cls.tiny(seed, effect)) for seed in SEEDS] for effect in (0.0, 1.0, math.inf)}
    for score in scores[0.0] + scores[1.0]:
        _check_score(cls, score)
    values = _headlines(cls, scores[1.0])
    weak = [value for value in values if not _reaches(cls, value, cls.tiny_finds)]
    require(not weak, cls, f"gives {_shown(values)} to a planted effect instead of {cls.tiny_finds:g} (tiny_finds)")
    found, null = _mean(cls, scores[1.0]), _mean(cls, scores[0.0])
    require(not _reaches(cls, null, cls.tiny_null), cls, f"gives {null:.3f} to features of pure noise; {_SAYS_NULL}")
    best = _mean(cls, scores[math.inf])
    require(
        _reaches(cls, best + _slack(cls), found),
        cls,
        f"gives {best:.3f} to features that hold nothing but the truth, and {found:.3f} to noisy ones",
    )
    _check_order(cls)
    _check_noise(cls, found)
    _check_not_found(cls, "features that were shuffled between rows", 1.0, _shuffled)
    _check_not_found(cls, "features that only tell rows apart, so a fit saw the rows it is tested on", 0.0, _by_heart)
    for column in cls.robust_to:
        _check_not_found(cls, f"features that hold nothing but {column}", 1.0, partial(_only, column))


_SAYS_NULL = "a null must not be found (tiny_null)"


def _score(cls: type[Benchmark], inputs: Inputs) -> Score:
    benchmark = attempt(cls, "tiny_instance() cannot be built", cls.tiny_instance)
    score = attempt(cls, "cannot score its own tiny layout", lambda: benchmark.score(benchmark.adapt(inputs)))
    require(isinstance(score, Score), cls, f"score() returned a {type(score).__name__} instead of a Score")
    result: Score = score
    require(benchmark.headline in result.values, cls, f"gives no headline '{benchmark.headline}' for its tiny layout")
    return result


def _headlines(cls: type[Benchmark], scores: list[Score]) -> list[float]:
    name = next(iter(cls.score_names))
    return [score.values[name] for score in scores]


def _mean(cls: type[Benchmark], scores: list[Score]) -> float:
    return float(np.mean(_headlines(cls, scores)))


def _reaches(cls: type[Benchmark], value: float, bar: float) -> bool:
    """Whether a headline is at least as good as a bar."""
    return value <= bar if next(iter(cls.score_names)) in cls.lower_is_better else value >= bar


def _slack(cls: type[Benchmark]) -> float:
    """A fifth of the way from null to found, in the direction of better."""
    return 0.2 * (cls.tiny_finds - cls.tiny_null)


def _shown(values: list[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


def _check_record(cls: type[Benchmark]) -> None:
    for name, least in _TEXTS.items():
        text = getattr(cls, name, "")
        require(isinstance(text, str) and len(text) >= least, cls, f"says too little in `{name}`: {text!r}")
    require(
        bool(cls.parts) and bool(cls.score_names) and bool(cls.variants), cls, "lacks parts, score_names or variants"
    )
    require(
        cls.protocol_version >= 1 and _reaches(cls, cls.tiny_finds, cls.tiny_null),
        cls,
        "has bars tiny_finds, tiny_null in the wrong order",
    )
    for row in cls.published:
        odd = sorted(set(row.scores) - set(cls.score_names))
        require(not odd, cls, f"publishes {odd} for '{row.model}', which are no score_names")
        require(
            bool(row.table) and all(map(math.isfinite, row.scores.values())), cls, f"has a broken row '{row.model}'"
        )
    require(
        bool(cls.interval_unit) != bool(cls.no_interval), cls, "must name interval_unit, or say in no_interval why none"
    )
    instance = attempt(cls, "cannot be built with its defaults or tells not all its settings", lambda: cls().settings())
    require({"variant", "seed"} <= set(instance), cls, "takes no variant or no seed in __init__")
    attempt(cls, "has settings that JSON cannot hold", lambda: to_plain(instance))
    for variant in cls.variants:
        attempt(cls, f"does not take its own variant '{variant}'", partial(cls, variant=variant))


def _check_score(cls: type[Benchmark], score: Score) -> None:
    odd = sorted((set(score.values) | set(score.missing)) - set(cls.score_names))
    require(not odd, cls, f"gives the scores {odd}, which are not in score_names")
    if cls.is_retrieval:
        missing = sorted({"p_value", "negatives"} - set(score.rules))
        require(not missing, cls, f"is a retrieval and does not say its {missing} in Score.rules")
    require(bool(score.rules), cls, "says no rules; a score has to say how it was made")
    headline = next(iter(cls.score_names))
    if cls.interval_unit:
        interval = score.intervals.get(headline)
        require(interval is not None, cls, f"gives no interval for '{headline}'")
        assert interval is not None
        require(
            interval.unit == cls.interval_unit, cls, f"draws {interval.unit}s, but interval_unit={cls.interval_unit}"
        )
        value = score.values[headline]
        reach = max(interval.high - interval.low, 1e-6)
        inside = interval.low - reach <= value <= interval.high + reach
        require(
            inside, cls, f"gives an interval {interval.low:.3f} to {interval.high:.3f} far from the score {value:.3f}"
        )
    attempt(cls, "has details that JSON cannot hold", lambda: to_plain(score.details))


def _check_order(cls: type[Benchmark]) -> None:
    inputs = cls.tiny(0, 1.0)
    first, again = _score(cls, inputs), _score(cls, cls.tiny(0, 1.0))
    require(dict(first.values) == dict(again.values), cls, "gives other scores when called again with the same seed")
    turned = _score(cls, _map(inputs, _turned))
    side = {name: frame.iloc[::-1].reset_index(drop=True) for name, frame in inputs.side.items()}
    flipped = _score(cls, replace(inputs, side=side))
    for other, what in ((turned, "rows"), (flipped, "rows of side tables")):
        for name, value in first.values.items():
            if not math.isclose(value, other.values.get(name, math.nan), rel_tol=1e-6, abs_tol=1e-6):
                fail(
                    cls, f"gives {name}={value:.6f}, and {other.values.get(name)} when the {what} come in another order"
                )


def _check_noise(cls: type[Benchmark], found: float) -> None:
    name = next(iter(cls.score_names))
    noisy = [_score(cls, _map(cls.tiny(seed, 1.0), partial(_noisier, seed))) for seed in SEEDS]
    better = (_mean(cls, noisy) - found) * (-1 if name in cls.lower_is_better else 1)
    require(better <= abs(_slack(cls)), cls, f"gives {better:.3f} more when noise is added to the features")


def _check_not_found(
    cls: type[Benchmark], what: str, effect: float, change: Callable[[int, FeatureTable], FeatureTable]
) -> None:
    inputs = [_map(cls.tiny(seed, effect), partial(change, seed)) for seed in SEEDS]
    values = _headlines(cls, [_score(cls, changed) for changed in inputs])
    low = not _reaches(cls, float(np.mean(values)), cls.tiny_null)
    require(low, cls, f"gives {_shown(values)} to {what}; {_SAYS_NULL}")


def _map(inputs: Inputs, change: Callable[[FeatureTable], FeatureTable]) -> Inputs:
    tables: Mapping[str, FeatureTable] = {name: change(table) for name, table in inputs.tables.items()}
    return replace(inputs, tables=tables)


def _turned(table: FeatureTable) -> FeatureTable:
    return take(table, generator(5, "order").permutation(len(table)))


def _noisier(seed: int, table: FeatureTable) -> FeatureTable:
    spread = float(table.values.std())
    noise = generator(seed, "more noise").normal(size=table.values.shape) * 2 * spread
    return with_values(table, table.values + noise)


def _shuffled(seed: int, table: FeatureTable) -> FeatureTable:
    return with_values(table, table.values[generator(seed, "shuffle").permutation(len(table))])


def _by_heart(seed: int, table: FeatureTable) -> FeatureTable:
    """Features of noise, more of them than rows: whatever is fitted on a row predicts that row perfectly.

    Each feature stands for several, side by side and of its channel, so that blocks of channels stay what they are.
    """
    copies = max(1, math.ceil(2 * len(table) / len(table.columns)))
    entries = [(entry, copy) for entry in table.dictionary for copy in range(copies)]
    dictionary = tuple(
        {**entry, "column": f"{entry['column']}_{copy}", "index": int(entry["index"]) * copies + copy}
        for entry, copy in entries
    )
    values = generator(seed, "by heart").normal(size=(len(table), len(entries))).astype(np.float32)
    names = tuple(str(entry["column"]) for entry in dictionary)
    return FeatureTable(values, table.metadata, names, dictionary, table.provenance)


def _only(column: str, seed: int, table: FeatureTable) -> FeatureTable:
    """Features that tell one column of the metadata, and a little noise."""
    if column not in table.metadata:
        return table
    values = pd.get_dummies(table.metadata[column].astype(str)).to_numpy(np.float64)
    random = generator(seed, "only", column)
    told = 10 * values @ random.normal(size=(values.shape[1], table.values.shape[1]))
    return with_values(table, told + random.normal(size=told.shape))
