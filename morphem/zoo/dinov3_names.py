"""Names of DINOv3's tensors: those of Meta's files, and those of timm.

Source: facebookresearch/dinov3 as timm 1.0.31 reads it (`models/eva.py: checkpoint_filter_fn`): storage tokens are
registers; the biases of the keys are masked to zero and have no effect; the periods of the rotary positions are fixed.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from morphem.errors import WeightsError

_TO_TIMM = {"storage_tokens": "reg_token", "ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2"}
_TEMPERATURE = 100.0
_PERIODS = "rope_embed.periods"
_FIXED = (_PERIODS, "bias_mask")


def is_dinov3(tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors are of a DINOv3 transformer, under Meta's or timm's names."""
    registers = "storage_tokens" in tensors or "reg_token" in tensors
    return registers and "pos_embed" not in tensors


def dinov3_from_authors(tensors: Mapping[str, Tensor], n_heads: int, source: str) -> tuple[str, dict[str, Tensor]]:
    """Give tensors timm's names; return the form of the file and the tensors.

    The biases of the keys, which Meta's code multiplies by zero, and what is a function of the architecture alone are
    left out.

    Args:
        tensors: Under Meta's or timm's names.
        n_heads: Attention heads.
        source: Where they come from, for messages.

    Raises:
        WeightsError: If the rotary positions have other periods than the release.
    """
    if "reg_token" in tensors:
        return "dinov3, timm", dict(tensors)
    expected = periods(tensors["storage_tokens"].shape[2] // n_heads)
    stored = tensors.get(_PERIODS)
    fits = stored is None or stored.is_meta or stored.shape == expected.shape
    if stored is not None and not stored.is_meta and fits:
        fits = torch.allclose(stored.float().cpu(), expected, rtol=1e-2)  # some are stored as bfloat16
    if not fits:
        raise WeightsError(
            f"{source} has rotary positions of other periods than DINOv3's release ({_PERIODS}), or n_heads={n_heads} "
            "is wrong; give n_heads=."
        )
    ours: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(_FIXED):
            continue
        renamed = name
        for theirs, timms in _TO_TIMM.items():
            renamed = renamed.replace(theirs, timms)
        if renamed.endswith("attn.qkv.bias"):
            query, _, value = tensor.chunk(3)
            ours[renamed.replace("qkv.bias", "q_bias")] = query
            ours[renamed.replace("qkv.bias", "v_bias")] = value
        else:
            ours[renamed] = tensor
    return "dinov3, meta", ours


def dinov3_to_authors(tensors: Mapping[str, Tensor], form: str) -> dict[str, Tensor]:
    """Give tensors the names of the form that `dinov3_from_authors` saw; biases of keys are zero.

    Args:
        tensors: Under timm's names.
        form: Of the file.
    """
    if "meta" not in form:
        return dict(tensors)
    theirs: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        renamed = name
        for metas, timms in _TO_TIMM.items():
            renamed = renamed.replace(timms, metas)
        if name.endswith("attn.q_bias"):
            value = tensors[name.replace("q_bias", "v_bias")]
            theirs[renamed.replace("q_bias", "qkv.bias")] = torch.cat([tensor, torch.zeros_like(tensor), value])
        elif not name.endswith("attn.v_bias"):
            theirs[renamed] = tensor
    return theirs


def periods(head_dim: int) -> Tensor:
    """Return the periods of DINOv3's rotary positions, 100 ** (2 i / (d / 2)) for i from 0, (head_dim / 4,).

    Args:
        head_dim: d.
    """
    half = head_dim // 2
    return _TEMPERATURE ** (2 * torch.arange(half // 2, dtype=torch.float32) / half)
