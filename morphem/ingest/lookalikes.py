"""Planes that look like another channel of their study: swapped files, wrong names, a filter that did not move.

Every plane gets a short signature of intensities and texture. A channel's planes form a cloud, described by median and
median absolute deviation, which some wrong planes do not move. A plane far outside of its own cloud and inside of
another one is flagged; nothing is done about it. Channels with much the same clouds are never flagged, nor can be a
study in which half of the planes are wrong.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from morphem.data.record import ImageRecord

MIN_PLANES = 8
FAR = 3.0
NEAR = 2.0

_QUANTILES = (0.05, 0.5, 0.95, 0.995)
_STEP = 4  # every fourth pixel along both axes is enough for a quantile
_NARROWEST = 0.05  # spread of a cloud at least: 5 % of an intensity
_TO_DEVIATION = 1.4826  # from median absolute deviation to standard deviation of a normal distribution

Floats = NDArray[np.float64]


class Lookalike(NamedTuple):
    """A plane that looks like another channel.

    Attributes:
        image_id: Its image.
        channel: Its channel, as the source names it.
        looks_like: The other channel.
        sentence: All of this in words.
    """

    image_id: str
    channel: str
    looks_like: str
    sentence: str


class StudyStatistics:
    """Signatures of the planes of a study; a few numbers each, which merge over the parts of a study.

    Attributes:
        signatures: For each channel, by the source's own name, the signature of each image's plane.
    """

    def __init__(self) -> None:
        self.signatures: dict[str, dict[str, list[float]]] = {}

    def add(self, image: ImageRecord) -> None:
        """Take the planes of an image; those without signal, or whose channel it has twice, are left out.

        Args:
            image: As `morphem.ingest.prepare.prepare` gives it.
        """
        times = Counter(image.channel_names)
        for i, name in enumerate(image.channel_names):
            if times[name] == 1 and image.clip_limits is not None:
                quality = image.quality[i] if image.quality else {}
                if quality.get("quality.flat") != 1:
                    plane = np.asarray(image.planes[i])
                    self.signatures.setdefault(name, {})[image.image_id] = signature(
                        plane, image.clip_limits[i], quality
                    )

    def merge(self, other: "StudyStatistics") -> None:
        """Take the planes of another part of the same study.

        Args:
            other: Its images come after those of this one.
        """
        for name, images in other.signatures.items():
            self.signatures.setdefault(name, {}).update(images)

    def to_json(self) -> dict[str, Any]:
        """Return dictionaries, lists, texts and numbers."""
        return {
            name: {"images": list(images), "signatures": list(images.values())}
            for name, images in self.signatures.items()
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the statistics that `to_json` described."""
        statistics = cls()
        for name, planes in data.items():
            statistics.signatures[name] = dict(zip(planes["images"], planes["signatures"], strict=True))
        return statistics


def signature(plane: NDArray[Any], limits: tuple[float, float], quality: Mapping[str, float]) -> list[float]:
    """Describe a plane by four quantiles of its intensities (logarithmic), its foreground and its focus.

    Args:
        plane: As it is stored, (H, W): uint8 levels or uint16 intensities.
        limits: Intensities of levels 0 and 255.
        quality: Its quality columns; what is missing counts as 0.

    Returns:
        Six numbers of four decimals.
    """
    low, high = limits
    stored = np.quantile(plane[::_STEP, ::_STEP], _QUANTILES)
    values = low + stored * ((high - low) / 255) if plane.dtype == np.uint8 else stored.clip(low, high)
    # Tiny planes have no focus (NaN), and sums of differences may end a hair below 0.
    texture = [
        np.sqrt(max(np.nan_to_num(quality.get(f"quality.{name}", 0.0)), 0.0)) for name in ("foreground", "focus")
    ]
    return [round(float(value), 4) for value in (*np.arcsinh(values), *texture)]


def flag_swapped(statistics: StudyStatistics) -> list[Lookalike]:
    """Find planes that look like another channel of their study.

    Args:
        statistics: Of all its planes; a channel with fewer than `MIN_PLANES` is not judged.

    Returns:
        In order of channels and images.
    """
    planes = {
        name: np.array(list(images.values()), np.float64)
        for name, images in statistics.signatures.items()
        if len(images) >= MIN_PLANES
    }
    clouds = {name: _Cloud(values) for name, values in planes.items()}
    flagged = []
    for name, values in planes.items():
        others = {other: cloud.distance(values) for other, cloud in clouds.items() if other != name}
        if not others:
            continue
        own = clouds[name].distance(values)
        away = np.stack(list(others.values()))  # (channels, planes)
        nearest = away.argmin(axis=0)
        for i in np.flatnonzero((own > FAR) & (away.min(axis=0) < NEAR)):
            image_id, other = list(statistics.signatures[name])[i], list(others)[nearest[i]]
            flagged.append(Lookalike(image_id, name, other, _sentence(image_id, name, other)))
    return flagged


class _Cloud:
    """Where the signatures of a channel lie."""

    def __init__(self, values: Floats) -> None:
        self._centre = np.median(values, axis=0)
        spread = _TO_DEVIATION * np.median(np.abs(values - self._centre), axis=0)
        self._spread = np.maximum(spread, _NARROWEST)
        self._usual = max(1.0, float(np.quantile(self._raw(values), 0.75)))

    def _raw(self, values: Floats) -> Floats:
        distance: Floats = np.sqrt((((values - self._centre) / self._spread) ** 2).mean(axis=1))
        return distance

    def distance(self, values: Floats) -> Floats:
        """Distance of signatures from the centre, (N,), where 1 is usual among the channel's own planes."""
        return self._raw(values) / self._usual


def _sentence(image_id: str, channel: str, other: str) -> str:
    return (
        f"image '{image_id}': intensities and texture of channel '{channel}' are unusual for it and usual for "
        f"'{other}'; look whether the files are swapped or misnamed."
    )
