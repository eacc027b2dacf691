import os
from pathlib import Path

import pandas as pd
import pytest

from morphem.ingest.settings import IngestSettings, differences, fingerprint, part_size
from morphem.sources.sheet import SheetSource
from tests.ingest.studies import NamedStudy
from tests.sources.sheets import write_study


def table(n_images: int, side: int | str, channels: int = 4) -> pd.DataFrame:
    size = {"geometry.width": str(side), "geometry.height": str(side)}
    return pd.DataFrame(
        [{"imaging.multi_channel_id": str(n), **size} for n in range(n_images) for _ in range(channels)]
    )


@pytest.mark.parametrize(
    ("n_images", "side", "size"),
    [
        (10_000, 2048, 16),  # 4 planes of 2**22 pixels: 16 images are 2**28
        (10_000, "unknown", 16),
        (10_000, 8192, 1),
        (10_000, 16384, 1),  # larger than a part: still one image
        (10_000, 512, 157),  # 256 would leave fewer than 64 parts
        (20_000, 64, 256),
        (3, 2048, 1),
    ],
)
def test_parts_are_as_large_as_pixels_and_number_of_images_allow(n_images: int, side: int | str, size: int) -> None:
    assert part_size(table(n_images, side, 4), n_images, None) == size


def test_the_size_that_was_asked_for_is_taken() -> None:
    assert part_size(table(10, 2048), 10, 7) == 7


def test_a_fingerprint_does_not_depend_on_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_study(tmp_path / "in")
    found = []
    for folder, name in ((tmp_path, "in"), (tmp_path / "in", ".")):
        monkeypatch.chdir(folder)
        source = SheetSource(name)
        source.study = "study"
        found.append(fingerprint(source, source.table(), IngestSettings())["source"])
    assert os.path.abspath(tmp_path / "in") in found[0]
    assert found[0] == found[1]


def test_a_changed_row_changes_the_fingerprint_and_only_the_images() -> None:
    source, settings = NamedStudy(), IngestSettings()
    changed = source.table()
    changed.loc[3, "parity"] = "none"
    before, now = fingerprint(source, source.table(), settings), fingerprint(source, changed, settings)
    assert differences(before, now) == "the list of images"


def test_what_has_no_effect_on_images_is_not_in_the_fingerprint() -> None:
    one = fingerprint(NamedStudy(), NamedStudy().table(), IngestSettings())
    other = IngestSettings(max_bad=0.5, part_images=3, overwrite=True, max_shard_images=5)
    assert one == fingerprint(NamedStudy(), NamedStudy().table(), other)
