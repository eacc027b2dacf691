"""Vision transformers of timm for single planes: one network that can be everything the published encoders are.

Source: Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929; timm's `vision_transformer.py`; for positions and
the class token Caron et al. 2021, https://arxiv.org/abs/2104.14294, `vision_transformer.py` at cb711401.
Differs from timm: positions are resampled as the released DINO and CHAMMI-75 weights were trained (timm's way changes
the embedding of a 96-pixel view by 0.02 to 0.9), the class token starts with a standard deviation of 0.02, and register
tokens have no position while the class token has one, as DINOv2's authors store it.
"""

from typing import Any, Self

import torch
from torch import Tensor, nn

from morphem.backbones.base import TokenBackbone
from morphem.backbones.class_token import cut_last_block
from morphem.backbones.patches import patch_grid
from morphem.backbones.positions import Positions, Resampling, fixed_positions, resampled_positions
from morphem.backbones.rotary import Rotary, Rotation, axial_frequencies, make_rotary
from morphem.backbones.timm_network import CLASS, Pooling, check_choices, check_numbers, timm_network
from morphem.errors import ConfigError

PATCH_PROJECTION = "network.patch_embed.proj.weight"  # its key in the state of a `VisionTransformer`


class VisionTransformer(TokenBackbone):
    """A timm vision transformer, for planes of any size that its patches divide.

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
        positions: `learned` trains the table and resamples it for other grids; `sincos` keeps sines and cosines of row
            and column, computed anew for each grid; `sincos_columns` the same, the column before the row.
        in_channels: Planes that the patch projection takes at once.
        registers: Further tokens behind the class token, without position.
        layer_scale: What the factors of both branches of a block start with; no factors where not given. DINOv2
            starts with 1e-5.
        qkv_bias: Whether queries, keys and values have a bias.
        layer_norm_eps: Epsilon of all normalisations.
        final_norm: Whether tokens are normalised after the last block.
        mlp_ratio: Width of the MLP over D; as `name` says where not given.
        pooling: What the embedding is: `class`, the class token; `mean`, the mean of all patch tokens.
        position_offset: Learned positions are resampled by the factor (n + offset) / n0, n0 being the trained grid. 0.1
            as DINO does; 0 resamples to the exact size, as DINOv2's later releases and transformers do.
        position_antialias: Whether to widen the filter where positions are resampled to fewer.
        rotary: `axial` and `mixed` turn queries and keys by the place of their patch, with fixed frequencies for column
            and row, or with trained ones; see `morphem.backbones.rotary`.
        rotary_base: Frequencies fall from 1 to 1 / base. Campfire: 10.
        rotation: `full`; `cosine` for weights that were trained with Campfire's code, which lost the sine.

    Raises:
        ConfigError: If timm has no such network, or it is not a vision transformer with a class token and learned
            positions, or settings do not go together or have no effect.
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
        positions: Positions = "learned",
        in_channels: int = 1,
        registers: int = 0,
        layer_scale: float | None = None,
        qkv_bias: bool = True,
        layer_norm_eps: float = 1e-6,
        final_norm: bool = True,
        mlp_ratio: float | None = None,
        pooling: Pooling = "class",
        position_offset: float = 0.1,
        position_antialias: bool = False,
        rotary: Rotary = "none",
        rotary_base: float = 10.0,
        rotation: Rotation = "full",
    ) -> None:
        super().__init__()
        check_numbers(drop_path_rate, in_channels, registers, layer_scale, layer_norm_eps)
        check_choices(positions, pooling, position_offset, position_antialias, rotary, rotary_base, rotation)
        changes = {
            "patch_size": patch_size_px,
            "img_size": image_size_px,
            "embed_dim": embed_dim,
            "depth": depth,
            "num_heads": n_heads,
            "mlp_ratio": mlp_ratio,
            "init_values": layer_scale,
        }
        self.network = timm_network(
            name,
            {key: value for key, value in changes.items() if value is not None},
            drop_path_rate=drop_path_rate,
            in_chans=in_channels,
            reg_tokens=registers,
            qkv_bias=qkv_bias,
            layer_norm_eps=layer_norm_eps,
            final_norm=final_norm,
        )
        self.embed_dim: int = self.network.embed_dim
        self.pooling = pooling
        self.n_prefix = CLASS + registers
        self.fixed_positions = positions != "learned"
        self.kind_of_positions = positions
        self.resampling = Resampling(position_offset, position_antialias)
        self.needs_places = rotary != "none"
        self._set_table(positions)
        nn.init.trunc_normal_(self.network.cls_token, std=0.02)
        self._cut = rotary != "none" or cut_last_block(self.network.blocks)
        if rotary != "none":
            make_rotary(self.network.blocks, rotary, rotation, rotary_base)
        head_dim = self.embed_dim // self.network.blocks[0].attn.num_heads
        self._axial = axial_frequencies(head_dim, rotary_base) if rotary == "axial" else None

    def _set_table(self, positions: Positions) -> None:
        """Give the network positions of the class token and the patches; registers have none."""
        network = self.network
        if positions != "learned":
            table = fixed_positions(positions, network.patch_embed.grid_size, self.embed_dim)
            table = torch.cat([torch.zeros_like(table[:, :CLASS]), table], dim=1).to(network.cls_token.device)
            del network.pos_embed
            network.register_buffer("pos_embed", table)
        elif self.n_prefix > CLASS:
            table = network.pos_embed.detach()
            network.pos_embed = nn.Parameter(torch.cat([table[:, :CLASS], table[:, self.n_prefix :]], dim=1))

    @property
    def patch_size_px(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        height, width = self.network.patch_embed.patch_size
        return height, width

    @property
    def in_channels(self) -> int:
        """Planes that the patch projection takes at once."""
        return int(self.network.patch_embed.proj.in_channels)

    def forward(self, planes: Tensor) -> Tensor:
        """Embed planes.

        Args:
            planes: Normalised pixels, (P, 1, H, W), or images (N, C, H, W) where the network takes C planes at once;
                the patch divides H and W.

        Returns:
            (P, D).

        Raises:
            DataError: If the patch does not divide H and W.
        """
        return self.class_token(self._placed(planes), self._places(planes))

    def tokens(self, planes: Tensor) -> Tensor:
        """Return all tokens after the last normalisation, class token first, patches row by row, (P, T, D).

        Args:
            planes: As `forward` takes them.

        Raises:
            DataError: If the patch does not divide H and W.
        """
        return self.last_tokens(planes, 1)[0]

    def last_tokens(self, planes: Tensor, n_blocks: int) -> list[Tensor]:
        """Return all tokens after each of the last blocks, every one normalised as the last, oldest first.

        Args:
            planes: As `forward` takes them.
            n_blocks: At least 1, at most the depth.

        Returns:
            `n_blocks` tensors (P, n_prefix + h * w, D): class token, registers, patches row by row.

        Raises:
            DataError: If the patch does not divide H and W.
        """
        return [self.network.norm(x) for x in self._blocks(self._placed(planes), self._places(planes), n_blocks)]

    def patches(self, planes: Tensor) -> Tensor:
        """Cut planes into patches and project them, (P, h * w, D); no position is added.

        Args:
            planes: As `forward` takes them.

        Raises:
            DataError: If the patch does not divide H and W.
        """
        patch_grid(planes, self.patch_size_px)
        return self.network.patch_embed(planes).flatten(1, 2)  # type: ignore[no-any-return]  # from (P, h, w, D)

    def encode(self, tokens: Tensor, places: Tensor | None = None) -> Tensor:
        """Put the class token before patch tokens, run all blocks and the last normalisation, (B, n_prefix + T, D).

        Where the embedding is the mean of the patches, it takes the place of the class token.

        Args:
            tokens: Patch tokens with their positions, any number of them, in any order, (B, T, D).
            places: Row and column of each token's patch, (B or 1, T, 2), where the network `needs_places`.

        Raises:
            ConfigError: If a rotary network is not told the places.
        """
        encoded: Tensor = self.network.norm(self._blocks(tokens, places, 1)[0])
        if self.pooling == "class":
            return encoded
        return torch.cat([encoded[:, self.n_prefix :].mean(1, keepdim=True), encoded[:, 1:]], dim=1)

    def class_token(self, tokens: Tensor, places: Tensor | None = None) -> Tensor:
        """Return the embedding, (B, D): the class token of `encode`, without computing what only the others need.

        Args:
            tokens: As `encode` takes them.
            places: The same.

        Raises:
            ConfigError: If a rotary network is not told the places.
        """
        if not self._cut or self.pooling != "class":
            return self.encode(tokens, places)[:, 0]
        return self.network.norm(self._blocks(tokens, places, 1, first_only=True)[0])[:, 0]  # type: ignore[no-any-return]

    def _blocks(self, tokens: Tensor, places: Tensor | None, n_blocks: int, first_only: bool = False) -> list[Tensor]:
        """Return what the last blocks give for patch tokens, not normalised, each (B, n_prefix + T, D) or (B, 1, D)."""
        x, outputs = self._entering(tokens), []
        turning = self._turning(tokens, places)
        depth = len(self.network.blocks)
        for number, block in enumerate(self.network.blocks):
            last = {"first_only": True} if first_only and number == depth - 1 else {}
            x = block(x, *turning, **last)
            if number >= depth - n_blocks:
                outputs.append(x)
        return outputs

    def _turning(self, tokens: Tensor, places: Tensor | None) -> tuple[Any, ...]:
        """Return what a rotary block takes besides tokens: places of all of them, and the frequencies they share."""
        if not self.needs_places:
            return ()
        if places is None:
            raise ConfigError(
                "vit: a network with rotary positions needs the place of every token, which this method or strategy "
                "does not give; take rotary: none, or one that does."
            )
        places = places.to(
            torch.promote_types(tokens.dtype, torch.float32)
        )  # half a turn needs more than half precision
        none = places.new_zeros(len(places), self.n_prefix, 2)
        frequencies = None if self._axial is None else self._axial.to(tokens.device, non_blocking=True)
        return torch.cat([none, places], dim=1), frequencies

    def _entering(self, tokens: Tensor) -> Tensor:
        """Return what enters the first block, the class token first, (B, n_prefix + T, D)."""
        network = self.network
        return network.norm_pre(network.patch_drop(network.pos_drop(self._with_class(tokens))))  # type: ignore[no-any-return]

    def _with_class(self, tokens: Tensor) -> Tensor:
        """Put the class token with its position, and registers, before patch tokens, (B, n_prefix + T, D)."""
        first = [self.network.cls_token + self.network.pos_embed[:, :CLASS]]
        if self.n_prefix > CLASS:
            first.append(self.network.reg_token)
        return torch.cat([*(part.expand(len(tokens), -1, -1) for part in first), tokens], dim=1)

    def embedded(self, planes: Tensor) -> Tensor:
        """Return class token, registers and patch tokens with their positions, before any block, (P, T, D)."""
        return self._with_class(self._placed(planes))

    def _placed(self, planes: Tensor) -> Tensor:
        """Return patch tokens with their positions, (P, h * w, D)."""
        return self.patches(planes) + self.patch_positions(patch_grid(planes, self.patch_size_px))

    def _places(self, planes: Tensor) -> Tensor | None:
        """Return row and column of all patches of planes, (1, h * w, 2), where the blocks need them."""
        return grid_places(patch_grid(planes, self.patch_size_px), planes.device) if self.needs_places else None

    def patch_positions(self, grid: tuple[int, int], resample_trained: bool = False) -> Tensor:
        """Return the positions of the patches of a grid, (1, h * w, D).

        Args:
            grid: Patches along height and width.
            resample_trained: See `positions`.
        """
        return self.positions(grid, resample_trained)[:, CLASS:]

    def positions(self, grid: tuple[int, int], resample_trained: bool = False) -> Tensor:
        """Return class and patch positions for a grid of patches, (1, 1 + h * w, D).

        Learned ones are resampled (`resampled_positions`); fixed ones are those of the table on the trained grid, and
        computed on others.

        Args:
            grid: Patches along height and width.
            resample_trained: Whether to resample the trained square too, by the factor (n + offset) / n.
        """
        table = self.network.pos_embed
        trained = self.network.patch_embed.grid_size
        if self.fixed_positions and not resample_trained:
            return table if grid == tuple(trained) else self._computed(grid)
        return resampled_positions(table, trained, grid, resample_trained, self.resampling)

    def _computed(self, grid: tuple[int, int]) -> Tensor:
        table = self.network.pos_embed
        patches = fixed_positions(self.kind_of_positions, grid, self.embed_dim).to(table.device, table.dtype)
        return torch.cat([table[:, :CLASS], patches], dim=1)

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


def grid_places(grid: tuple[int, int], device: torch.device) -> Tensor:
    """Return row and column of the patches of a grid, row by row, (1, h * w, 2), int64.

    Args:
        grid: Patches along height h and width w.
        device: Where to.
    """
    rows, columns = (torch.arange(n, device=device) for n in grid)
    return torch.cartesian_prod(rows, columns)[None]
