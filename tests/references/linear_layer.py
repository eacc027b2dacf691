"""A linear layer trained by AdamW on cross-entropy, in float64, formula by formula.

Source: Loshchilov and Hutter 2019, arXiv:1711.05101 (decoupled weight decay); Kingma and Ba 2015 (moments).
"""

import numpy as np


def adamw_layer(rows, labels, orders, weight, bias, *, lr=1e-3, decay=1e-2, batch=32, halve_every=25):
    """Train one epoch per order of rows; the rate halves every so many epochs."""
    weights = [weight.astype(np.float64), bias.astype(np.float64)]
    first = [np.zeros_like(w) for w in weights]
    second = [np.zeros_like(w) for w in weights]
    step = 0
    for epoch, order in enumerate(orders):
        rate = lr * 0.5 ** (epoch // halve_every)
        for begin in range(0, len(order), batch):
            own = order[begin : begin + batch]
            x, y = rows[own].astype(np.float64), labels[own]
            scores = x @ weights[0].T + weights[1]
            share = np.exp(scores - scores.max(1, keepdims=True))
            share /= share.sum(1, keepdims=True)
            share[np.arange(len(own)), y] -= 1
            gradients = [share.T @ x / len(own), share.mean(0)]
            step += 1
            for i, gradient in enumerate(gradients):
                weights[i] = weights[i] * (1 - rate * decay)
                first[i] = 0.9 * first[i] + 0.1 * gradient
                second[i] = 0.999 * second[i] + 0.001 * gradient**2
                corrected = first[i] / (1 - 0.9**step)
                weights[i] = weights[i] - rate * corrected / (np.sqrt(second[i] / (1 - 0.999**step)) + 1e-8)
    return weights
