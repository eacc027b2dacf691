"""What `morphem embed` and `morphem maps` read: shards, or images of any layout that ingest knows."""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from morphem.cli.open_sources import share
from morphem.errors import ConfigError

if TYPE_CHECKING:
    from morphem.encoder import Encoder
    from morphem.extraction import EmbedSettings
    from morphem.ingest.settings import IngestSettings
    from morphem.sources.base import Source


def add_input(group: Any) -> None:
    """Add the options that say what is read.

    Args:
        group: Of options.
    """
    add = group.add_argument
    add("--images", nargs="+", metavar="PLACE", help="images: TIFF folders, OME-Zarr, a sheet, any layout of ingest")
    add("--data", metavar="SHARDS", help="shards: a folder, an address, or sample://NAME")
    add("--query", help="which channel planes, for example \"microscopy.type != 'fluorescence'\"")
    add(
        "--channels",
        nargs="+",
        metavar="NAME",
        help="what the channels of the images show: NAME=TYPE (w1=nucleus), or types in order where files do not say; "
        "spaces or commas between",
    )
    add("--source", help="plug-in that reads the images (default: the one that knows the layout)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="setting of that source, as for ingest")
    add("--cells", help="centres and outlines of cells: source (default), otsu, adaptive, cellpose, CSV, label images")
    add("--clip", metavar="LOW,HIGH", help="percentiles that become dark and bright (default 0.1,99.9), as for ingest")
    add("--bit-depth", type=int, choices=(8, 16), help="of the stored planes (default: what the encoders need)")
    add("--max-bad", type=share, metavar="SHARE", help="stop if more images than this cannot be used (default 0)")
    add("--image-workers", type=int, metavar="N", help="processes that read images (default: one per core)")


def check_input(options: argparse.Namespace) -> None:
    """Refuse options of what is read that clash.

    Args:
        options: With those of `add_input`.

    Raises:
        ConfigError: If both or none of images and shards are given, or an option belongs to the other.
    """
    if bool(options.images) == bool(options.data):
        raise ConfigError("give either --images (files of any layout) or --data (shards), one of the two.")
    for name in ("channels", "source", "set", "cells", "clip", "bit_depth", "max_bad", "image_workers"):
        if options.data and getattr(options, name, None):
            raise ConfigError(f"--{name.replace('_', '-')} belongs to --images; shards say it themselves.")


class Launched:
    """One process, where no other was started."""

    global_rank = 0

    def barrier(self) -> None:
        """Wait for nobody."""


def make_input(
    options: argparse.Namespace,
    encoders: "Sequence[Encoder]",
    settings: "Sequence[EmbedSettings]",
    folder: Path,
    fabric: Any,
    choose: "Callable[[Sequence[Source]], list[Source]] | None" = None,
) -> tuple[Path, list[str]]:
    """Read the images into shards on rank 0, after all that can be wrong with their channels was looked for.

    Args:
        options: With those of `add_input`.
        encoders: That will see the images.
        settings: Of each encoder.
        folder: Of the parts.
        fabric: Has `global_rank` and `barrier`.
        choose: Picks the images that are wanted; all where not given.

    Returns:
        The shards, and what the summary should say about the images.

    Raises:
        ChannelError: If a channel is unknown, or named where the files say it themselves.
        DataError: If images cannot be read, or differ in channels where they must not.
    """
    from morphem.extraction import check_panel, pixels_of
    from morphem.image_shards import (
        SHARDS,
        bit_depth_for,
        check_counts,
        check_known,
        check_names,
        check_panels,
        make_shards,
        panels_of,
    )

    notes: list[str] = []
    if fabric.global_rank == 0:
        sources = _sources(options, check_names)
        sources = sources if choose is None else choose(sources)
        kinds = [one.pixels or pixels_of(encoder) for encoder, one in zip(encoders, settings, strict=True)]
        if options.query is None:
            check_known(sources)
            panels = panels_of(sources)
            side_by_side = [e.per_channel and s.combine == "concat" for e, s in zip(encoders, settings, strict=True)]
            if any(side_by_side):
                check_panels(panels)
            for encoder, kind in zip(encoders, kinds, strict=True):
                for panel in dict.fromkeys(panels.values()):
                    name = next(name for name, other in panels.items() if other == panel)
                    check_panel(encoder, panel, kind, (side := encoder.input_size_px or 224, side), name)
        check_counts(sources, kinds)
        _, studies = make_shards(
            sources,
            folder,
            _ingest_settings(options, bit_depth_for(kinds)),
            overwrite=options.overwrite,
            workers=options.image_workers or len(os.sched_getaffinity(0)),
            progress=_bar(sources),
        )
        notes = [f"LEFT OUT   {name}: {why}" for study in studies for name, why in study.failures]
        notes += [f"LOOK AT    {study.flat} planes of {study.study} show nothing" for study in studies if study.flat]
        notes += [f"LOOK AT    {sentence}" for study in studies for _, _, sentence in study.lookalikes]
    fabric.barrier()
    return folder / SHARDS, notes


def _bar(sources: "Sequence[Source]") -> Callable[[str, int, int], None]:
    from tqdm import tqdm

    bars: dict[str, Any] = {}

    def show(study: str, done: int, total: int) -> None:
        if study not in bars:
            bars[study] = tqdm(total=total, initial=done, unit="image", desc=f"read {study}", dynamic_ncols=True)
        bars[study].update(done - bars[study].n)
        if done >= total:
            bars[study].close()

    return show


def _sources(
    options: argparse.Namespace, check: "Callable[[Sequence[Source], Mapping[str, str], Sequence[str]], None]"
) -> "list[Source]":
    """Open the images with what the user said about their channels."""
    from morphem.cli.open_sources import open_sources
    from morphem.data.schema import resolve_channel

    given = dict(_pair(word) for word in options.set)
    told = [part for word in options.channels or () for part in _commas(word)]
    named = dict(_pair(word) for word in told if "=" in word)
    in_order = [word for word in told if word and "=" not in word]
    if named and in_order:
        raise ConfigError(
            f"--channels mixes NAME=TYPE with names in order ('{in_order[0]}'); take one of the two ways for all."
        )
    aliases = {name: resolve_channel(kind) for name, kind in named.items()}
    if in_order:
        for name in in_order:
            resolve_channel(name)
        given["channels"] = ",".join(in_order)
    try:
        sources = open_sources(options.images, options.source, given, aliases)
    except ConfigError as fault:
        if in_order and "--set channels" in str(fault):
            raise ConfigError(
                "the file names of these images tell channels apart, so names in order could go wrong; say what each "
                "shows with --channels NAME=TYPE (`morphem ingest --dry-run` lists the names)."
            ) from fault
        raise
    check(sources, aliases, in_order)
    return sources


def _commas(word: str) -> list[str]:
    """Split what was typed with commas between, but not a name that holds a comma (`Hoechst, 405=nucleus`)."""
    parts = [part.strip() for part in word.split(",")]
    return [word] if "=" in word and not all("=" in part for part in parts) else parts


def _pair(word: str) -> tuple[str, str]:
    key, equals, value = word.rpartition("=") if word.count("=") > 1 else word.partition("=")
    if not equals or not key or not value:
        raise ConfigError(f"'{word}' must be written NAME=VALUE.")
    return key, value


def _ingest_settings(options: argparse.Namespace, bit_depth: Literal[8, 16]) -> "IngestSettings":
    from morphem.cells import cells_from_option
    from morphem.cli.open_sources import absolute
    from morphem.ingest.prepare import Preparation
    from morphem.ingest.scaling import DEFAULT_CLIP, parse_clip
    from morphem.ingest.settings import IngestSettings

    clip = DEFAULT_CLIP if options.clip is None else parse_clip(options.clip)
    finders = ("source", "none", "otsu", "adaptive", "cellpose")
    cells = options.cells or "source"
    return IngestSettings(
        preparation=Preparation(clip=clip, bit_depth=options.bit_depth or bit_depth),
        cells=cells_from_option(cells if cells in finders else absolute(cells)),
        pictures=False,
        max_bad=options.max_bad or 0.0,
    )
