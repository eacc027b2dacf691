"""Nearest neighbours with one group left out, on 100,000 x 1,920 features, against a scikit-learn loop over groups.

The loop fits `KNeighborsClassifier(1, algorithm="brute")` on the rows of all other groups and predicts those of the
group, for every group; it is timed on some groups and taken times their number, because all would take hours. morphem
answers for all groups at once. Both are given float32. Features have the spectrum k^-p: 0 is white noise, in which no
direction matters more than another. Then the plain neighbours of half the rows in the other half. Times are wall and
CPU seconds.

    python benchmarks/generic/speed.py
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
from sklearn.neighbors import KNeighborsClassifier

from morphem.benchmarks import knn


def clock(call: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def features(n: int, dim: int, power: float) -> np.ndarray:
    random = np.random.default_rng(0)
    values = random.standard_normal((n, dim), np.float32) * (np.arange(1, dim + 1) ** -power).astype(np.float32)
    turn, _ = np.linalg.qr(random.standard_normal((dim, dim), np.float32))
    return values @ turn


def loop(values: np.ndarray, labels: np.ndarray, groups: np.ndarray, chosen: range) -> np.ndarray:
    predicted = np.empty(len(values), labels.dtype)
    for group in chosen:
        test = groups == group
        model = KNeighborsClassifier(1, algorithm="brute").fit(values[~test], labels[~test])
        predicted[test] = model.predict(values[test])
    return predicted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=1920)
    parser.add_argument("--group-size", type=int, default=384, help="rows of a group: wells of a plate")
    parser.add_argument("--timed-groups", type=int, default=3)
    parser.add_argument("--powers", type=float, nargs="+", default=[1.0, 0.5, 0.0])
    options = parser.parse_args()
    n_groups = -(-options.rows // options.group_size)
    random = np.random.default_rng(1)
    groups = random.permutation(np.arange(options.rows) // options.group_size)
    labels = random.integers(0, 10, options.rows)
    print(f"{options.rows} x {options.dim}, {n_groups} groups; seconds: wall (CPU)")
    for power in options.powers:
        values = features(options.rows, options.dim, power)
        chosen = range(options.timed_groups)
        theirs = [t * n_groups / len(chosen) for t in clock(lambda: loop(values, labels, groups, chosen))]  # noqa: B023
        answer: list[np.ndarray] = []
        ours = clock(lambda: answer.append(labels[knn.leave_one_group_out(values, groups).row]))  # noqa: B023
        tested = np.isin(groups, chosen)
        same = float((loop(values, labels, groups, chosen)[tested] == answer[0][tested]).mean())
        print(
            f"spectrum k^-{power:<4} leave one group out: scikit-learn loop {theirs[0]:7.0f} ({theirs[1]:7.0f})   "
            f"morphem {ours[0]:6.0f} ({ours[1]:6.0f})   {theirs[0] / ours[0]:5.1f}x ({theirs[1] / ours[1]:.1f}x), "
            f"{same:.1%} of predictions the same"
        )
        half = options.rows // 2
        model = KNeighborsClassifier(1, algorithm="brute").fit(values[:half], labels[:half])
        few = slice(half, half + 2000)
        theirs = [t * half / 2000 for t in clock(lambda: model.predict(values[few]))]  # noqa: B023
        ours = clock(lambda: knn.nearest(values[half:], values[:half]))  # noqa: B023
        print(
            f"{'':14} neighbours, half in half: scikit-learn {theirs[0]:7.0f} ({theirs[1]:7.0f})   "
            f"morphem {ours[0]:6.0f} ({ours[1]:6.0f})   {theirs[0] / ours[0]:5.1f}x ({theirs[1] / ours[1]:.1f}x)"
        )


if __name__ == "__main__":
    main()
