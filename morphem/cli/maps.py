"""`morphem maps`: pictures of what an encoder looks at in an image, channel by channel, and of its patch tokens."""

import argparse
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morphem.cli.embed_input import Launched, add_input, check_input, make_input
from morphem.errors import ConfigError

if TYPE_CHECKING:
    from morphem.encoder import Encoder
    from morphem.extraction import EmbedSettings, Extraction
    from morphem.maps.colours import PatchColours
    from morphem.sources.base import Source

EPILOG = """\
examples:
  morphem maps --model runs/dino_boc --data shards/ --output maps/ --count 3
  morphem maps --model CaicedoLab/MorphEm --images plate/ --channels w1=nucleus w2=actin --output maps/ \\
      --tile-size-px 224 --image plate1-A01-s1

For each image OUTPUT holds KEY.png (a row per channel: the plane, where the embedding looks, what its patches are),
the maps alone at the size of the image in KEY/, and attribution.csv: which share of its attention each channel gets,
where channels share one attention. Colours of patch tokens are fitted once, on a reference set of images, and kept in
patch_colours.npz, so that --colours can show other images in the same colours.
"""


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    result = argparse.ArgumentParser(
        prog="morphem maps", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = result.add_argument
    add("--model", required=True, help="run, folder, checkpoint, name of the zoo, or owner/name on the hub")
    add("--accept-license", action="store_true", help="accept a licence that restricts use; remembered")
    add("--output", required=True, type=Path, metavar="FOLDER", help="where the pictures go")
    add_input(result.add_argument_group("what is read (one of --images and --data)"))
    _add_shown(result.add_argument_group("what is shown"))
    add("--accelerator", default="cpu", choices=["cpu", "cuda", "mps"], help="where to compute (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace pictures that are there")
    return result


def _add_shown(group: Any) -> None:
    add = group.add_argument
    add("--image", action="append", default=[], metavar="NAME", help="image to show; may be given several times")
    add("--count", type=int, help="without --image: so many, spread over the set (default: 4)")
    add("--reference", type=int, help="images that the colours of patch tokens are fitted on (default: 16)")
    add("--colours", type=Path, metavar="FILE", help="patch_colours.npz of an earlier call, instead of fitting")
    add("--attention", default="last", choices=["last", "rollout"], help="last block, or rollout over all blocks")
    add("--heads", action="store_true", help="also show the heads of the last block one by one")
    add("--unit", choices=["tile", "image"], help="whole images, or tiles put together (default: as for embed)")
    add("--tile-size-px", type=int, help="side of a tile in pixels")
    add("--pixels", choices=["levels", "counts", "stretched", "unit"], help="what pixels stand for, as for embed")


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: Words after `maps`.

    Returns:
        0.

    Raises:
        MorphemError: For what the user can put right; the caller prints it.
    """
    options = parser().parse_args(list(argv))
    _check(options)
    from morphem import zoo
    from morphem.embed_recipe import settings_for
    from morphem.extraction import Extraction
    from morphem.maps.attention import check_maps
    from morphem.maps.job import chosen_images, write_maps

    begin = time.perf_counter()
    encoder = zoo.load(options.model, accept_license=options.accept_license)
    check_maps(encoder, options.attention)
    tiled = _tiled(encoder, options)
    settings = settings_for(
        encoder,
        unit="tile" if tiled else "image",
        tile_size_px=options.tile_size_px,
        skip_empty="none" if tiled else None,
        combine="none" if encoder.per_channel else "concat",
        query=options.query,
        pixels=options.pixels,
    )
    parts = options.output.with_name(options.output.name + ".parts")
    root = options.data or _shards(options, encoder, settings, parts)
    run = Extraction(encoder, root, settings, device=options.accelerator)
    run.check_panels()
    images = chosen_images(run, options.image, options.count or 4)
    colours = _colours(options, run)
    table = write_maps(run, images, options.output, colours, options.attention, options.heads)
    colours.save(options.output / "patch_colours.npz")
    if options.images:
        shutil.rmtree(parts)
    seconds = time.perf_counter() - begin
    print(f"showed     {len(images)} of {run.plan.n_images} images in {seconds:.1f} s; see {options.output}/KEY.png")
    shares = table.dropna(subset=["attention_share"]).groupby("channel", sort=False)["attention_share"].mean()
    if len(shares):
        told = ", ".join(f"{channel} {100 * share:.0f} %" for channel, share in shares.items())
        print(f"attention  {told} (even: {100 / len(shares):.0f} %)")
    else:
        print("attention  every channel is embedded alone, so no share between channels")
    explained = ", ".join(f"{100 * share:.0f} %" for share in colours.explained)
    print(f"colours    red, green and blue show {explained} of the variance of patch tokens")
    return 0


def _check(options: argparse.Namespace) -> None:
    check_input(options)
    if options.image and options.count is not None:
        raise ConfigError("--count says how many images to choose, and --image chooses them; give one of the two.")
    if options.colours is not None and options.reference is not None:
        raise ConfigError("--reference says on how many images to fit colours, and --colours brings them; give one.")
    for name in ("count", "reference"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ConfigError(f"--{name} must be at least 1.")
    if options.output.exists() and any(options.output.iterdir()) and not options.overwrite:
        raise ConfigError(
            f"{options.output} is not empty; choose another folder, or allow it to be used (--overwrite)."
        )


def _tiled(encoder: "Encoder", options: argparse.Namespace) -> bool:
    if options.unit is not None:
        return bool(options.unit == "tile")
    return options.tile_size_px is not None or not encoder.recipe.whole_image


def _colours(options: argparse.Namespace, run: "Extraction") -> "PatchColours":
    from morphem.maps.colours import PatchColours
    from morphem.maps.job import chosen_images, fit_colours
    from morphem.weights import fingerprint

    if options.colours is not None:
        return PatchColours.load(options.colours, fingerprint(run.encoder.state_dict()))
    return fit_colours(run, chosen_images(run, [], options.reference or 16))


def _shards(options: argparse.Namespace, encoder: "Encoder", settings: "EmbedSettings", parts: Path) -> Path:
    """Read the images that are shown, and those of the reference set, into shards."""
    import numpy as np

    def choose(sources: "Sequence[Source]") -> "list[Source]":
        wanted = set(options.image)
        some: list[Source] = []
        for source in sources:
            ids = list(source.image_ids())
            spread = max(options.count or 4, options.reference or 16)
            places = np.linspace(0, len(ids) - 1, min(spread, len(ids))).round().astype(int)
            chosen = {ids[place] for place in places} | (wanted & set(ids))
            some.append(source.only([name for name in ids if name in chosen]))
        return some

    root, _ = make_input(options, [encoder], [settings], parts, Launched(), choose)
    return root
