"""Locations and words of the command line to sources of images, for every command that reads images."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from morphem import registry
from morphem.cli.source_settings import read_settings
from morphem.errors import ConfigError

if TYPE_CHECKING:
    from morphem.sources.base import Source


def open_sources(
    locations: Sequence[str],
    source: str | None,
    settings: Mapping[str, str],
    aliases: Mapping[str, str],
    max_pixels: int | None = None,
) -> list["Source"]:
    """Open every location; one location may hold several studies.

    Args:
        locations: Folders, sheets, zips, or addresses.
        source: Name of the plug-in that reads them; the one that knows the layout if None.
        settings: Keys and texts for the source's constructor.
        aliases: Further names of channel types, each with the type that it stands for.
        max_pixels: Planes with more pixels are refused; the source's own limit if None.

    Raises:
        ConfigError: If the source has no such setting.
        DataError: If a location is missing or of an unknown layout.
    """
    from morphem.sources import find_source

    sources: list[Source] = []
    for location in map(absolute, locations):
        cls = registry.get("sources", source) if source else find_source(location)
        given = read_settings(cls, dict(settings), aliases)
        for opened in cls.open(location, **given):
            if max_pixels is not None:
                if not hasattr(opened, "max_pixels"):
                    raise ConfigError(f"the source {cls.__name__} sets no limit on pixels; leave --max-pixels out.")
                opened.max_pixels = max_pixels
            sources.append(opened)
    return sources


def absolute(location: str) -> str:
    """Return a path that does not depend on the working directory, which workers on other machines do not share.

    Args:
        location: A path, or an address, which stays as it is.
    """
    return os.path.abspath(location) if "://" not in location and os.path.exists(location) else location


@contextmanager
def progress_bar(counts: Mapping[str, int]) -> Iterator[Callable[[str, int, int], None]]:
    """Show images done, images per second and time left, over all studies.

    Args:
        counts: Images of each study, before a recipe removes some.
    """
    from tqdm import tqdm

    with tqdm(total=sum(counts.values()), unit="image", file=sys.stderr, dynamic_ncols=True) as bar:
        seen: dict[str, int] = {}

        def show(study: str, done: int, total: int) -> None:
            if study not in seen:  # what an earlier run has done says nothing about the speed of this one
                bar.total += total - counts[study]
                bar.initial += done
                bar.n += done
            bar.set_description(study, refresh=study not in seen)
            bar.update(done - seen.get(study, done))
            seen[study] = done

        yield show


def share(text: str) -> float:
    """Read a share such as `0.01` or `1%`, for argparse.

    Args:
        text: What the user typed.
    """
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as fault:
        raise argparse.ArgumentTypeError(f"'{text}' is not a share such as 1% or 0.01") from fault
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not from 0 to 1 (or 0% to 100%)")
    return value
