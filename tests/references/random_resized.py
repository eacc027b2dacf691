"""The box of one random resized crop, written plainly after torchvision's documentation, from given draws."""

import math


def box(
    height: int, width: int, area: tuple[float, float], aspect: tuple[float, float], draws: list[float]
) -> tuple[int, int, int, int]:
    """The box (y, x, height, width); draws are areas and aspects of all tries, then the place (y, x), in [0, 1)."""
    tries = (len(draws) - 2) // 2
    for i in range(tries):
        target = height * width * (area[0] + (area[1] - area[0]) * draws[i])
        low, high = math.log(aspect[0]), math.log(aspect[1])
        ratio = math.exp(low + (high - low) * draws[tries + i])
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return math.floor(draws[-2] * (height - h + 1)), math.floor(draws[-1] * (width - w + 1)), h, w
    h, w = height, width
    if width / height < aspect[0]:
        h = round(width / aspect[0])
    elif width / height > aspect[1]:
        w = round(height * aspect[1])
    return (height - h) // 2, (width - w) // 2, h, w
