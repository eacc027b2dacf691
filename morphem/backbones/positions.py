"""Positions of patches: learned tables for other grids, and fixed ones.

Source: Caron et al. 2021, https://arxiv.org/abs/2104.14294, `vision_transformer.py` at cb711401, for the resampling.
"""

from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from morphem.errors import ConfigError

Positions = Literal["learned", "sincos", "sincos_columns"]
FIXED: tuple[Positions, ...] = ("sincos", "sincos_columns")
_PREFIX = 1  # the class token


class Resampling(NamedTuple):
    """How a table of positions is resampled, bicubic in each case.

    Attributes:
        offset: Added to the new grid before it is divided by the old one, and the factor itself then says where to
            sample. DINO adds 0.1, so that rounding down cannot lose a patch. With 0 the exact size is asked for.
        antialias: Whether to widen the filter where the grid shrinks, as the later releases of DINOv2 do.
    """

    offset: float = 0.1
    antialias: bool = False


DINO = Resampling()


def resampled_positions(
    table: Tensor,
    trained: tuple[int, int],
    grid: tuple[int, int],
    always: bool = False,
    resampling: Resampling = DINO,
) -> Tensor:
    """Resample a table of positions, (1, 1 + h0 * w0, D) to (1, 1 + h * w, D).

    DINO leaves the table alone only where the number of patches is the trained one and the plane is square.

    Args:
        table: Position of the class token, then of patches row by row.
        trained: Patches along height and width that the table is for.
        grid: Patches along height and width that are wanted.
        always: Whether to resample the trained square too, by the factor (n + offset) / n.
        resampling: DINO's where not given.
    """
    if grid[0] * grid[1] == trained[0] * trained[1] and grid[0] == grid[1] and not always:
        return table
    rows = _resampling(trained[0], grid[0], resampling, table.device, table.dtype)  # (h, h0)
    columns = _resampling(trained[1], grid[1], resampling, table.device, table.dtype)  # (w, w0)
    patches = table[0, _PREFIX:].reshape(*trained, -1)  # (h0, w0, D)
    patches = torch.einsum("yi,xj,ijd->yxd", rows, columns, patches).flatten(0, 1)
    return torch.cat([table[:, :_PREFIX], patches[None]], dim=1)


def sincos_positions(grid: tuple[int, int], dim: int) -> Tensor:
    """Return sines and cosines of the row, then of the column of each patch, (1, h * w, D), float32.

    Each quarter of D has the frequencies 10000 ** (-k / (D / 4)), k = 0 .. D / 4 - 1.

    Source: He et al. 2022, https://arxiv.org/abs/2111.06377, from Vaswani et al. 2017; row before column as
    GSK-AI/campfire at b034f8d has it.

    Args:
        grid: Patches along height h and width w.
        dim: D, a multiple of 4.

    Raises:
        ConfigError: If D is no multiple of 4.
    """
    if dim % 4:
        raise ConfigError(f"positions='sincos' needs an embed_dim that 4 divides, not {dim}.")
    rates = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64, device="cpu") / (dim // 4))
    angles = [torch.arange(n, dtype=torch.float64, device="cpu")[:, None] * rates for n in grid]  # (h, D/4), (w, D/4)
    rows, columns = (torch.cat([angle.sin(), angle.cos()], dim=1) for angle in angles)
    shape = (*grid, dim // 2)
    table = torch.cat([rows[:, None].expand(shape), columns[None].expand(shape)], dim=2)
    return table.flatten(0, 1)[None].float()


def fixed_positions(kind: Positions, grid: tuple[int, int], dim: int) -> Tensor:
    """Return fixed positions of a grid of patches, (1, h * w, D), float32.

    Args:
        kind: `sincos`: the row of a patch, then its column (`sincos_positions`); `sincos_columns`: the column first, as
            the public code of He et al. 2022 stores it (https://github.com/facebookresearch/mae).
        grid: Patches along height h and width w.
        dim: D, a multiple of 4.

    Raises:
        ConfigError: If D is no multiple of 4.
    """
    table = sincos_positions(grid, dim)
    return table if kind == "sincos" else table.roll(dim // 2, dims=2)


@lru_cache(maxsize=256)
def _resampling(old: int, new: int, rule: Resampling, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the matrix (new, old) that resamples one axis of the position table.

    Bicubic is linear and separable, so two small matrices replace it: the same numbers, and a backward pass that is
    deterministic on every device.
    """
    with torch.inference_mode(False), torch.no_grad():  # a cached inference tensor could not be used in training
        # two columns: of images of one column, torch's antialiasing kernel makes nonsense
        unit = torch.eye(old, dtype=torch.float64, device="cpu").reshape(1, old, old, 1).repeat(1, 1, 1, 2)
        # a factor says where to sample, too; a size samples at exact steps
        goal: dict[str, Any] = {"scale_factor": ((new + rule.offset) / old, 1.0)} if rule.offset else {"size": (new, 2)}
        matrix = functional.interpolate(unit, mode="bicubic", align_corners=False, antialias=rule.antialias, **goal)
        return matrix[0, :, :, 0].T.to(device=device, dtype=dtype).contiguous()
