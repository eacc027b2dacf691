"""Which sample comes when: a pure function of the seed and a position, in memory that does not grow with the data.

The stream is an endless row of positions. A pass is one round over the data; an epoch is a number of positions, by
default one pass. `StudyBalance` says which sample stands at a position, `slot` says which positions a rank reads in a
step. Nothing is shuffled in memory and nothing is drawn from a generator, so there is no state to save.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import isqrt
from typing import Literal, NamedTuple

from morphem.errors import ConfigError, unknown_name
from morphem.rng import mix

_ROUNDS = 8
_MASK = (1 << 64) - 1


def permute(index: int, n: int, *words: int | str) -> int:
    """Return where a keyed permutation of 0 to n - 1 sends `index`, without building the permutation.

    A Feistel network over a grid of a x b cells, a * b >= n: each round shifts one coordinate by a hash of the other,
    which can be undone, so distinct indices stay distinct. An index that lands on a cell past n walks on until it lands
    inside; the grid has fewer than sqrt(n) cells too many, so that is rare.

    Args:
        index: From 0 to n - 1.
        n: At least 1.
        words: The key; other words give another permutation.

    Raises:
        ValueError: If the index lies outside 0 to n - 1.

    Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains", https://doi.org/10.1007/3-540-45760-7_9.
    """
    if not 0 <= index < n:
        raise ValueError(f"index {index} is not in 0 to {n - 1}")
    key = mix(*words)
    rows = isqrt(n - 1) + 1
    columns = -(-n // rows)
    while True:
        row, column = divmod(index, columns)
        for step in range(0, _ROUNDS, 2):
            row = (row + (mix(key, step, column) & _MASK)) % rows
            column = (column + (mix(key, step + 1, row) & _MASK)) % columns
        index = row * columns + column
        if index < n:
            return index


def steps_per_epoch(n: int, batch_size: int, world_size: int, *, exact: bool = False) -> int:
    """Return the number of steps that reads `n` samples, the same on every rank.

    Args:
        n: Samples in an epoch, at least 1.
        batch_size: Samples per rank and step at most.
        world_size: Number of ranks.
        exact: Never read a sample twice, even if a rank's batch must then hold one sample more than `batch_size`
            (with `batch_size` 1 or fewer samples than two per rank). For validation.

    Raises:
        ConfigError: If `exact` is asked for and there are fewer samples than ranks.
    """
    steps = -(-n // (batch_size * world_size))
    if not exact:
        return steps
    if n < world_size:
        raise ConfigError(
            f"{n} validation samples cannot be shared by {world_size} ranks without reading one twice; "
            "use at most as many devices as there are samples."
        )
    return min(steps, n // world_size)


def slot(index: int, n: int, n_slots: int) -> range:
    """Return the positions of an epoch that one rank reads in one step.

    The `n` positions are spread over all slots as evenly as possible: sizes differ by at most one. With slot
    `step * world_size + rank`, the positions of one step over all ranks depend on the number of steps alone, so every
    world size sees the same global batches. Where there are more slots than positions, a slot that would be empty
    shares the position of its successor, because a rank without a batch would stop all others.

    Args:
        index: From 0 to `n_slots` - 1.
        n: Positions in the epoch, at least 1.
        n_slots: Steps times ranks.
    """
    start = index * n // n_slots
    return range(start, max((index + 1) * n // n_slots, start + 1))


class Visit(NamedTuple):
    """One sample at one position of the stream.

    Attributes:
        study: Index of the study.
        sample: Index of the sample within the study.
        visit: How often the stream has been at this sample before, from 0; all random draws for the sample hang on
            it, so that a sample that comes twice in a pass is not cropped in the same way twice.
    """

    study: int
    sample: int
    visit: int


class StudyBalance:
    """How often each study appears in a pass, and which of its samples stands at a position of the stream.

    Every study has a quota of positions per pass. A study walks through all its samples before any comes again, across
    passes and epochs, in a new order each time.

    Args:
        sizes: Number of samples of every study.
        quotas: Positions per pass of every study; a study with 0 is left out.
        seed: The order's seed.
        shuffle: False keeps the samples in the order of the shards.

    Raises:
        ConfigError: If no study with a quota has samples.
    """

    def __init__(self, sizes: Sequence[int], quotas: Sequence[int], *, seed: int, shuffle: bool = True) -> None:
        self.sizes = list(sizes)
        self.quotas = [quota if size else 0 for quota, size in zip(quotas, sizes, strict=True)]
        self.seed = seed
        self.shuffle = shuffle
        self._stops = list(accumulate(self.quotas))
        if not self._stops or not self._stops[-1]:
            raise ConfigError("no study has both samples and a weight above 0; widen the query or the weights.")

    @property
    def pass_length(self) -> int:
        """Positions in one pass."""
        return self._stops[-1]

    def at(self, position: int) -> Visit:
        """Return the sample at a position of the endless stream.

        Args:
            position: At least 0.
        """
        turn, place = divmod(position, self.pass_length)
        if self.shuffle:
            place = permute(place, self.pass_length, self.seed, "pass", turn)
        study = bisect_right(self._stops, place)
        quota, size = self.quotas[study], self.sizes[study]
        visit, index = divmod(turn * quota + place - (self._stops[study] - quota), size)
        if self.shuffle:
            index = permute(index, size, self.seed, "study", study, visit)
        return Visit(study, index, visit)


def study_quotas(
    sizes: Mapping[str, int],
    balance: Literal["none", "cycle"] = "none",
    weights: Mapping[str, float] | None = None,
) -> list[int]:
    """Return how many positions each study has in a pass.

    Args:
        sizes: Number of samples by study.
        balance: `none`: every sample once; `cycle`: every study is repeated to the size of the largest.
        weights: Share of the stream by study, instead of `balance`: every study must be named, 0 leaves one out. A
            pass is then as long as the studies that take part have samples.

    Raises:
        ConfigError: If a weight is missing, negative, or of a study that does not exist, or both settings are given.
    """
    if weights is None:
        largest = max(sizes.values(), default=0)
        return [largest if balance == "cycle" else size for size in sizes.values()]
    _check_weights(sizes, balance, weights)
    total = sum(size for study, size in sizes.items() if weights[study] > 0)
    whole = sum(weights.values())
    exact = [total * weights[study] / whole for study in sizes]
    quotas = [max(int(share), 1) if share > 0 else 0 for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: int(exact[i]) - exact[i])
    for i in by_remainder[: max(total - sum(quotas), 0)]:
        quotas[i] += 1
    return quotas


def _check_weights(sizes: Mapping[str, int], balance: str, weights: Mapping[str, float]) -> None:
    if balance != "none":
        raise ConfigError(f"data.balance={balance} and data.weights exclude each other; remove one of the two.")
    for study, weight in weights.items():
        if study not in sizes:
            raise ConfigError("data.weights: " + unknown_name("study", study, sizes))
        if not 0 <= weight < float("inf"):
            raise ConfigError(f"data.weights.{study} is {weight}; allowed are finite numbers from 0 up.")
    missing = sorted(set(sizes) - set(weights))
    if missing:
        raise ConfigError(
            f"data.weights names {len(weights)} of {len(sizes)} studies; missing: {', '.join(missing[:8])}"
            f"{' ...' if len(missing) > 8 else ''}; give every study a weight (0 leaves it out)."
        )
    if not sum(weights.values()):
        raise ConfigError("data.weights are all 0; give at least one study a weight above 0.")
