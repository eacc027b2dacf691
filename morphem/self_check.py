"""The slow reference that `embed` compares a handful of rows with before its output appears.

It shares as little as it can with the way that made them: the file is read plainly and its name in the tar is
compared, Pillow decodes the whole plane, pixels are scaled by the formula instead of a table, the crop is found from
the row's own `Metadata_` columns, and the network sees one plane (or, where channels are joined, one image) at a time.
"""

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from morphem.data.intensities import to_levels
from morphem.encoder import Encoder, evaluating
from morphem.errors import DataError
from morphem.extraction import Extraction
from morphem.features import FeatureTable, Floats, channel_labels
from morphem.pixels import crop_seed
from morphem.types import ChannelBatch

_TAR_HEADER, _TAR_NAME = 512, 100
_TOLERANCE = {"32-true": 5e-4, "bf16-mixed": 1e-1, "16-mixed": 2e-2}
"""Largest difference against the largest feature of a row. The order of sums alone moves float32 features by about 1e-6
on a CPU and by up to a few 1e-4 on a GPU, whose convolutions round to TF32; another tile moves them by far more."""


@dataclass(frozen=True)
class Checked:
    """What the comparison found.

    Attributes:
        n_rows: Rows that were compared.
        largest: Largest difference of a feature, as a share of the largest feature of its row.
        tolerance: What it was allowed to be.
    """

    n_rows: int
    largest: float
    tolerance: float

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def joined(cls, results: Sequence["Checked"]) -> "Checked":
        """Return the sum of some comparisons.

        Args:
            results: May be empty.
        """
        return cls(
            sum(result.n_rows for result in results),
            max((result.largest for result in results), default=0.0),
            max((result.tolerance for result in results), default=0.0),
        )


def check_rows(run: Extraction, table: FeatureTable, n_crops: int) -> Checked:
    """Compare some rows of a table with the slow reference.

    Args:
        run: Made the table.
        table: Its rows are crops (or planes of crops, with `combine='none'`), not averages.
        n_crops: How many crops to look at, evenly spread over the table; at least 1.

    Raises:
        DataError: If a row differs, with its name and the size of the difference.
    """
    tolerance = _TOLERANCE[run.settings.precision]
    starts = _crop_starts(table)
    chosen = np.unique(np.linspace(0, len(starts) - 1, min(n_crops, len(starts))).round().astype(int))
    largest, n_rows = 0.0, 0
    for start in (int(starts[i]) for i in chosen):
        expected = reference_rows(run, table.metadata.iloc[start])
        for i, row in enumerate(expected):
            found = table.values[start + i]
            scale = float(np.abs(row).max()) or 1.0
            difference = float(np.abs(found - row).max()) / scale if np.isfinite(found).all() else np.inf
            if not difference <= tolerance:
                raise DataError(
                    f"row {_named(table, start + i)} differs from the slow reference by {difference:.2g} of its "
                    f"largest feature (allowed: {tolerance:g}); the output was not written. Run it again with "
                    "--overwrite; if the error comes back, please report it (--no-self-check skips the check)."
                )
            largest, n_rows = max(largest, difference), n_rows + 1
    return Checked(n_rows, largest, tolerance)


def _crop_starts(table: FeatureTable) -> NDArray[np.int64]:
    """First row of every crop: with a row per plane, the planes of a crop follow each other."""
    if "Metadata_Channel" not in table.metadata:
        return np.arange(len(table))
    names = ["Metadata_Key", "Metadata_Tile_Y", "Metadata_Tile_X", "Metadata_Cell"]
    places = table.metadata[[name for name in names if name in table.metadata]]
    return np.flatnonzero((places != places.shift()).any(axis=1).to_numpy())


def _named(table: FeatureTable, row: int) -> str:
    told = table.metadata.iloc[row]
    names = ("Tile_Y", "Tile_X", "Cell", "Channel")
    places = [f"{name} {told[f'Metadata_{name}']}" for name in names if f"Metadata_{name}" in table.metadata]
    return ", ".join([f"{row} ('{told['Metadata_Key']}'", *places]) + ")"


@torch.no_grad()
def reference_rows(run: Extraction, told: Any) -> Floats:
    """Compute the rows of one crop slowly, (rows, features): one row, or one per plane with `combine='none'`.

    Args:
        run: Whose encoder and shards.
        told: `Metadata_` columns of the crop's first row.

    Raises:
        DataError: If the shards do not hold what their table says.
    """
    rows = _rows(run, told)
    if run.encoder.recipe.unit_length:
        rows = np.stack([row / max(float(np.linalg.norm(row)), 1e-12) for row in rows])
    return rows


def _rows(run: Extraction, told: Any) -> Floats:
    plan, encoder = run.plan, run.encoder
    image = plan.keys.index(str(told["Metadata_Key"]))
    planes, box = _crop(run, image, told)
    panel, key = plan.panel(image), plan.keys[image]
    with evaluating(encoder):
        if not encoder.per_channel:
            return _embed(run, planes, panel, key, box)
        if _joint(encoder):  # the planes of an image have a say in each other's brightness
            each = list(_embed(run, planes, panel, key, box))
        else:
            each = [_embed(run, [plane], [name], key, box)[0] for plane, name in zip(planes, panel, strict=True)]
    named = sorted(zip(channel_labels(panel), each, strict=True), key=lambda pair: pair[0])
    rows: Floats = np.stack([row for _, row in named])
    if run.settings.combine == "mean":
        return np.asarray(rows.mean(axis=0, dtype=np.float64, keepdims=True), np.float32)
    return rows if run.settings.combine == "none" else rows.reshape(1, -1)


def _joint(encoder: Encoder) -> bool:
    """Whether what is done to a plane's pixels depends on the other planes of its image."""
    parts = [*encoder.normalizer.modules(), *(encoder.after_resize.modules() if encoder.after_resize else ())]
    return any(getattr(part, "joint", False) for part in parts)


def _embed(run: Extraction, planes: Sequence[NDArray[Any]], panel: Sequence[str], key: str, box: Any) -> Floats:
    batch = ChannelBatch.from_planes(
        [[torch.from_numpy(plane.copy()) for plane in planes]],
        [panel],
        keys=[key],
        seeds=[crop_seed(key, box)],
        boxes=[box],
    )
    values: torch.Tensor = run.encoder.features(batch.to(run.device))
    return np.asarray(values.float().cpu().numpy())


def _crop(run: Extraction, image: int, told: Any) -> tuple[list[NDArray[Any]], tuple[int, int, int, int]]:
    """Return the pixels of a crop, plane after plane, as the encoder sees them, and its box."""
    plan, rule = run.plan, run.plan.rule
    height, width = int(plan.heights[image]), int(plan.widths[image])
    if rule.unit == "tile":
        top, left = int(told["Metadata_Tile_Y"]), int(told["Metadata_Tile_X"])
        size = rule.tile_size_px or 1
        box = (top, left, min(size, height), min(size, width))
    elif rule.unit == "cell":
        size = rule.crop_size_px or 1
        h, w = min(size, height), min(size, width)
        top = min(max(int(told["Metadata_Cell_Y"]) - h // 2, 0), height - h)
        left = min(max(int(told["Metadata_Cell_X"]) - w // 2, 0), width - w)
        box = (top, left, h, w)
    else:
        box = (0, 0, height, width)
    y, x, h, w = box
    planes = [_seen(run, image, nth)[y : y + h, x : x + w] for nth in range(plan.n_planes(image))]
    if rule.mask != "none":
        offset, nbytes = plan._masks[image].tolist()
        objects = _plain_png(run, image, offset, nbytes)[y : y + h, x : x + w]
        planes = [_only(plane, objects, int(told["Metadata_Cell"]) + 1, rule.mask == "background") for plane in planes]
    return planes, box


def _only(plane: NDArray[Any], objects: NDArray[Any], number: int, background: bool) -> NDArray[Any]:
    """A crop with what is outside of one cell painted over."""
    painted = plane.copy()
    around = plane[objects == 0]
    painted[objects != number] = round(float(np.median(around))) if background and len(around) else 0
    return painted


def _seen(run: Extraction, image: int, nth: int) -> NDArray[Any]:
    """A whole plane as the encoder sees it."""
    plan = run.plan
    place = int(plan.plane_starts[image]) + nth
    stored = _plain_png(run, image, int(plan.offsets[place]), int(plan.nbytes[place]))
    low, high = plan.limits[place].tolist()
    if run.pixels == "counts":
        return stored
    if stored.dtype == np.uint8:
        low, high = 0.0, 255.0
    if run.pixels == "levels":
        return to_levels(stored.astype(np.float64), low, high)
    share = (stored.astype(np.float64).clip(low, high) - low) / (high - low) if high > low else 0.0 * stored
    return share.astype(np.float32) if run.pixels == "unit" else np.rint(share * 65535).astype(np.uint16)


def _plain_png(run: Extraction, image: int, offset: int, nbytes: int) -> NDArray[Any]:
    """Read a PNG member of a shard with the tar's own name for it, and decode it with Pillow."""
    plan, key = run.plan, run.plan.keys[image]
    data = plan.reader.read(plan.shard_files[image], offset - _TAR_HEADER, nbytes + _TAR_HEADER)
    name = data[:_TAR_NAME].rstrip(b"\0").decode("ascii", "replace")
    if name.partition(".")[0] != key or not name.endswith(".png"):
        raise DataError(
            f"{plan.shard_files[image]} holds '{name}' at byte {offset}, where its table promises a plane of '{key}'; "
            "ingest the study again."
        )
    with Image.open(io.BytesIO(data[_TAR_HEADER:]), formats=["PNG"]) as picture:
        pixels = np.asarray(picture)
    return pixels if pixels.dtype == np.uint8 else pixels.astype(np.uint16)
