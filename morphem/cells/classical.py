"""Cells by threshold, distance transform and watershed: what works on a stained nucleus without any training.

Source: N. Otsu 1979, A threshold selection method from gray-level histograms, doi 10.1109/TSMC.1979.4310076; splitting
touching nuclei by the watershed of the distance transform as in CellProfiler's IdentifyPrimaryObjects (Carpenter et al.
2006, doi 10.1186/gb-2006-7-10-r100). The steps themselves are those of scikit-image.
"""

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from morphem.cells.base import CellFinder, Cells, numbered
from morphem.data.schema import resolve_channel
from morphem.errors import ConfigError, MorphemError

if TYPE_CHECKING:
    from morphem.data.record import ImageRecord

Floats: TypeAlias = NDArray[np.float32]
Labels: TypeAlias = NDArray[np.int32]

_BRIGHTEST = 99.9
_NOTHING = 1e-30
_MAD_TO_SIGMA = 1.4826  # of a normal distribution
_DIM = 0.5
"""Cells of this share of the brightness at Otsu's threshold are found where the threshold is adaptive."""
_CLOSEST = 0.7
"""Two centres closer than this share of a typical radius are one cell."""
_BLOB_SIGMA = 0.65
"""Width of the blob filter in typical radii; a disk answers most at 1 / sqrt(2), touching cells part better below."""
_BRIGHTEST_SPOT = 1.5
"""Pixels brighter than this against their surroundings are spots inside of a cell and count as this bright."""


class ClassicalCells(CellFinder):
    """Finds cells in one channel: smooth, threshold, split touching ones by the watershed of the distance transform.

    An image whose foreground does not stand out from the noise of its background has no cells.

    Args:
        channel: Channel type to look at, or several, of which the first that an image has is taken.
        threshold: `otsu` takes one threshold for the image, `adaptive` one for each pixel from its neighbourhood, for
            uneven light and for dim cells beside bright ones. Its neighbourhood is 5 typical diameters wide (15 of the
            smallest where `diameter_px` is not given), so say `diameter_px` where cells are large.
        min_diameter_px: Smaller objects are no cells; 2 or more.
        max_diameter_px: Objects of a larger area than this circle are no cells; None for no limit.
        diameter_px: Typical diameter, which decides how close two centres may be; None measures it in each image.
        min_contrast: How many standard deviations of the background the mean of the foreground must be above the
            mean of the background; 0 or more.
        correction: Factor on the threshold, counted from the background: above 1 finds less, below 1 more.
        darker: Cells are darker than the background, as in bright-field.

    Raises:
        ChannelError: If a channel type is not in the vocabulary.
        ConfigError: If a number is out of range.
    """

    def __init__(
        self,
        channel: str | tuple[str, ...] = "nucleus",
        threshold: Literal["otsu", "adaptive"] = "otsu",
        min_diameter_px: float = 8.0,
        max_diameter_px: float | None = None,
        diameter_px: float | None = None,
        min_contrast: float = 4.0,
        correction: float = 1.0,
        darker: bool = False,
    ) -> None:
        names = (channel,) if isinstance(channel, str) else tuple(channel)
        self.channels = tuple(resolve_channel(name) for name in names)
        if threshold not in ("otsu", "adaptive"):
            raise ConfigError(f"threshold is '{threshold}'; allowed: otsu, adaptive.")
        limits: tuple[tuple[str, float | None, float], ...] = (
            ("min_diameter_px", min_diameter_px, 2),
            ("max_diameter_px", max_diameter_px, min_diameter_px),
            ("diameter_px", diameter_px, min_diameter_px),
            ("min_contrast", min_contrast, 0),
            ("correction", correction, 0.01),
        )
        for name, value, least in limits:
            if value is not None and not value >= least:
                raise ConfigError(f"{name} is {value}; it must be {least:g} or more.")
        self.threshold, self.darker = threshold, darker
        self.min_diameter_px, self.max_diameter_px, self.diameter_px = min_diameter_px, max_diameter_px, diameter_px
        self.min_contrast, self.correction = min_contrast, correction

    def find(self, image: "ImageRecord") -> Cells | None:
        """Return the cells of an image; None if it has none of the channels.

        Args:
            image: Pixels of any number type.
        """
        plane = plane_of(image, self.channels)
        if plane is None:
            return None
        return cells_of(self.segment(plane))

    def without_cells(self, image: "ImageRecord") -> str | None:
        """Say which channel is missing."""
        return f"no cells were looked for, because there is no channel {' or '.join(self.channels)}"

    def segment(self, plane: NDArray[Any]) -> Labels:
        """Return the objects of a plane: 0 is background, cells are numbered from 1, (H, W).

        Args:
            plane: Pixels of any number type, (H, W).
        """
        smooth = _smoothed(plane, self.min_diameter_px)
        foreground = self._foreground(-smooth if self.darker else smooth)
        if foreground is None:
            return np.zeros(plane.shape, np.int32)
        return self._split(foreground, -smooth if self.darker else smooth)

    def _foreground(self, smooth: Floats) -> NDArray[np.bool_] | None:
        """Pixels above the threshold, in objects of the right size; None where nothing stands out."""
        from skimage.filters import threshold_local, threshold_otsu

        if self.threshold == "adaptive":  # so wide that a cell never fills its own neighbourhood
            width = 2 * round(2.5 * (self.diameter_px or 3 * self.min_diameter_px)) + 1
            smooth = smooth - threshold_local(smooth, width, method="gaussian")  # type: ignore[no-untyped-call]
        cut = float(threshold_otsu(smooth))  # type: ignore[no-untyped-call]
        above = smooth > cut
        if not above.any() or above.all():
            return None
        background = smooth[~above]
        centre = float(np.median(background))
        noise = _MAD_TO_SIGMA * float(np.median(np.abs(background - centre)))
        if float(smooth[above].mean()) - centre < max(self.min_contrast * noise, _NOTHING):
            return None
        if self.threshold == "adaptive":
            cut = centre + max(self.min_contrast * noise, _DIM * (cut - centre))
        return _without_small(smooth > centre + self.correction * (cut - centre), _circle(self.min_diameter_px))

    def _split(self, foreground: NDArray[np.bool_], smooth: Floats) -> Labels:
        """Cut touching cells apart.

        Shape alone misses cells that sit close together, and brightness alone breaks a textured cell up; so the seeds
        are the peaks of the product of both, each at the scale of a cell.
        """
        from scipy import ndimage
        from skimage.feature import peak_local_max
        from skimage.segmentation import watershed

        regions, count = ndimage.label(foreground)
        if count == 0:
            return np.zeros(foreground.shape, np.int32)
        radius = self.diameter_px / 2 if self.diameter_px else _typical_radius(foreground, regions, count)
        radius = max(radius, self.min_diameter_px / 2)
        foreground = _without_small_holes(foreground, np.pi * radius**2 / 2)
        regions, _ = ndimage.label(foreground)
        depth = np.minimum(ndimage.distance_transform_edt(foreground), radius)  # a clump is no deeper than a cell
        height = ndimage.gaussian_filter(depth, 0.2 * radius) * _blobs(smooth, foreground, radius)
        peaks = peak_local_max(  # type: ignore[no-untyped-call]
            height, min_distance=max(1, round(_CLOSEST * radius)), labels=regions, exclude_border=False
        )
        markers = np.zeros(foreground.shape, np.int32)
        markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
        objects = watershed(-height, markers, mask=foreground)  # type: ignore[no-untyped-call]
        most = None if self.max_diameter_px is None else _circle(self.max_diameter_px)
        return _of_size(objects, _circle(self.min_diameter_px), most)


def plane_of(image: "ImageRecord", channels: tuple[str, ...]) -> NDArray[Any] | None:
    """Return the pixels of the first of some channel types that an image has, or None.

    Args:
        image: Any image.
        channels: Channel types as the vocabulary spells them, in order of preference.
    """
    types = [_type_of(str(row["imaging.channel_type"])) for row in image.rows]
    for channel in channels:
        if channel in types:
            return image.planes[types.index(channel)]
    return None


def _type_of(name: str) -> str:
    try:
        return resolve_channel(name)
    except MorphemError:  # a name that the source did not recognise is none of the channels that were asked for
        return name


def foreground_share(plane: NDArray[Any]) -> float:
    """Return the share of pixels above the plane's Otsu threshold, from 0 to 1; 0 for a plane of one value.

    Source: Kim et al. leave out crops whose nucleus channel has a share below 0.01.

    Args:
        plane: Pixels of any number type, (H, W).
    """
    from skimage.filters import threshold_otsu

    if plane.min() == plane.max():
        return 0.0
    return float((plane > threshold_otsu(plane)).mean())  # type: ignore[no-untyped-call]


def cells_of(objects: Labels) -> Cells:
    """Return the cells of a label image, in order of their numbers.

    Args:
        objects: 0 is background, (H, W).
    """
    numbers = np.unique(objects)
    return Cells(centres_of(objects), {}, None, numbered(objects, numbers[numbers > 0]))


def centres_of(objects: Labels) -> NDArray[np.int32]:
    """Return the centre of mass of each object of a label image, x then y, (N, 2), int32, in order of their numbers.

    Args:
        objects: 0 is background, (H, W).
    """
    from scipy import ndimage

    numbers = np.unique(objects)
    numbers = numbers[numbers > 0]
    yx = np.reshape(ndimage.center_of_mass(np.ones(objects.shape, np.uint8), objects, numbers), (-1, 2))
    return np.rint(yx[:, ::-1]).astype(np.int32)


def _smoothed(plane: NDArray[Any], min_diameter_px: float) -> Floats:
    """Pixels without the few brightest, which would draw Otsu's threshold up, and without noise of single pixels."""
    from scipy import ndimage

    top = np.percentile(plane, _BRIGHTEST)
    pixels = np.minimum(plane.astype(np.float32), np.float32(top))
    return np.asarray(ndimage.gaussian_filter(pixels, max(1.0, min_diameter_px / 8)), np.float32)


def _circle(diameter: float) -> float:
    return float(np.pi * diameter**2 / 4)


def _typical_radius(foreground: NDArray[np.bool_], regions: Labels, count: int) -> float:
    """Median over all foreground pixels of the largest distance in their region, so that specks do not count."""
    from scipy import ndimage

    distance = ndimage.distance_transform_edt(ndimage.binary_fill_holes(foreground))
    largest = np.asarray(ndimage.maximum(distance, regions, np.arange(1, count + 1)))
    areas = np.bincount(regions.ravel(), minlength=count + 1)[1:]
    order = np.argsort(largest)
    half = np.searchsorted(np.cumsum(areas[order]), areas.sum() / 2)
    return float(largest[order][half])


def _blobs(smooth: Floats, foreground: NDArray[np.bool_], radius: float) -> NDArray[np.float64]:
    """How much each pixel is the middle of a bright blob of a radius: Laplacian of a Gaussian, 0 or more, (H, W).

    Brightness is taken against the mean of the foreground around it, so that dim cells count as much as bright ones.
    """
    from scipy import ndimage

    width = 2 * round(2 * radius) + 1
    inside = np.where(foreground, smooth - min(0.0, float(smooth.min())), 0).astype(np.float64)
    share = ndimage.uniform_filter(foreground.astype(np.float64), width)
    around = ndimage.uniform_filter(inside, width) / np.maximum(share, 1e-6)
    relative = np.minimum(inside / np.maximum(around, 1e-6), _BRIGHTEST_SPOT)
    return np.asarray(np.maximum(-ndimage.gaussian_laplace(relative, _BLOB_SIGMA * radius) * radius**2, 0))


def _without_small_holes(mask: NDArray[np.bool_], most: float) -> NDArray[np.bool_]:
    from scipy import ndimage

    holes, _ = ndimage.label(~mask)
    return np.asarray(mask | ((holes > 0) & (_of_size(holes, most, None) == 0)))


def _without_small(mask: NDArray[np.bool_], least: float) -> NDArray[np.bool_]:
    from scipy import ndimage

    regions, _ = ndimage.label(mask)
    return np.asarray(_of_size(regions, least, None) > 0)


def _of_size(objects: Labels, least: float, most: float | None) -> Labels:
    """Keep objects of an area between two limits and number them from 1."""
    areas = np.bincount(objects.ravel())
    good = (areas >= least) & ((areas <= most) if most is not None else True)
    good[0] = False
    numbers = np.zeros(len(areas), np.int32)
    numbers[good] = np.arange(1, int(good.sum()) + 1)
    return numbers[objects]
