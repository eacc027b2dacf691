"""Vision transformers of timm for single-channel planes, with DINO's treatment of position embeddings.

Source: Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929; timm's `vision_transformer.py`; for positions and
the class token Caron et al. 2021, https://arxiv.org/abs/2104.14294, `vision_transformer.py` at cb711401.
Differs from timm: positions are resampled as the released DINO and CHAMMI-75 weights were trained (timm's way changes
the embedding of a 96-pixel view by 0.02 to 0.9), and the class token starts with a standard deviation of 0.02.
"""

from functools import lru_cache
from typing import Any, Self

import timm
import torch
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from morphem.backbones.base import Backbone
from morphem.backbones.class_token import cut_last_block
from morphem.errors import ConfigError, DataError, unknown_name

_GRID_NUDGE = 0.1  # DINO adds it to the new grid before it divides, so that rounding down cannot lose a patch
_PREFIX = 1  # the class token


class VisionTransformer(Backbone):
    """A timm vision transformer with one input channel, for planes of any size that its patches divide.

    The embedding is the class token after the last normalisation.

    Args:
        name: A vision transformer of timm with a class token, for example `vit_tiny_patch16_224`,
            `vit_small_patch16_224`, `vit_base_patch16_224`, `vit_large_patch16_224` or `test_vit`.
        drop_path_rate: Stochastic depth of the last block, 0 to below 1; it rises linearly from 0 over the blocks.
            DINO uses 0.1 for the student.
        patch_size_px: Side of a patch in pixels; as `name` says where not given.
        image_size_px: Side in pixels of the square plane that the stored positions belong to; as `name` says where
            not given. Other sizes work, with resampled positions.
        embed_dim: D; as `name` says where not given.
        depth: Number of blocks; as `name` says where not given.
        n_heads: Attention heads; as `name` says where not given. Must divide D.

    Raises:
        ConfigError: If timm has no such network, or it is not a vision transformer with a class token and learned
            positions, or the settings do not go together.
    """

    def __init__(
        self,
        name: str = "vit_small_patch16_224",
        drop_path_rate: float = 0.0,
        patch_size_px: int | None = None,
        image_size_px: int | None = None,
        embed_dim: int | None = None,
        depth: int | None = None,
        n_heads: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= drop_path_rate < 1:
            raise ConfigError(f"vit: drop_path_rate={drop_path_rate} must be at least 0 and below 1.")
        changes = {
            "patch_size": patch_size_px,
            "img_size": image_size_px,
            "embed_dim": embed_dim,
            "depth": depth,
            "num_heads": n_heads,
        }
        self.network = _build(name, drop_path_rate, {key: value for key, value in changes.items() if value is not None})
        self._cut = cut_last_block(self.network.blocks)
        self.embed_dim: int = self.network.embed_dim
        nn.init.trunc_normal_(self.network.cls_token, std=0.02)

    @property
    def patch_size_px(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        height, width = self.network.patch_embed.patch_size
        return height, width

    def forward(self, planes: Tensor) -> Tensor:
        """Embed planes.

        Args:
            planes: Normalised pixels, (P, 1, H, W); the patch divides H and W.

        Returns:
            (P, D).

        Raises:
            DataError: If the patch does not divide H and W.
        """
        if not self._cut:
            return self.tokens(planes)[:, 0]
        network = self.network
        x = self._entering(planes)
        for block in network.blocks[:-1]:
            x = block(x)
        return network.norm(network.blocks[-1](x, first_only=True))[:, 0]  # type: ignore[no-any-return]

    def tokens(self, planes: Tensor) -> Tensor:
        """Return all tokens after the last normalisation, class token first, patches row by row, (P, T, D).

        Args:
            planes: As `forward` takes them.

        Raises:
            DataError: If the patch does not divide H and W.
        """
        return self.network.norm(self.network.blocks(self._entering(planes)))  # type: ignore[no-any-return]

    def _entering(self, planes: Tensor) -> Tensor:
        network = self.network
        return network.norm_pre(network.patch_drop(network.pos_drop(self.embedded(planes))))  # type: ignore[no-any-return]

    def embedded(self, planes: Tensor) -> Tensor:
        """Return the tokens that enter the first block, positions added, (P, T, D)."""
        height, width = planes.shape[-2:]
        patch = self.patch_size_px
        if height % patch[0] or width % patch[1] or not height or not width:
            raise DataError(
                f"planes of {height} x {width} pixels do not divide into patches of {patch[0]} x {patch[1]}; "
                f"resize or crop them to multiples of {patch[0]} (input_size_px of the encoder does it)."
            )
        grid = (height // patch[0], width // patch[1])
        patches = self.network.patch_embed(planes).flatten(1, 2)  # (P, h, w, D) -> (P, h * w, D)
        class_token = self.network.cls_token.expand(len(patches), -1, -1)
        return torch.cat([class_token, patches], dim=1) + self.positions(grid)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Return class and patch positions for a grid of patches, (1, 1 + h * w, D).

        DINO leaves the table alone only where the number of patches is the trained one and the plane is square.

        Args:
            grid: Patches along height and width.
        """
        table = self.network.pos_embed
        trained = self.network.patch_embed.grid_size
        if grid[0] * grid[1] == trained[0] * trained[1] and grid[0] == grid[1]:
            return table  # type: ignore[no-any-return]
        rows = _resampling(trained[0], grid[0], table.device, table.dtype)  # (h, h0)
        columns = _resampling(trained[1], grid[1], table.device, table.dtype)  # (w, w0)
        patches = table[0, _PREFIX:].unflatten(0, trained)  # (h0, w0, D)
        patches = torch.einsum("yi,xj,ijd->yxd", rows, columns, patches).flatten(0, 1)
        return torch.cat([table[:, :_PREFIX], patches[None]], dim=1)

    @classmethod
    def tiny(cls) -> Self:
        """Build the smallest instance that works: two blocks of width 16 on patches of 8 pixels."""
        return cls("vit_tiny_patch16_224", patch_size_px=8, image_size_px=16, embed_dim=16, depth=2, n_heads=2)


def _build(name: str, drop_path_rate: float, changes: dict[str, Any]) -> Any:
    """Build the timm network without classifier and check that its tokens are what this file expects."""
    if not timm.is_model(name):
        raise ConfigError(unknown_name("timm network", name, [*timm.list_models("vit_*patch*_224"), "test_vit"]))
    arguments: dict[str, Any] = {
        "in_chans": 1,
        "num_classes": 0,
        "dynamic_img_size": True,
        "drop_path_rate": drop_path_rate,
    }
    try:
        network = timm.create_model(name, pretrained=False, **arguments, **changes)
    except (TypeError, ValueError, AssertionError) as fault:  # timm raises all three for settings that clash
        raise ConfigError(
            f"vit: '{name}' does not take {changes or arguments}: {fault or 'they do not fit'}."
        ) from fault
    usable = (
        isinstance(network, TimmVisionTransformer)
        and network.cls_token is not None
        and network.pos_embed is not None
        and network.num_prefix_tokens == _PREFIX
        and not network.no_embed_class
        and network.global_pool == "token"
    )
    if not usable:
        raise ConfigError(
            f"vit: '{name}' is not a vision transformer whose output is a class token with a learned position; "
            "take for example vit_tiny_patch16_224, vit_small_patch16_224 or vit_base_patch16_224."
        )
    return network


@lru_cache(maxsize=256)
def _resampling(old: int, new: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the matrix (new, old) that resamples one axis of the position table as DINO does.

    Bicubic without antialiasing is linear and separable, so two small matrices replace it: the same numbers, and a
    backward pass that is deterministic on every device.
    """
    with torch.inference_mode(False), torch.no_grad():  # a cached inference tensor could not be used in training
        unit = torch.eye(old, dtype=torch.float64, device="cpu").reshape(1, old, old, 1)
        scale = ((new + _GRID_NUDGE) / old, 1.0)
        matrix = functional.interpolate(unit, scale_factor=scale, mode="bicubic", align_corners=False)
        return matrix[0, :, :, 0].T.to(device=device, dtype=dtype).contiguous()
