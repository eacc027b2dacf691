from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from morphem.errors import ConfigError, DataError
from morphem.sources.tapes import TapeSource, tiny_planes, write_tape


def write_tapes(folder: Path, count: int = 3) -> dict[str, list[np.ndarray]]:
    """Write tapes of three planes of 12 x 10 pixels in folders of their labels; return their planes."""
    rng = np.random.default_rng(3)
    written = {}
    for i in range(count):
        planes = [rng.integers(0, 256, (12, 10), dtype=np.uint8) for _ in range(3)]
        write_tape(folder / f"class {i % 2}" / f"img+{i}.v1.png", planes)
        written[f"class {i % 2}/img+{i}.v1"] = planes
    return written


def test_a_folder_of_tapes_comes_back_plane_for_plane(tmp_path: Path) -> None:
    written = write_tapes(tmp_path / "my tapes")
    source = TapeSource(str(tmp_path / "my tapes"), channels="DAPI, ER ,something odd")
    assert source.study == "my tapes"
    assert source.image_ids() == sorted(written)
    for image in source.images():
        assert all(np.array_equal(a, b) for a, b in zip(image.planes, written[image.image_id], strict=True))
        types = [row["imaging.channel_type"] for row in image.rows]
        assert types == ["nucleus", "endoplasmic reticulum", "unknown"]
        assert list(image.channel_names) == ["DAPI", "ER", "something odd"]
        assert [row["imaging.channel"] for row in image.rows] == ["1", "2", "3"]
    assert source.unrecognised == {"something odd": 3}


def test_a_table_names_the_tapes_and_their_metadata(tmp_path: Path) -> None:
    written = write_tapes(tmp_path)
    rows = [
        {"file_path": "class 1/img+1.v1.png", "channel_width": "10.0", "experiment.well": "b2", "Label": "x"},
        {"file_path": "class 0/img+0.v1.png", "channel_width": "10.0", "experiment.well": "B3", "Label": "y"},
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "meta.csv", index=False)
    source = TapeSource(str(tmp_path), channels=["DNA", "ER", "AGP"], metadata="meta.csv", study="s")
    first, second = source.images()
    assert (first.image_id, second.image_id) == ("class 1/img+1.v1", "class 0/img+0.v1")
    assert np.array_equal(first.planes[2], written[first.image_id][2])
    assert first.rows[0]["experiment.well"] == "B02"
    assert second.rows[0]["Label"] == "y"
    assert first.rows[0]["experiment.study"] == "s"


def test_a_tape_of_another_channel_width_than_the_table_says_is_an_error_of_its_image(tmp_path: Path) -> None:
    write_tapes(tmp_path, 1)
    pd.DataFrame([{"file": "class 0/img+0.v1.png", "channel_width": "15"}]).to_csv(tmp_path / "m.csv", index=False)
    source = TapeSource(str(tmp_path), channels="a,b", metadata="m.csv")
    assert [plane.shape for plane in source.load("class 0/img+0.v1").planes] == [(12, 15)] * 2
    source = TapeSource(str(tmp_path), channels="a,b,c", metadata="m.csv")
    with pytest.raises(DataError, match=r"geometry\.width of .* is 15, but it is 10"):
        source.load("class 0/img+0.v1")


def test_a_width_that_the_channels_do_not_divide_is_an_error_of_its_image(tmp_path: Path) -> None:
    write_tapes(tmp_path, 1)
    with pytest.raises(DataError, match="30 pixels wide, which cannot be 4 planes side by side"):
        TapeSource(str(tmp_path), channels="a,b,c,d").load("class 0/img+0.v1")


@pytest.mark.parametrize("channels", ["", "DAPI,,ER"])
def test_every_channel_needs_a_name(tmp_path: Path, channels: str) -> None:
    with pytest.raises(ConfigError, match="the name of each stain from left to right"):
        TapeSource(str(tmp_path), channels=channels)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no images"):
        TapeSource(str(tmp_path), channels="a")
    (tmp_path / "m.csv").write_text("path\nx\n")
    with pytest.raises(DataError, match=r"m\.csv' has no column 'file' \(or file_path, Image_Name\)"):
        TapeSource(str(tmp_path), channels="a", metadata="m.csv")


def test_planes_of_the_tiny_tapes_differ() -> None:
    planes = tiny_planes(5, 0) + tiny_planes(5, 1)
    assert len({plane.tobytes() for plane in planes}) == 10
