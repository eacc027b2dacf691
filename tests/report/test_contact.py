"""Contact sheets, from real shards."""

import base64
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from morphem.data.shards import ShardSet
from morphem.errors import DataError
from morphem.report.contact import COLUMNS, SIZE_PX, ContactSheet, Picture, channel_names, contact_sheet
from tests.small_shards import image, write


def _sheet(root: Path, count: int = 24, pixel_um: str | None = None) -> ContactSheet:
    shards = ShardSet(root)
    planes = shards.table(list(COLUMNS)).to_pandas()
    if pixel_um is not None:
        planes["pixel_um"] = pixel_um
    return contact_sheet(shards.reader(), planes, "study", count)


def _pixels(picture: Picture) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(picture.data.partition(",")[2]))) as opened:
        assert opened.format == "JPEG"
        return np.asarray(opened)


def test_pictures_are_small_whatever_the_image(tmp_path: Path) -> None:
    write(tmp_path, [image("wide", size=(50, 700)), image("tiny", size=(9, 5))])
    wide, tiny = _sheet(tmp_path).images
    assert (wide.width, wide.height) == (SIZE_PX, 11)
    assert (tiny.width, tiny.height) == (5, 9)
    assert _pixels(wide).shape == (11, SIZE_PX, 3)


def test_no_more_pictures_than_asked_for(tmp_path: Path) -> None:
    write(tmp_path, [image(f"i{k:02d}") for k in range(20)])
    sheet = _sheet(tmp_path, 8)
    assert (len(sheet.images), len(sheet.alone), sheet.n_images) == (5, 3, 20)


def test_the_same_set_gives_the_same_sheet_and_images_keep_their_order(tmp_path: Path) -> None:
    write(tmp_path, [image(f"i{k:02d}") for k in range(30)])
    sheet = _sheet(tmp_path, 10)
    names = [picture.name for picture in sheet.images]
    assert sheet == _sheet(tmp_path, 10)
    assert names == sorted(set(names))


def test_the_legend_names_each_mixed_channel_and_grey_light_stands_alone(tmp_path: Path) -> None:
    write(tmp_path, [image("i", ("nucleus", "protein", "bright-field"))])
    sheet = _sheet(tmp_path)
    assert list(sheet.legend) == ["nucleus", "protein"]
    assert sheet.not_mixed == ["bright-field"]
    assert [picture.caption for picture in sheet.alone] == ["nucleus", "protein", "bright-field"]


def test_one_channel_needs_no_legend(tmp_path: Path) -> None:
    write(tmp_path, [image("i", ("nucleus",))])
    sheet = _sheet(tmp_path)
    assert (sheet.legend, sheet.alone) == ({}, [])
    pixels = _pixels(sheet.images[0]).astype(int)
    assert np.ptp(pixels, axis=2).max() <= 2  # grey


@pytest.mark.parametrize(("pixel_um", "wide"), [("0.5", 40), (None, 25)])
def test_the_scale_bar_has_the_length_that_the_sentence_says(tmp_path: Path, pixel_um: str | None, wide: int) -> None:
    black = image("i", ("nucleus",), size=(160, 200))
    black.planes[0][:] = 0  # type: ignore[index]
    write(tmp_path, [black])
    sheet = _sheet(tmp_path, pixel_um=pixel_um)
    told = float(sheet.scale.split()[4])  # "The white bar is N ..."
    # 200 pixels became 160; a micrometre is two pixels where the size of a pixel is known
    expected = told * (1 / 0.5 if pixel_um else 1) * 160 / 200
    row = _pixels(sheet.images[0])[-7, :, 0]
    assert abs(int((row > 128).sum()) - expected) <= 1
    assert expected == pytest.approx(wide, rel=0.7)


@pytest.mark.parametrize(
    ("kind", "stain", "name"),
    [
        ("nucleus", "Hoechst", "nucleus (Hoechst)"),
        ("rna", "RNA", "rna"),
        ("protein", "unknown", "protein"),
        ("endoplasmic reticulum", "Endoplasmic reticulum (GFP)", "Endoplasmic reticulum (GFP)"),
    ],
)
def test_the_stain_is_named_where_it_says_more_than_the_type(kind: str, stain: str, name: str) -> None:
    rows = pd.DataFrame({"imaging.channel_type": [kind], "channel_name": [stain]})
    assert channel_names(rows).tolist() == [name]


def test_a_damaged_plane_is_an_error_with_its_name(tmp_path: Path) -> None:
    write(tmp_path, [image("i")])
    shard = next(tmp_path.glob("*.tar"))
    data = bytearray(shard.read_bytes())
    at = data.index(b"IDAT") + 30
    data[at] ^= 0xFF
    shard.write_bytes(data)
    with pytest.raises(DataError, match="study--i"):
        _sheet(tmp_path)
