"""What networks share that cut planes into patches by one convolution and add positions of their own."""

from torch import Tensor, nn

from morphem.backbones.base import TokenBackbone
from morphem.backbones.patches import patch_grid


class ProjectedPatches(TokenBackbone):
    """A backbone on patch tokens with a convolution as its patch projection.

    A subclass sets `patch_embed` and defines `patch_positions` and `encode`.

    Attributes:
        patch_embed: One input channel, D outputs; its kernel and its stride are the patch.
    """

    patch_embed: nn.Conv2d

    @property
    def patch_size_px(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        height, width = self.patch_embed.kernel_size
        return height, width

    def forward(self, planes: Tensor) -> Tensor:
        """Embed planes, (P, 1, H, W) to (P, D).

        Args:
            planes: Normalised pixels; the patch divides H and W.

        Raises:
            DataError: If the patch does not divide H and W.
        """
        tokens = self.patches(planes) + self.patch_positions(patch_grid(planes, self.patch_size_px))
        return self.class_token(tokens)

    def patches(self, planes: Tensor) -> Tensor:
        """Cut planes into patches and project them, (P, h * w, D); no position is added.

        Args:
            planes: As `forward` takes them.

        Raises:
            DataError: If the patch does not divide H and W.
        """
        patch_grid(planes, self.patch_size_px)
        projected: Tensor = self.patch_embed(planes)  # (P, D, h, w)
        return projected.flatten(2).transpose(1, 2)
