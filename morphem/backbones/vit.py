"""Vision transformers of timm for single-channel planes, with DINO's treatment of position embeddings.

Source: Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929; timm's `vision_transformer.py`; for positions and
the class token Caron et al. 2021, https://arxiv.org/abs/2104.14294, `vision_transformer.py` at cb711401.
Differs from timm: positions are resampled as the released DINO and CHAMMI-75 weights were trained (timm's way changes
the embedding of a 96-pixel view by 0.02 to 0.9), and the class token starts with a standard deviation of 0.02.
"""

from typing import Any, Literal, Self

import timm
import torch
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn

from morphem.backbones.base import TokenBackbone
from morphem.backbones.class_token import cut_last_block
from morphem.backbones.patches import patch_grid
from morphem.backbones.positions import resampled_positions, sincos_positions
from morphem.errors import ConfigError, unknown_name

_PREFIX = 1  # the class token
PATCH_PROJECTION = "network.patch_embed.proj.weight"  # its key in the state of a `VisionTransformer`


class VisionTransformer(TokenBackbone):
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
        positions: `learned` trains the table and resamples it for other grids as DINO does; `sincos` keeps sines and
            cosines of row and column (`sincos_positions`), computed anew for each grid.

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
        positions: Literal["learned", "sincos"] = "learned",
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
        if positions not in ("learned", "sincos"):
            raise ConfigError(f"vit: positions='{positions}' must be 'learned' or 'sincos'.")
        self.fixed_positions = positions == "sincos"
        if self.fixed_positions:
            table = sincos_positions(self.network.patch_embed.grid_size, self.embed_dim)
            del self.network.pos_embed
            self.network.register_buffer("pos_embed", torch.cat([torch.zeros_like(table[:, :_PREFIX]), table], dim=1))

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
        return self.class_token(self._placed(planes))

    def tokens(self, planes: Tensor) -> Tensor:
        """Return all tokens after the last normalisation, class token first, patches row by row, (P, T, D).

        Args:
            planes: As `forward` takes them.

        Raises:
            DataError: If the patch does not divide H and W.
        """
        return self.encode(self._placed(planes))

    def patches(self, planes: Tensor) -> Tensor:
        """Cut planes into patches and project them, (P, h * w, D); no position is added.

        Args:
            planes: As `forward` takes them.

        Raises:
            DataError: If the patch does not divide H and W.
        """
        patch_grid(planes, self.patch_size_px)
        return self.network.patch_embed(planes).flatten(1, 2)  # type: ignore[no-any-return]  # from (P, h, w, D)

    def encode(self, tokens: Tensor) -> Tensor:
        """Put the class token before patch tokens, run all blocks and the last normalisation, (B, 1 + T, D).

        Args:
            tokens: Patch tokens with their positions, any number of them, in any order, (B, T, D).
        """
        return self.network.norm(self.network.blocks(self._entering(tokens)))  # type: ignore[no-any-return]

    def class_token(self, tokens: Tensor) -> Tensor:
        """Return the class token of `encode`, (B, D), without computing the others of the last block.

        Args:
            tokens: As `encode` takes them.
        """
        if not self._cut:
            return self.encode(tokens)[:, 0]
        network = self.network
        x = self._entering(tokens)
        for block in network.blocks[:-1]:
            x = block(x)
        return network.norm(network.blocks[-1](x, first_only=True))[:, 0]  # type: ignore[no-any-return]

    def _entering(self, tokens: Tensor) -> Tensor:
        """Return what enters the first block, the class token first, (B, 1 + T, D)."""
        network = self.network
        return network.norm_pre(network.patch_drop(network.pos_drop(self._with_class(tokens))))  # type: ignore[no-any-return]

    def _with_class(self, tokens: Tensor) -> Tensor:
        """Put the class token with its position before patch tokens, (B, 1 + T, D)."""
        class_token = self.network.cls_token + self.network.pos_embed[:, :_PREFIX]
        return torch.cat([class_token.expand(len(tokens), -1, -1), tokens], dim=1)

    def embedded(self, planes: Tensor) -> Tensor:
        """Return class token and patch tokens with their positions, before any block, (P, T, D)."""
        return self._with_class(self._placed(planes))

    def _placed(self, planes: Tensor) -> Tensor:
        """Return patch tokens with their positions, (P, h * w, D)."""
        return self.patches(planes) + self.patch_positions(patch_grid(planes, self.patch_size_px))

    def patch_positions(self, grid: tuple[int, int], resample_trained: bool = False) -> Tensor:
        """Return the positions of the patches of a grid, (1, h * w, D).

        Args:
            grid: Patches along height and width.
            resample_trained: See `positions`.
        """
        return self.positions(grid, resample_trained)[:, _PREFIX:]

    def positions(self, grid: tuple[int, int], resample_trained: bool = False) -> Tensor:
        """Return class and patch positions for a grid of patches, (1, 1 + h * w, D).

        Learned ones are resampled (`resampled_positions`); fixed ones are those of the table on the trained grid, and
        computed on others.

        Args:
            grid: Patches along height and width.
            resample_trained: Whether to resample the trained square too, by the factor (n + 0.1) / n.
        """
        table = self.network.pos_embed
        trained = self.network.patch_embed.grid_size
        if self.fixed_positions and not resample_trained:
            return table if grid == tuple(trained) else self._computed(grid)
        return resampled_positions(table, trained, grid, resample_trained)

    def _computed(self, grid: tuple[int, int]) -> Tensor:
        table = self.network.pos_embed
        patches = sincos_positions(grid, self.embed_dim).to(table.device, table.dtype)
        return torch.cat([table[:, :_PREFIX], patches], dim=1)

    def widen(self, n_channels: int) -> None:
        """Replace the patch projection by an untrained one that takes images of several channels, (N, C, H, W).

        Args:
            n_channels: C, at least 1.
        """
        old = self.network.patch_embed.proj
        self.network.patch_embed.proj = nn.Conv2d(
            n_channels, old.out_channels, old.kernel_size, old.stride, bias=old.bias is not None
        )

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
