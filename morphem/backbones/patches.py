"""How planes divide into patches."""

from torch import Tensor

from morphem.errors import DataError


def patch_grid(planes: Tensor, patch_size_px: tuple[int, int]) -> tuple[int, int]:
    """Return how many patches planes have along height and width.

    Args:
        planes: (P, C, H, W).
        patch_size_px: Height and width of a patch in pixels.

    Raises:
        DataError: If the patch does not divide H and W.
    """
    height, width = planes.shape[-2:]
    patch = patch_size_px
    if height % patch[0] or width % patch[1] or not height or not width:
        raise DataError(
            f"planes of {height} x {width} pixels do not divide into patches of {patch[0]} x {patch[1]}; "
            f"resize or crop them to multiples of {patch[0]} (input_size_px of the encoder does it)."
        )
    return height // patch[0], width // patch[1]
