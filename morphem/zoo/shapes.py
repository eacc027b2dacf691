"""What the shapes of a transformer's tensors show."""


def mlp_ratio(hidden: int, width: int) -> float:
    """Return the ratio of which timm makes the width of an MLP, int(width * ratio), without losing one to rounding.

    Args:
        hidden: Width of the MLP.
        width: D.
    """
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width
