"""Scores of CHAMMI-75's evaluation again, from the facts: loops over rows and pairs, float64, general optimisers."""

import math
from itertools import pairwise

import numpy as np
from scipy.optimize import minimize

from tests.references.scores import auroc, macro_f1


def nearest_label(query: np.ndarray, reference: np.ndarray, labels: list[str]) -> str:
    """Label of the reference row of the smallest squared distance; the first of several."""
    best, found = math.inf, ""
    for row, label in zip(reference, labels, strict=True):
        distance = math.fsum((float(a) - float(b)) ** 2 for a, b in zip(query, row, strict=True))
        if distance < best:
            best, found = distance, label
    return found


def chammi_task(values, labels, is_train, is_test, groups=None) -> float:
    """Macro F1 of one task; with groups, rows of the other groups of the task join the reference."""
    truth, said = [], []
    for i in np.flatnonzero(is_test):
        reference = [j for j in range(len(values)) if is_train[j]]
        if groups is not None:
            reference += [j for j in np.flatnonzero(is_test) if groups[j] != groups[i]]
        truth.append(labels[i])
        said.append(nearest_label(values[i], values[reference], [labels[j] for j in reference]))
    return macro_f1(truth, said)


def focal_loss(scores, labels, alpha=0.25, gamma=2.0) -> float:
    total = 0.0
    for score, label in zip(np.ravel(scores), np.ravel(labels), strict=True):
        p = 1 / (1 + math.exp(-float(score)))
        right, weight = (p, alpha) if label else (1 - p, 1 - alpha)
        total += -weight * (1 - right) ** gamma * math.log(right)
    return total / np.size(scores)


def step_average_precision(truth, said) -> float:
    """Sum over thresholds of the rise of recall times the precision there."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(said), reverse=True):
        chosen = [bool(t) for t, s in zip(truth, said, strict=True) if s >= threshold]
        recall = sum(chosen) / sum(map(bool, truth))
        total += (recall - before) * sum(chosen) / len(chosen)
        before = recall
    return total


def precision_recall_area(truth, said) -> float:
    """Trapezoids from recall 0, precision 1 on."""
    points = [(0.0, 1.0)]
    for threshold in sorted(set(said), reverse=True):
        chosen = [bool(t) for t, s in zip(truth, said, strict=True) if s >= threshold]
        points.append((sum(chosen) / sum(map(bool, truth)), sum(chosen) / len(chosen)))
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))


def label_ranking(truth, said) -> tuple[float, float]:
    """Label-ranking average precision and coverage error, ties counted against the prediction."""
    precisions, coverages = [], []
    for row, scores in zip(truth, said, strict=True):
        places = [i for i, t in enumerate(row) if t]
        if not places:
            continue
        each = []
        for i in places:
            rank = sum(s >= scores[i] for s in scores)
            each.append(sum(scores[j] >= scores[i] for j in places) / rank)
        precisions.append(sum(each) / len(each))
        coverages.append(max(sum(s >= scores[i] for s in scores) for i in places))
    return sum(precisions) / len(precisions), sum(coverages) / len(coverages)


def wasserstein(first, second) -> float:
    """Area between two distribution functions, piece by piece over all values."""
    values = sorted([*first, *second])
    total = 0.0
    for a, b in pairwise(values):
        below = sum(x <= a for x in first) / len(first)
        other = sum(x <= a for x in second) / len(second)
        total += abs(below - other) * (b - a)
    return total


def idr0017_effects(controls, treated: dict, epsilon=1e-5) -> dict:
    """Effect of every compound on one line: whitening by eigenvectors, then distances pair by pair."""
    controls = np.asarray(controls, np.float64)
    mean = controls.mean(0)
    covariance = (controls - mean).T @ (controls - mean) / len(controls)
    values, vectors = np.linalg.eigh(covariance)
    whitening = vectors @ np.diag((np.maximum(values, 0) + epsilon) ** -0.5) @ vectors.T
    white = (controls - mean) @ whitening
    inside = [math.dist(white[i], white[j]) for i in range(len(white)) for j in range(i)]
    effects = {}
    for name, rows in treated.items():
        other = (np.asarray(rows, np.float64) - mean) @ whitening
        effects[name] = wasserstein(inside, [math.dist(a, b) for a in other for b in white])
    return effects


def principal_components(train, values, count) -> np.ndarray:
    """By the covariance matrix; signs are free."""
    mean = train.mean(0)
    eigenvalues, vectors = np.linalg.eigh(np.cov(train.T, bias=True))
    chosen = vectors[:, np.argsort(-eigenvalues)[:count]]
    return (values - mean) @ chosen


def binary_logistic(train, target, test, c=1.0) -> np.ndarray:
    """Probabilities of a balanced logistic regression: 0.5 |w|^2 + C sum of weighted losses, by a general optimiser."""
    n, positives = len(target), int(np.sum(target))
    weight = np.where(target, n / (2 * positives), n / (2 * (n - positives)))
    sign = np.where(target, 1.0, -1.0)

    def cost(parameters):
        slope, intercept = parameters[:-1], parameters[-1]
        margin = sign * (train @ slope + intercept)
        loss = 0.5 * slope @ slope + c * np.sum(weight * np.logaddexp(0, -margin))
        pull = -c * weight * sign / (1 + np.exp(margin))
        return loss, np.append(slope + train.T @ pull, pull.sum())

    found = minimize(
        cost,
        np.zeros(train.shape[1] + 1),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-9},
    )
    return 1 / (1 + np.exp(-(test @ found.x[:-1] + found.x[-1])))


def multinomial_logistic(train, classes, test, c=1.0) -> np.ndarray:
    """Predictions of multinomial logistic regression: 0.5 |W|^2 + C sum of losses, by a general optimiser."""
    kinds = sorted(set(classes))
    target = np.array([[float(kind == other) for other in kinds] for kind in classes])
    shape = (train.shape[1] + 1, len(kinds))

    def cost(flat):
        parameters = flat.reshape(shape)
        scores = train @ parameters[:-1] + parameters[-1]
        scores = scores - scores.max(1, keepdims=True)
        log = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        loss = 0.5 * np.sum(parameters[:-1] ** 2) - c * np.sum(target * log)
        pull = c * (np.exp(log) - target)
        return loss, np.vstack([parameters[:-1] + train.T @ pull, pull.sum(0)]).ravel()

    found = minimize(
        cost,
        np.zeros(shape).ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-9},
    )
    parameters = found.x.reshape(shape)
    return np.asarray(kinds)[(test @ parameters[:-1] + parameters[-1]).argmax(1)]


def macro_auroc(truth, said) -> float:
    columns = [i for i in range(truth.shape[1]) if 0 < truth[:, i].sum() < len(truth)]
    return sum(auroc(truth[:, i].tolist(), said[:, i].tolist()) for i in columns) / len(columns)
