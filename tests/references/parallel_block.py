"""The parallel block of CA-MAE, token by token and head by head."""

import math

import torch
from torch import Tensor


def _normalised(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (x - x.mean()) / math.sqrt(float(((x - x.mean()) ** 2).mean()) + 1e-6) * weight + bias


def parallel_block(x: Tensor, w: dict[str, Tensor], n_heads: int, *, shifted: bool) -> Tensor:
    """Map tokens (B, T, D); the rows of in_proj are hidden units, queries, keys, values, and so is its bias.

    With `shifted` the zeros for q, k, v stand before the MLP's bias, not behind it.
    """
    dim, hidden = x.shape[2], len(w["mlp_bias"])
    zeros = torch.zeros(3 * dim, dtype=x.dtype)
    bias = torch.cat([zeros, w["mlp_bias"]] if shifted else [w["mlp_bias"], zeros])
    head = dim // n_heads
    result = torch.empty_like(x)
    for image in range(len(x)):
        rows = [w["in_proj.weight"] @ _normalised(t, w["in_norm.weight"], w["in_norm.bias"]) + bias for t in x[image]]
        for i, row in enumerate(rows):
            seen = torch.empty(dim, dtype=x.dtype)
            for h in range(n_heads):
                part = slice(hidden + h * head, hidden + (h + 1) * head)
                query = _normalised(row[part], w["q_norm.weight"], w["q_norm.bias"])
                scores, values = [], []
                for other in rows:
                    key = other[hidden + dim :][h * head : (h + 1) * head]
                    key = _normalised(key, w["k_norm.weight"], w["k_norm.bias"])
                    scores.append(math.exp(float(query @ key) / math.sqrt(head)))
                    values.append(other[hidden + 2 * dim :][h * head : (h + 1) * head])
                seen[h * head : (h + 1) * head] = sum(s * v for s, v in zip(scores, values, strict=True)) / sum(scores)
            units = torch.tensor(
                [0.5 * u * (1 + math.erf(u / math.sqrt(2))) for u in row[:hidden].tolist()], dtype=x.dtype
            )
            out = w["attn_out_proj.weight"] @ seen + w["attn_out_proj.bias"]
            out = out + w["mlp_out_proj.weight"] @ units + w["mlp_out_proj.bias"]
            result[image, i] = x[image, i] + w["gamma"] * out
    return result
