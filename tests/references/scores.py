"""The formulas of benchmark scores again, from their definitions: loops over rows and pairs, float64."""

import itertools
import math

import numpy as np


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    dot = math.fsum(float(a) * float(b) for a, b in zip(first, second, strict=True))
    return dot / math.sqrt(math.fsum(float(a) ** 2 for a in first) * math.fsum(float(b) ** 2 for b in second))


def average_precision(positives: list[float], negatives: list[float]) -> float:
    """Mean over positives of the share of positives among all that are at least as similar."""
    total = 0.0
    for own in positives:
        hits = sum(value >= own - 1e-12 for value in positives)
        misses = sum(value >= own - 1e-12 for value in negatives)
        total += hits / (hits + misses)
    return total / len(positives)


def retrieval(values, columns, pos_sameby, pos_diffby, neg_sameby, neg_diffby):
    """Average precision of every row, None without positives or negatives."""
    results = []
    for i in range(len(values)):
        positives, negatives = [], []
        for j in range(len(values)):
            if i == j:
                continue
            same = {name: columns[name][i] == columns[name][j] for name in columns}
            if all(same[name] for name in pos_sameby) and not any(same[name] for name in pos_diffby):
                positives.append(cosine(values[i], values[j]))
            if all(same[name] for name in neg_sameby) and not any(same[name] for name in neg_diffby):
                negatives.append(cosine(values[i], values[j]))
        results.append(average_precision(positives, negatives) if positives and negatives else None)
    return results


def multilabel_retrieval(values, labels):
    """Average precision by (row, label)."""
    results = {}
    for i, own in enumerate(labels):
        negatives = [cosine(values[i], values[j]) for j, other in enumerate(labels) if not set(own) & set(other)]
        for label in own:
            positives = [cosine(values[i], values[j]) for j, other in enumerate(labels) if j != i and label in other]
            if positives and negatives:
                results[i, label] = average_precision(positives, negatives)
    return results


def exact_null(positives: int, total: int) -> list[float]:
    """Average precision of every ranking of m positives among n."""
    found = []
    for places in itertools.combinations(range(1, total + 1), positives):
        found.append(sum((k + 1) / place for k, place in enumerate(places)) / positives)
    return found


def benjamini_hochberg(p_values: list[float]) -> list[float]:
    """The smallest false discovery rate at which each test is rejected."""
    n = len(p_values)
    result = []
    for p in p_values:
        rates = []
        for threshold in p_values:
            if threshold >= p:
                rates.append(threshold * n / sum(other <= threshold for other in p_values))
        result.append(min(1.0, *rates))
    return result


def distance(first: np.ndarray, second: np.ndarray, metric: str) -> float:
    if metric == "l2":
        return math.fsum((float(a) - float(b)) ** 2 for a, b in zip(first, second, strict=True))
    if metric == "correlation":
        first, second = first - np.mean(first, dtype=np.float64), second - np.mean(second, dtype=np.float64)
    return 1 - cosine(first, second)


def nearest_allowed(values, metric, allowed) -> list[int]:
    """Index of the nearest other row for which `allowed(i, j)`; -1 where there is none; ties to the lower."""
    found = []
    for i in range(len(values)):
        best, where = math.inf, -1
        for j in range(len(values)):
            if i != j and allowed(i, j):
                d = distance(values[i], values[j], metric)
                if d < best - 1e-12:
                    best, where = d, j
        found.append(where)
    return found


def macro_f1(truth: list[int], predicted: list[int]) -> float:
    scores = []
    for kind in sorted(set(truth)):
        tp = sum(t == kind and p == kind for t, p in zip(truth, predicted, strict=True))
        fp = sum(t != kind and p == kind for t, p in zip(truth, predicted, strict=True))
        fn = sum(t == kind and p != kind for t, p in zip(truth, predicted, strict=True))
        scores.append(2 * tp / (2 * tp + fp + fn))
    return sum(scores) / len(scores)


def balanced_accuracy(truth: list[int], predicted: list[int]) -> float:
    shares = []
    for kind in sorted(set(truth)):
        rows = [i for i, t in enumerate(truth) if t == kind]
        shares.append(sum(predicted[i] == kind for i in rows) / len(rows))
    return sum(shares) / len(shares)


def auroc(truth: list[bool], values: list[float]) -> float:
    pairs = [
        (a, b) for a, t in zip(values, truth, strict=True) if t for b, u in zip(values, truth, strict=True) if not u
    ]
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)


def weighted_ridge(train, classes, test, ridge):
    """Least squares on one-hot targets: balanced weights, a ridge, an unpenalised intercept; normal equations."""
    kinds = sorted(set(classes))
    mean, deviation = train.mean(0), train.std(0)
    rows, asked = (train - mean) / deviation, (test - mean) / deviation
    n = len(classes)
    weight = np.array([n / len(kinds) / list(classes).count(kind) for kind in classes])
    design = np.hstack([rows, np.ones((n, 1))])
    penalty = ridge * n * np.diag([1.0] * rows.shape[1] + [0.0])
    target = np.array([[float(kind == other) for other in kinds] for kind in classes])
    normal = design.T @ np.diag(weight) @ design + penalty
    slope = np.linalg.solve(normal, design.T @ np.diag(weight) @ target)
    scores = np.hstack([asked, np.ones((len(asked), 1))]) @ slope
    return [kinds[i] for i in scores.argmax(1)]


def jump_cp1(values, compounds, plates, is_control, null, threshold=0.05):
    """Activity from the protocol's words: returns mAP by compound, active compounds, the score.

    `null(m, n)` gives the draws of the null of one row.
    """
    names = sorted({c for c, k in zip(compounds, is_control, strict=True) if not k})
    precision, configuration = {}, {}
    for i in range(len(values)):
        if is_control[i]:
            continue
        positives = [
            cosine(values[i], values[j]) for j in range(len(values)) if j != i and compounds[j] == compounds[i]
        ]
        negatives = [
            cosine(values[i], values[j]) for j in range(len(values)) if is_control[j] and plates[j] == plates[i]
        ]
        precision[i] = average_precision(positives, negatives)
        configuration[i] = (len(positives), len(positives) + len(negatives))
    maps, p_values = {}, []
    for name in names:
        rows = [i for i in precision if compounds[i] == name]
        maps[name] = sum(precision[i] for i in rows) / len(rows)
        draws = sum(np.asarray(null(*configuration[i]), np.float64) for i in rows) / len(rows)
        p_values.append((1 + int((draws > maps[name] + 1e-9).sum())) / (1 + len(draws)))
    corrected = benjamini_hochberg(p_values)
    active = {name for name, p in zip(names, corrected, strict=True) if p < threshold}
    return maps, active, sum(maps[name] for name in active) / len(names)
