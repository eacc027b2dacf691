import json
from dataclasses import replace

import numpy as np
import pytest

from morphem.data.record import ImageRecord
from morphem.ingest.lookalikes import MIN_PLANES, StudyStatistics, flag_swapped
from morphem.ingest.prepare import Preparation, prepare
from tests import small_shards

NAMES = ["DAPI", "phalloidin", "mito"]


def study(n_images: int = 20, depth: int = 8, alike: bool = False) -> list[ImageRecord]:
    """Images whose three channels differ in brightness by about two, and from image to image by a tenth."""
    images = []
    for number in range(n_images):
        rng = np.random.default_rng(number)
        image = small_shards.image(f"i{number}", ("nucleus", "actin", "mitochondria"))
        levels = [500 if alike else level for level in (200, 500, 1100)]
        planes = [rng.poisson(level * rng.normal(1, 0.1), (40, 48)).astype(np.uint16) for level in levels]
        raw = replace(image, planes=planes, channel_names=NAMES)
        images.append(prepare(raw, Preparation(bit_depth=depth)))  # type: ignore[arg-type]
    return images


def swapped(image: ImageRecord) -> ImageRecord:
    """The same image with its first two planes exchanged."""
    parts = {name: list(getattr(image, name)) for name in ("planes", "clip_limits", "quality")}
    for values in parts.values():
        values[:2] = values[1::-1]
    return replace(image, **parts)  # type: ignore[arg-type]


def statistics(images: list[ImageRecord]) -> StudyStatistics:
    collected = StudyStatistics()
    for image in images:
        collected.add(image)
    return collected


@pytest.mark.parametrize("depth", [8, 16])
def test_swapped_planes_are_flagged_and_no_others(depth: int) -> None:
    images = study(depth=depth)
    for number in (4, 11):
        images[number] = swapped(images[number])
    flagged = flag_swapped(statistics(images))
    assert [flag[:3] for flag in flagged] == [
        ("i4", "DAPI", "phalloidin"),
        ("i11", "DAPI", "phalloidin"),
        ("i4", "phalloidin", "DAPI"),
        ("i11", "phalloidin", "DAPI"),
    ]
    assert flagged[0].sentence == (
        "image 'i4': intensities and texture of channel 'DAPI' are unusual for it and usual for 'phalloidin'; look "
        "whether the files are swapped or misnamed."
    )


def test_a_study_in_order_has_no_flags() -> None:
    assert flag_swapped(statistics(study())) == []


def test_channels_that_look_alike_are_never_flagged() -> None:
    images = study(alike=True)
    images[3] = swapped(images[3])
    assert flag_swapped(statistics(images)) == []


def test_an_odd_plane_that_looks_like_no_channel_is_not_flagged() -> None:
    images = study()
    limits = list(images[5].clip_limits or ())
    limits[0] = (9000.0, 20000.0)
    images[5] = replace(images[5], clip_limits=limits)
    assert flag_swapped(statistics(images)) == []


def test_a_study_that_is_too_small_is_not_judged() -> None:
    images = study(MIN_PLANES - 1)
    images[3] = swapped(images[3])
    assert flag_swapped(statistics(images)) == []


def test_parts_merge_and_go_through_json_as_if_they_were_one() -> None:
    images = study()
    images[4] = swapped(images[4])
    merged = StudyStatistics()
    for part in (images[:7], images[7:]):
        merged.merge(StudyStatistics.from_json(json.loads(json.dumps(statistics(part).to_json()))))
    assert merged.to_json() == statistics(images).to_json()
    assert len(flag_swapped(merged)) == 2


def test_flat_planes_and_doubled_names_are_left_out() -> None:
    image = study(1)[0]
    flat = replace(image, quality=[{"quality.flat": 1.0}, *(image.quality or ())[1:]])
    assert set(statistics([flat]).signatures) == {"phalloidin", "mito"}
    doubled = replace(image, channel_names=["DAPI", "mito", "mito"])
    assert set(statistics([doubled]).signatures) == {"DAPI"}
