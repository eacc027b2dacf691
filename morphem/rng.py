"""Random numbers that are a pure function of a seed and a counter: no state, so nothing to save, nothing to disturb.

Every draw is made by mixing 64-bit integers with SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom
number generators", https://doi.org/10.1145/2714064.2660195). The same seed and counter give the same bits in Python,
NumPy and torch, on every device, whatever else is in the batch.
"""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the order of samples and the index need numbers but no torch; only the tensor functions import it
    from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def _signed(value: int) -> int:
    """The two's complement int64 of a 64-bit word."""
    return value - (1 << 64) if value >> 63 else value


def mix(*words: int | str) -> int:
    """Mix integers and names into one 64-bit word, signed as int64; the order of the words matters.

    Args:
        words: Integers of any size and sign (taken modulo 2**64), or names.
    """
    state = 0
    for word in words:
        number = zlib.crc32(word.encode()) if isinstance(word, str) else word
        state = (state + _GOLDEN + (number & _MASK)) & _MASK
        state = ((state ^ (state >> 30)) * _MIX_1) & _MASK
        state = ((state ^ (state >> 27)) * _MIX_2) & _MASK
        state ^= state >> 31
    return _signed(state)


def uniform_float(*words: int | str) -> float:
    """Draw one number from [0, 1), 53 bits deep, that depends on the words alone."""
    return ((mix(*words) & _MASK) >> 11) * 2.0**-53


def below(limit: int, *words: int | str) -> int:
    """Draw one integer from 0 to `limit` - 1 that depends on the words alone.

    Args:
        limit: At least 1.
        words: What the draw depends on.
    """
    return ((mix(*words) & _MASK) * limit) >> 64


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix_tensor(seeds: Tensor, *words: int | str | Tensor) -> Tensor:
    """Continue `mix` on a tensor of seeds: for a seed `mix(a)` and a word b this is `mix(a, b)`, element by element.

    Args:
        seeds: States, any shape, int64.
        words: Further words; tensors broadcast against the seeds.

    Returns:
        Mixed words, int64, of the broadcast shape.
    """
    state = seeds
    for word in words:
        if isinstance(word, str):
            word = zlib.crc32(word.encode())
        if isinstance(word, int):
            word = _signed(word & _MASK)
        state = state + word + _signed(_GOLDEN)
        state = (state ^ _shift(state, 30)) * _signed(_MIX_1)
        state = (state ^ _shift(state, 27)) * _signed(_MIX_2)
        state = state ^ _shift(state, 31)
    return state


def uniform(seeds: Tensor, name: str, count: int = 1) -> Tensor:
    """Draw `count` numbers from [0, 1) for every seed.

    Args:
        seeds: (N,), int64.
        name: What the numbers are for; other names give independent numbers.
        count: Numbers per seed.

    Returns:
        (N, count), float32, 24 bits deep, on the device of the seeds.
    """
    import torch

    counters = torch.arange(count, device=seeds.device)
    words = mix_tensor(seeds[:, None], name, counters[None, :])
    return _shift(words, 40).to(torch.float32) * 2.0**-24


def normal(seeds: Tensor, name: str, count: int = 1) -> Tensor:
    """Draw `count` numbers of the standard normal distribution for every seed (Box and Muller 1958).

    Args:
        seeds: (N,), int64.
        name: What the numbers are for.
        count: Numbers per seed.

    Returns:
        (N, count), float32.
    """
    import torch

    pairs = -(-count // 2)
    radius = (-2.0 * torch.log1p(-uniform(seeds, name + "/radius", pairs))).sqrt()
    angle = 2.0 * math.pi * uniform(seeds, name + "/angle", pairs)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]
