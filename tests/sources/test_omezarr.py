import json
import pickle
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from ome_zarr.format import Format, FormatV04, FormatV05
from ome_zarr.writer import add_metadata, write_image, write_plate_metadata, write_well_metadata

from morphem.errors import ConfigError, DataError
from morphem.readers.files import open_files
from morphem.sources.omezarr import OmeZarrSource
from tests.sources.planes_of import SHAPE, assert_image, plane

FORMATS = [FormatV04(), FormatV05()]
STAINS = ("DAPI", "Concanavalin A")
H, W = SHAPE


def _stack(*lengths: int, dtype: str = "uint16", seed: int = 0) -> NDArray[Any]:
    planes = [plane(*at, seed, dtype=dtype) for at in product(*map(range, lengths))]
    return np.stack(planes).reshape(*lengths, H, W)


def _group(path: Path, fmt: Format) -> Any:
    return zarr.open_group(str(path), mode="w", zarr_format=fmt.zarr_format)


def _write(group: Any, pixels: NDArray[Any], fmt: Format, axes: str = "tczyx", labels: Any = STAINS) -> None:
    scale = {axis: {"y": 325.0, "x": 325.0, "z": 2000.0}.get(axis, 1.0) for axis in axes}
    units = {axis: "nanometer" for axis in axes if axis in "zyx"}
    write_image(pixels, group, axes=axes, fmt=fmt, scale_factors=[{"y": 2, "x": 2}], scale=scale, axes_units=units)
    if labels:
        add_metadata(group, {"omero": {"channels": [{"label": label} for label in labels]}}, fmt=fmt)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_every_plane_and_field_of_an_image_comes_back(tmp_path: Path, fmt: Format, dtype: str) -> None:
    pixels = _stack(2, 2, 3, dtype=dtype)
    _write(_group(tmp_path / "a b+c.zarr", fmt), pixels, fmt)

    source = OmeZarrSource(str(tmp_path), study="s")

    assert source.image_ids() == [f"a b+c-z{z}-t{t}" for t in range(2) for z in range(3)]
    for t, z in product(range(2), range(3)):
        expected = {
            "experiment.study": "s",
            "imaging.panel": "DAPI,Concanavalin A",
            "imaging.channel": ["1", "2"],
            "imaging.channel_type": ["nucleus", "endoplasmic reticulum"],
            "geometry.width": W,
            "geometry.height": H,
            "geometry.depth": "3",
            "geometry.channels": 2,
            "geometry.z_slice": str(z),
            "geometry.timepoint": str(t),
            "storage.path": "a b+c.zarr/s0",
            "pixel_um": "0.325",
        }
        assert_image(source, f"a b+c-z{z}-t{t}", list(pixels[t, :, z]), expected)


@pytest.mark.parametrize("axes", ["yx", "cyx", "zyx", "tyx", "czyx", "tcyx"])
def test_an_image_may_lack_axes(tmp_path: Path, axes: str) -> None:
    pixels = _stack(*([2] * (len(axes) - 2))) if len(axes) > 2 else plane(1)
    _write(_group(tmp_path / "a.zarr", FORMATS[1]), pixels, FORMATS[1], axes, labels=())
    source = OmeZarrSource(str(tmp_path))
    for image_id in source.image_ids():
        z, t = ("z1" in image_id, "t1" in image_id)
        chosen = pixels[tuple({"z": int(z), "t": int(t), "c": slice(None)}[axis] for axis in axes[:-2])]
        assert_image(source, image_id, list(chosen.reshape(-1, H, W)), {})
    assert source.count == 2 ** len(set(axes) & set("tz"))


def _plate(path: Path, fmt: Format) -> dict[tuple[str, str], NDArray[Any]]:
    """A plate of two wells, of two fields each in one of two acquisitions."""
    root = _group(path, fmt)
    wells, fields = ("B/12", "C/3"), ("0", "1")
    acquisitions = [{"id": 0, "name": "live"}, {"id": 1, "name": "fixed"}]
    write_plate_metadata(
        root, ["B", "C"], ["3", "12"], list(wells), fmt=fmt, acquisitions=acquisitions, field_count=2, name="P 1"
    )
    written = {}
    for n, well in enumerate(wells):
        group = root.require_group(well)
        write_well_metadata(group, [{"path": field, "acquisition": int(field)} for field in fields], fmt=fmt)
        for field in fields:
            pixels = _stack(1, 2, 1, seed=10 * n + int(field) + 1)
            _write(group.require_group(field), pixels, fmt)
            written[well, field] = pixels
    return written


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_every_field_of_a_plate_comes_back(tmp_path: Path, fmt: Format) -> None:
    written = _plate(tmp_path / "screen.ome.zarr", fmt)

    source = OmeZarrSource(str(tmp_path / "screen.ome.zarr"))

    assert source.study == "screen"
    assert source.image_ids() == ["screen-B12-s0", "screen-B12-s1", "screen-C03-s0", "screen-C03-s1"]
    for (path, field), pixels in written.items():
        well = {"B/12": "B12", "C/3": "C03"}[path]
        expected = {
            "experiment.study": "screen",
            "experiment.plate": "P 1",
            "experiment.well": well,
            "microscopy.fov": field,
            "acquisition": {"0": "live", "1": "fixed"}[field],
            "imaging.channel_type": ["nucleus", "endoplasmic reticulum"],
            "geometry.depth": "1",
            "geometry.z_slice": "0",
            "storage.path": f"{path}/{field}/s0",
            "pixel_um": "0.325",
        }
        assert_image(source, f"screen-{well}-s{field}", list(pixels[0, :, 0]), expected)
    assert not source.problems


def test_several_stores_of_a_folder_are_one_study(tmp_path: Path) -> None:
    for name, fmt in zip(("a", "b"), FORMATS, strict=True):
        _write(_group(tmp_path / f"{name}.zarr", fmt), _stack(1, 2, 1), fmt)
    assert OmeZarrSource(str(tmp_path)).image_ids() == ["a", "b"]


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("inside", ["", "a.zarr"])
def test_a_zipped_store_is_read_in_place(tmp_path: Path, fmt: Format, inside: str) -> None:
    pixels = _stack(1, 2, 1)
    _write(_group(tmp_path / "in" / "a.zarr", fmt), pixels, fmt)
    root = tmp_path / "in" / ("" if inside else "a.zarr")
    shutil.make_archive(str(tmp_path / "packed.zarr"), "zip", root)
    for location in (tmp_path, tmp_path / "packed.zarr.zip"):
        assert_image(OmeZarrSource(str(location)), "packed", list(pixels[0, :, 0]), {})


def test_an_address_of_an_object_store_is_read(tmp_path: Path) -> None:
    pixels = _stack(1, 2, 1)
    _write(_group(tmp_path / "a.zarr", FORMATS[1]), pixels, FORMATS[1])
    assert_image(OmeZarrSource(f"file://{tmp_path}/a.zarr"), "a", list(pixels[0, :, 0]), {})


def test_the_series_of_bioformats2raw_are_images(tmp_path: Path) -> None:
    root = _group(tmp_path / "a.zarr", FORMATS[0])
    root.attrs["bioformats2raw.layout"] = 3
    for number in ("0", "1"):
        _write(root.require_group(number), _stack(1, 2, 1, seed=int(number)), FORMATS[0])
    root.require_group("OME").attrs["series"] = ["0", "1"]
    source = OmeZarrSource(str(tmp_path))
    assert_image(source, "a-i1", list(_stack(1, 2, 1, seed=1)[0, :, 0]), {})


def test_names_of_the_dca_draft_go_before_display_labels(tmp_path: Path) -> None:
    group = _group(tmp_path / "a.zarr", FORMATS[1])
    _write(group, _stack(1, 2, 1), FORMATS[1], labels=("red", "green"))
    dca = {"channels": [{"name": "Actin", "index": 1}, {"name": "DNA", "index": 0, "description": "Hoechst"}]}
    add_metadata(group, {"dca": dca}, fmt=FORMATS[1])
    assert OmeZarrSource(str(tmp_path)).load("a").channel_names == ["DNA", "Actin"]


def test_names_of_the_user_serve_images_that_do_not_tell(tmp_path: Path) -> None:
    _write(_group(tmp_path / "a.zarr", FORMATS[1]), _stack(1, 2, 1), FORMATS[1], labels=())
    assert OmeZarrSource(str(tmp_path), channels="DNA,ER").load("a").channel_names == ["DNA", "ER"]
    assert OmeZarrSource(str(tmp_path)).unrecognised == {"channel 1": 1, "channel 2": 1}


def test_labels_of_another_number_of_channels_are_not_used(tmp_path: Path) -> None:
    _write(_group(tmp_path / "a.zarr", FORMATS[1]), _stack(1, 2, 1), FORMATS[1], labels=("DAPI",))
    source = OmeZarrSource(str(tmp_path))
    assert source.load("a").channel_names == ["channel 1", "channel 2"]
    assert source.remarks == {"images of 2 channels whose metadata name 1: names not used": 1}


def test_the_maximum_over_the_slices_is_recorded(tmp_path: Path) -> None:
    pixels = _stack(1, 2, 3)
    _write(_group(tmp_path / "a.zarr", FORMATS[1]), pixels, FORMATS[1])
    source = OmeZarrSource(str(tmp_path), project="max")
    assert_image(source, "a", list(pixels[0].max(axis=1)), {"geometry.z_slice": "max", "geometry.depth": "3"})


def test_a_part_of_a_plate_can_be_sent_to_another_process(tmp_path: Path) -> None:
    written = _plate(tmp_path / "p.zarr", FORMATS[1])
    part = pickle.loads(pickle.dumps(OmeZarrSource(str(tmp_path)).only(["p-C03-s1"])))
    assert_image(part, "p-C03-s1", list(written["C/3", "1"][0, :, 0]), {})


def test_a_well_and_a_field_that_are_missing_are_problems_and_the_others_go_on(tmp_path: Path) -> None:
    _plate(tmp_path / "p.zarr", FORMATS[1])
    shutil.rmtree(tmp_path / "p.zarr" / "B" / "12")
    shutil.rmtree(tmp_path / "p.zarr" / "C" / "3" / "0")
    source = OmeZarrSource(str(tmp_path))
    assert source.image_ids() == ["p-C03-s1"]
    assert [name for name, _ in source.problems] == ["p-B12", "p-C03-s0"]


def test_a_damaged_chunk_fails_its_image_alone(tmp_path: Path) -> None:
    written = _plate(tmp_path / "p.zarr", FORMATS[0])
    chunk = next(
        path
        for path in (tmp_path / "p.zarr" / "B" / "12" / "0" / "s0").rglob("*")
        if path.name.isdecimal() and path.is_file()
    )
    chunk.write_bytes(chunk.read_bytes()[:9])
    source = OmeZarrSource(str(tmp_path))
    with pytest.raises(DataError, match=r"p\.zarr/B/12/0/s0' cannot be read"):
        source.load("p-B12-s0")
    assert_image(source, "p-C03-s0", list(written["C/3", "0"][0, :, 0]), {})


def test_a_store_that_is_no_ome_zarr_is_a_problem(tmp_path: Path) -> None:
    _write(_group(tmp_path / "a.zarr", FORMATS[1]), _stack(1, 2, 1), FORMATS[1])
    _group(tmp_path / "b.zarr", FORMATS[1])
    (tmp_path / "c.zarr").mkdir()
    source = OmeZarrSource(str(tmp_path))
    assert source.image_ids() == ["a"]
    assert [name for name, _ in source.problems] == ["b", "c"]


def test_a_version_that_is_not_known_is_refused(tmp_path: Path) -> None:
    _write(_group(tmp_path / "a.zarr", FORMATS[1]), _stack(1, 2, 1), FORMATS[1])
    path = tmp_path / "a.zarr" / "zarr.json"
    facts = json.loads(path.read_text())
    facts["attributes"]["ome"]["version"] = "0.9"
    path.write_text(json.dumps(facts))
    with pytest.raises(DataError, match=r"Version 0\.9 not recognized"):
        OmeZarrSource(str(tmp_path))


def test_planes_of_too_many_pixels_are_refused(tmp_path: Path) -> None:
    _write(_group(tmp_path / "a.zarr", FORMATS[1]), _stack(1, 2, 1), FORMATS[1])
    source = OmeZarrSource(str(tmp_path))
    source.max_pixels = H * W - 1
    with pytest.raises(DataError, match="--max-pixels"):
        source.load("a")


def test_chunks_of_too_many_pixels_are_refused(tmp_path: Path) -> None:
    group = _group(tmp_path / "a.zarr", FORMATS[1])
    write_image(plane(1), group, axes="yx", fmt=FORMATS[1], scale_factors=[], storage_options={"chunks": (64, 64)})
    source = OmeZarrSource(str(tmp_path))
    source.max_pixels = 64 * 64 - 1
    with pytest.raises(DataError, match="--max-pixels"):
        source.load("a")


def test_an_image_that_claims_too_many_planes_is_refused(tmp_path: Path) -> None:
    group = _group(tmp_path / "a.zarr", FORMATS[1])
    _write(group, _stack(1, 2, 1), FORMATS[1])
    array = tmp_path / "a.zarr" / "s0" / "zarr.json"
    facts = json.loads(array.read_text())
    facts["shape"][0] = 10**9
    array.write_text(json.dumps(facts))
    with pytest.raises(DataError, match="at most 10000000 together"):
        OmeZarrSource(str(tmp_path))


def test_a_path_out_of_the_store_is_refused(tmp_path: Path) -> None:
    _write(_group(tmp_path / "secret.zarr", FORMATS[0]), _stack(1, 2, 1), FORMATS[0])
    _plate(tmp_path / "in" / "p.zarr", FORMATS[0])
    attributes = tmp_path / "in" / "p.zarr" / "B" / "12" / ".zattrs"
    attributes.write_text(attributes.read_text().replace('"path": "0"', '"path": "../../../../secret.zarr"'))
    source = OmeZarrSource(str(tmp_path / "in"))
    assert len(source.problems) == 1
    assert "secret" in source.problems[0][0]


def test_the_projection_must_be_one_that_exists(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="allowed: max"):
        OmeZarrSource(str(tmp_path), project="mean")  # type: ignore[arg-type]


def test_locations_are_recognised(tmp_path: Path) -> None:
    assert not OmeZarrSource.recognises(open_files(str(tmp_path)))
    _write(_group(tmp_path / "a.zarr", FORMATS[0]), _stack(1, 2, 1), FORMATS[0])
    assert OmeZarrSource.recognises(open_files(str(tmp_path)))
    assert OmeZarrSource.recognises(open_files(str(tmp_path / "a.zarr")))
