"""Quality columns: seven numbers about each plane, which describe and never decide.

| column | meaning | range |
| --- | --- | --- |
| `quality.focus` | 1 - C(2) / C(1), the loss of correlation from one pixel to two: large is sharp | about 0 to 1 |
| `quality.saturated` | share of pixels that have the plane's largest intensity, before clipping | 0 to 1 |
| `quality.empty` | share of tiles without structure: C(1) / C(0) below 0.2, neighbours differ as noise does | 0 to 1 |
| `quality.flat` | whether all pixels have one level after clipping | 0 or 1 |
| `quality.illumination` | range of a surface through the tiles' backgrounds, as share of the clip range | 0 to 1 |
| `quality.mean` | mean intensity, before clipping | that of the camera |
| `quality.foreground` | share of pixels above Otsu's threshold of the levels | 0 to 1 |

C(k) is the mean product of pixels k apart, along rows and along columns, about the mean of their tile, summed over
tiles of 64 x 64 pixels: at most 16 x 16 of them, spread evenly. Noise of a camera is independent between pixels, so it
is in C(0) alone and disturbs neither C(1) nor C(2); contrast and brightness cancel. Focus compares planes of one
channel and magnification; it also depends on what is there. A plane without structure has none (null). The background
of a tile is its lower quartile; the surface has degree 2. All but `saturated` and `mean` are measured on the 8-bit
levels, also where intensities are stored.

Source: Vollath, J. Microsc. 147 (1987) 279 (autocorrelation of neighbours as a measure of focus); share at the maximum:
Bray et al., J. Biomol. Screen. 17 (2012) 266 (PercentMaximal); Otsu, IEEE Trans. Syst. Man Cybern. 9 (1979) 62.
"""

import numpy as np
from numpy.typing import NDArray

from morphem.data.intensities import level_table
from morphem.ingest.scaling import Scaled

TILE_PX = 64
MAX_TILES = 16
NOISE_CORRELATION = 0.2

_DECIMALS = 6  # the last digits of sums depend on the processor, and a shard set must not

Floats = NDArray[np.float64]


def measure(scaled: Scaled) -> dict[str, float]:
    """Measure a plane.

    Args:
        scaled: As `morphem.ingest.scaling.scale` gives it.

    Returns:
        The quality columns; `quality.focus` is left out where nothing has structure.
    """
    tiles = cut_tiles(scaled)
    spread, near, far = covariances(tiles)
    quality = {
        "quality.saturated": scaled.at_maximum,
        "quality.empty": float((near <= NOISE_CORRELATION * spread).mean()),
        "quality.flat": float(scaled.flat),
        "quality.illumination": round(unevenness(tiles), _DECIMALS),
        "quality.mean": scaled.mean,
        "quality.foreground": foreground(scaled.levels),
    }
    if near.sum() > NOISE_CORRELATION * spread.sum():
        quality["quality.focus"] = round(float(1 - far.sum() / near.sum()), _DECIMALS)
    return quality


def cut_tiles(scaled: Scaled) -> NDArray[np.uint8]:
    """Cut tiles of levels out of a plane, (rows, columns, h, w); a plane below the size of a tile is one tile."""
    plane = scaled.plane
    (height, tops), (width, lefts) = (_places(length) for length in plane.shape)
    windows = np.lib.stride_tricks.sliding_window_view(plane, (height, width))
    tiles = windows[np.ix_(tops, lefts)]
    if plane.dtype == np.uint8:
        return tiles
    return level_table(scaled.low, scaled.high, 0, 2**16).take(tiles)


def _places(length: int) -> tuple[int, NDArray[np.int64]]:
    """Length of the tiles along an axis, and where they start."""
    size = min(length, TILE_PX)
    count = min(MAX_TILES, length // size)
    return size, np.linspace(0, length - size, count).astype(np.int64)


def covariances(tiles: NDArray[np.uint8]) -> tuple[Floats, Floats, Floats]:
    """Covariance of each tile's pixels with themselves, with those one pixel further, and two: each (tiles,).

    Args:
        tiles: (rows, columns, h, w). Along an axis that is shorter than 3 pixels nothing is compared.
    """
    pixels = tiles.reshape(-1, *tiles.shape[2:]).astype(np.int32)  # whole numbers: exact, and below 2**31
    mean = pixels.mean(axis=(1, 2))
    apart = [np.zeros(len(pixels)) for _ in range(3)]
    for lag in range(3):
        for across in (pixels, pixels.swapaxes(1, 2)):
            if across.shape[1] > 2:
                first, second = across[:, : across.shape[1] - lag], across[:, lag:]
                products = np.einsum("tij,tij->t", first, second) / first[0].size
                sums = first.mean(axis=(1, 2)) + second.mean(axis=(1, 2))
                apart[lag] += products - mean * sums + mean**2
    return apart[0], apart[1], apart[2]


def unevenness(tiles: NDArray[np.uint8]) -> float:
    """Range of the surface of degree 2 that fits the lower quartiles of the tiles best, 0 to 1.

    Args:
        tiles: (rows, columns, h, w). With fewer than 3 along an axis the surface has fewer terms.
    """
    rows, columns = tiles.shape[:2]
    ordered = np.sort(tiles.reshape(rows * columns, -1), axis=1, kind="stable")
    background = ordered[:, ordered.shape[1] // 4].astype(np.float64)
    y, x = (axis.ravel() for axis in np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j])
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=1)
    surface = terms @ np.linalg.lstsq(terms, background, rcond=None)[0]
    return float(np.clip(np.ptp(surface) / 255, 0, 1))


def foreground(levels: NDArray[np.int64]) -> float:
    """Share of pixels above the threshold that parts them best into two classes (Otsu); 0 where there is one level.

    Args:
        levels: Number of pixels of each level, (256,).
    """
    count = levels.astype(np.float64)
    below, total = np.cumsum(count)[:-1], count.sum()
    weighted = np.cumsum(count * np.arange(256))
    above = total - below
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = weighted[:-1] / below - (weighted[-1] - weighted[:-1]) / above
        between = np.where((below > 0) & (above > 0), below * above * gap**2, 0.0)
    return float(above[between.argmax()] / total) if between.any() else 0.0
