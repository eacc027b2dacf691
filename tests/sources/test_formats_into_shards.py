"""Studies in the formats of microscopes, through ingest into 16-bit shards, and back by a plain PNG reader."""

import io
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
import zarr
from numpy.typing import NDArray
from ome_zarr.format import FormatV05
from ome_zarr.writer import add_metadata, write_image, write_plate_metadata, write_well_metadata
from PIL import Image

from morphem.data.shards import ShardSet
from morphem.ingest import IngestSettings, Preparation, ingest
from morphem.sources.base import Source
from morphem.sources.harmony import HarmonySource
from morphem.sources.omezarr import OmeZarrSource
from morphem.sources.pattern import PatternSource
from morphem.sources.tiff import TiffSource
from tests.sources.phenix import CHANNELS, number_of, write_plate
from tests.sources.planes_of import plane

Written = dict[tuple[str, str], NDArray[Any]]
"""Pixels by image and channel name."""


def _phenix(folder: Path) -> tuple[Source, Written]:
    written = {}
    for key in write_plate(folder / "plate"):
        well = {2: "B03", 16: "P24"}[key["Row"]]
        image = f"BR00117010-{well}-s{key['FieldID']}-z{key['PlaneID']}-t0"
        written[image, str(CHANNELS[key["ChannelID"]]["ChannelName"])] = plane(*number_of(key))
    return HarmonySource(str(folder / "plate")), written


def _yokogawa(folder: Path) -> tuple[Source, Written]:
    written = {}
    for n, (well, site, channel) in enumerate(product(("A01", "H12"), (1, 2), ("C01", "C02"))):
        tifffile.imwrite(folder / f"P_{well}_T0001F00{site}L01A01Z01{channel}.tif", plane(n))
        written[f"P-{well}-s{site}-z1-t1-01", channel] = plane(n)
    return PatternSource(str(folder), study="yokogawa"), written


def _ome_tiff(folder: Path) -> tuple[Source, Written]:
    pixels = np.stack([[[plane(t, z, c) for c in range(2)] for z in range(3)] for t in range(2)])
    names = ["DAPI", "ER"]
    metadata = {"axes": "TZCYX", "Channel": {"Name": names}}
    tifffile.imwrite(folder / "a.ome.tif", pixels, metadata=metadata, compression="zlib", tile=(16, 16))
    written = {(f"a-z{z}-t{t}", names[c]): pixels[t, z, c] for t, z, c in product(range(2), range(3), range(2))}
    return TiffSource(str(folder), study="ome"), written


def _zarr_plate(folder: Path) -> tuple[Source, Written]:
    root, fmt = zarr.open_group(str(folder / "p.zarr"), mode="w"), FormatV05()
    write_plate_metadata(root, ["A"], ["1", "2"], ["A/1", "A/2"], fmt=fmt)
    written = {}
    for n, well in enumerate(("A/1", "A/2")):
        write_well_metadata(root.require_group(well), ["0"], fmt=fmt)
        group = root.require_group(f"{well}/0")
        pixels = np.stack([plane(n, c) for c in range(2)])
        write_image(pixels, group, axes="cyx", fmt=fmt, scale_factors=[])
        add_metadata(group, {"omero": {"channels": [{"label": "DAPI"}, {"label": "ER"}]}}, fmt=fmt)
        written |= {(f"p-A0{n + 1}-s0", name): pixels[c] for c, name in enumerate(("DAPI", "ER"))}
    return OmeZarrSource(str(folder), study="plate"), written


@pytest.mark.parametrize("make", [_phenix, _yokogawa, _ome_tiff, _zarr_plate])
def test_every_plane_of_a_study_is_in_the_shards(tmp_path: Path, make: Any) -> None:
    (tmp_path / "in").mkdir()
    source, written = make(tmp_path / "in")

    settings = IngestSettings(preparation=Preparation(clip=None, bit_depth=16))
    report = ingest([source], tmp_path / "out", settings)

    assert report.n_failures == 0
    table: pd.DataFrame = ShardSet(tmp_path / "out").table().to_pandas()
    names = source.table().set_index(["imaging.multi_channel_id", "imaging.channel"])["channel_name"]
    found = {}
    for row in table.to_dict("records"):
        image = str(row["imaging.multi_channel_id"])
        found[image, str(names[image, str(row["imaging.channel"])])] = _pixels(tmp_path / "out", row)
    assert found.keys() == written.keys()
    for key, pixels in written.items():
        np.testing.assert_array_equal(found[key], pixels)


def _pixels(root: Path, row: dict[Any, Any]) -> NDArray[Any]:
    """Cut one plane out of its shard and decode it with Pillow."""
    start = int(row["plane_offset"])
    png = (root / str(row["shard"])).read_bytes()[start : start + int(row["plane_nbytes"])]
    return np.asarray(Image.open(io.BytesIO(png)))
