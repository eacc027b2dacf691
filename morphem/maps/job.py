"""Maps of images of a shard set, written as PNG with a table of what each channel gets."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from morphem.data.plan import spans
from morphem.data.reading import CropReader
from morphem.engine import split_crops
from morphem.errors import DataError, unknown_name
from morphem.extraction import Extraction
from morphem.features import channel_labels
from morphem.maps.attention import CropMaps, Way, check_maps, crop_maps
from morphem.maps.colours import Floats, PatchColours, Pixels
from morphem.maps.draw import Row, Scale, heads_sheet, sheet, stretched
from morphem.weights import fingerprint

_TOKENS_PER_IMAGE = 4096
ALL_CHANNELS = "all channels"


@dataclass(frozen=True)
class ImageMaps:
    """Maps of one image at its own size.

    Attributes:
        names: Of the C rows: channel labels, or `all channels` where a patch is cut from all.
        attention: Times even, (C, H, W); each crop against its own patches.
        heads: The same for each head, (C, heads, H, W), or None.
        patches: Colours of patch tokens, (C, H, W, 3).
        shares: Mean over crops of the share of the attention that each channel gets, (C,), or None.
    """

    names: tuple[str, ...]
    attention: Floats
    heads: Floats | None
    patches: Pixels
    shares: Floats | None


def chosen_images(run: Extraction, names: Sequence[str], count: int) -> list[int]:
    """Return the numbers of images that were named, or of some spread evenly over the set.

    Args:
        run: Has the plan.
        names: Keys or names of images; empty for `count` of them.
        count: At least 1.

    Raises:
        DataError: If there is no image of a name.
    """
    plan = run.plan
    if not names:
        places = np.linspace(0, plan.n_images - 1, min(count, plan.n_images)).round().astype(int)
        return sorted(set(places.tolist()))
    ids = plan.images["Metadata_Image"].astype(str).tolist()
    known = {**{name: i for i, name in enumerate(ids)}, **{key: i for i, key in enumerate(plan.keys)}}
    for name in names:
        if name not in known:
            raise DataError(unknown_name("image", name, sorted(known)))
    return [known[name] for name in names]


def fit_colours(run: Extraction, images: Sequence[int]) -> PatchColours:
    """Fit the colours of patch tokens on some images.

    Args:
        run: Encoder and shards.
        images: Numbers of the reference images.
    """
    check_maps(run.encoder, "last")
    tokens: list[Floats] = []
    for image in images:
        found = [maps.tokens.reshape(-1, maps.tokens.shape[-1]) for _, maps in _crops(run, image, "last")]
        every = np.concatenate(found)
        tokens.append(every[:: max(1, len(every) // _TOKENS_PER_IMAGE)])
    return PatchColours.fit(np.concatenate(tokens), fingerprint(run.encoder.state_dict()))


def _crops(run: Extraction, image: int, way: Way) -> "list[tuple[tuple[int, int, int, int], CropMaps]]":
    """Boxes and maps of the crops of an image."""
    reader = CropReader([run.plan], list(spans([run.plan], [image], 1, 2**62)))
    found = []
    for number in range(len(reader)):
        (batch,) = reader[number].batches
        for crop in split_crops(batch, 1) if batch is not None else ():
            y, x, h, w = crop.boxes[0].tolist()
            found.append(((y, x, h, w), crop_maps(run.encoder, crop.to(run.device), way)))
    if not found:
        raise DataError(f"image '{run.plan.keys[image]}' has no crop to show; take another unit.")
    return found


def image_maps(run: Extraction, image: int, colours: PatchColours, way: Way, heads: bool) -> ImageMaps:
    """Make the maps of one image.

    Args:
        run: Encoder and shards.
        image: Its number.
        colours: Of patch tokens.
        way: See `morphem.maps.attention.crop_maps`.
        heads: Whether to keep the heads apart too.
    """
    plan = run.plan
    crops = _crops(run, image, way)
    n_maps, n_heads = len(crops[0][1].attention), crops[0][1].heads.shape[1]
    size = int(plan.heights[image]), int(plan.widths[image])
    times = np.zeros(size, np.float32)
    attention = np.zeros((n_maps, *size), np.float32)
    patches = np.zeros((n_maps, *size, 3), np.float32)
    each = np.zeros((n_maps, n_heads, *size), np.float32) if heads else None
    for (y, x, h, w), maps in crops:
        place = slice(y, y + h), slice(x, x + w)
        times[place] += 1
        for n in range(n_maps):
            attention[n][place] += stretched(maps.attention[n], (h, w), smooth=True)
            patches[n][place] += stretched(colours(maps.tokens[n]), (h, w), smooth=True)
            if each is not None:
                for head in range(n_heads):
                    each[n, head][place] += stretched(maps.heads[n, head], (h, w), smooth=True)
    shown = np.maximum(times, 1)
    names = channel_labels(plan.panel(image)) if n_maps > 1 or plan.n_planes(image) == 1 else [ALL_CHANNELS]
    shares = [maps.shares for _, maps in crops if maps.shares is not None]
    return ImageMaps(
        tuple(names),
        np.maximum(attention / shown, 0),
        None if each is None else np.maximum(each / shown, 0),
        np.rint(patches / shown[..., None]).astype(np.uint8),
        np.mean(shares, axis=0).astype(np.float32) if shares else None,
    )


def write_maps(
    run: Extraction, images: Sequence[int], folder: Path, colours: PatchColours, way: Way, heads: bool
) -> pd.DataFrame:
    """Write the maps of some images: a sheet, and each map alone, at the size of the image.

    Args:
        run: Encoder and shards.
        images: Their numbers.
        folder: Made where it does not exist.
        colours: Of patch tokens.
        way: See `morphem.maps.attention.crop_maps`.
        heads: Whether to draw the heads of the last block too.

    Returns:
        One row per image and channel: `image`, `channel`, `attention_share` (NaN where channels are embedded alone),
        `largest_attention` (times even), `darkest` and `brightest` (attention of levels 0 and 255 in the map's own
        PNG).

    Raises:
        DataError: If a file cannot be written, or an image cannot be read.
    """
    rows = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for image in images:
            maps = image_maps(run, image, colours, way, heads)
            rows += _write_image(run, image, folder, maps, way)
        table = pd.DataFrame(rows)
        table.to_csv(folder / "attribution.csv", index=False)
    except OSError as fault:
        raise DataError(f"cannot write into '{folder}' ({fault}); choose another folder.") from fault
    return table


def _write_image(run: Extraction, image: int, folder: Path, maps: ImageMaps, way: Way) -> list[dict[str, object]]:
    key = run.plan.keys[image]
    scale = Scale.of(maps.attention)
    planes = _grey_planes(run, image, len(maps.names))
    rows = [
        Row(name, _note(maps, n), planes[n], maps.attention[n], maps.patches[n]) for n, name in enumerate(maps.names)
    ]
    sheet(key, rows, scale, _how(run, way)).save(folder / f"{key}.png")
    if maps.heads is not None:
        heads_sheet(f"{key}: heads of the last block", maps.names, maps.heads, Scale.of(maps.heads)).save(
            folder / f"{key}.heads.png"
        )
    own = folder / key
    own.mkdir(exist_ok=True)
    told = []
    for n, name in enumerate(maps.names):
        level = np.rint(scale(maps.attention[n]) * 255).astype(np.uint8)
        stem = name.replace(" ", "-").replace("/", "-")
        Image.fromarray(level).save(own / f"attention.{stem}.png")
        Image.fromarray(maps.patches[n]).save(own / f"patches.{stem}.png")
        told.append(
            {
                "image": key,
                "channel": name,
                "attention_share": float("nan") if maps.shares is None else float(maps.shares[n]),
                "largest_attention": float(maps.attention[n].max()),
                "darkest": scale.low,
                "brightest": scale.high,
            }
        )
    return told


def _note(maps: ImageMaps, n: int) -> str:
    if maps.shares is None:
        return ""
    return f"{100 * maps.shares[n]:.0f} % of the\nattention\n(even: {100 / len(maps.names):.0f} %)"


def _how(run: Extraction, way: Way) -> str:
    where = "last block, mean of heads" if way == "last" else "rollout over all blocks"
    joint = "all channels share one attention" if not run.encoder.per_channel else "each channel is embedded alone"
    unit = "" if run.plan.rule.unit == "image" else f"; each {run.plan.rule.unit} against its own patches"
    return (
        f"attention of the embedding: {where}; {joint}{unit}. Colours of patch tokens: three principal components of a "
        "reference set."
    )


def _grey_planes(run: Extraction, image: int, n_rows: int) -> list[Pixels]:
    """The planes as 8-bit levels; their mean where all channels share a row."""
    plan = run.plan.with_rule(run.plan.rule, "levels")
    whole = [(0, 0, int(plan.heights[image]), int(plan.widths[image]))]
    planes = [
        np.asarray(plan.seen(plan.stored(image, nth, whole)[0], image, nth), np.uint8)
        for nth in range(plan.n_planes(image))
    ]
    if n_rows < len(planes):
        return [np.rint(np.mean(planes, axis=0)).astype(np.uint8)]
    return planes
