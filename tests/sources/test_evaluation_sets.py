"""The six evaluation sets of CHAMMI-75: each layout is written small and read back."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save_file

from morphem.data.record import ImageRecord
from morphem.errors import DataError
from morphem.readers.files import open_files
from morphem.sources.cellphie import CellPHIESource
from morphem.sources.chammi import ChammiSource
from morphem.sources.hpav23 import HPAv23Source
from morphem.sources.idr0017 import NO_BOXES, IDR0017Source
from morphem.sources.jumpcp1 import JumpCP1Source
from morphem.sources.rbc_mc import RbcMcSource
from morphem.sources.table import TableSource

ALL = (CellPHIESource, ChammiSource, HPAv23Source, IDR0017Source, JumpCP1Source, RbcMcSource)
RNG = np.random.default_rng(11)


def pixels(*shape: int) -> NDArray[np.uint8]:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def write_tape(path: Path, planes: NDArray[np.uint8]) -> None:
    """Write (C, H, W) as H x (W * C), channel c in columns c * W to (c + 1) * W - 1."""
    count, height, width = planes.shape
    tape = np.zeros((height, width * count), np.uint8)
    for c in range(count):
        tape[:, c * width : (c + 1) * width] = planes[c]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tiff":
        tifffile.imwrite(path, tape)
    else:
        Image.fromarray(tape).save(path)


def same(image: ImageRecord, planes: NDArray[Any]) -> bool:
    return len(image.planes) == len(planes) and all(
        np.array_equal(a, b) for a, b in zip(image.planes, planes, strict=True)
    )


def types(image: ImageRecord) -> list[str]:
    return [row["imaging.channel_type"] for row in image.rows]


@pytest.mark.parametrize("cls", ALL)
def test_each_set_recognises_its_own_layout_and_no_other(cls: type[TableSource], tmp_path: Path) -> None:
    for other in ALL:
        folder = tmp_path / other.__name__
        folder.mkdir()
        other.tiny(folder)
        assert cls.recognises(open_files(str(folder))) == (cls is other)


@pytest.mark.parametrize("cls", ALL)
def test_each_set_is_read_from_a_zip_too(cls: type[TableSource], tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    source = cls.tiny(folder)
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as archive:
        for path in folder.rglob("*.*"):
            archive.write(path, path.relative_to(folder).as_posix())
    [zipped] = cls.open(str(tmp_path / "f.zip"))
    part = pickle.loads(pickle.dumps(zipped.only(zipped.image_ids()[1:])))
    assert part.image_ids() == source.image_ids()[1:]
    for image_id in part.image_ids():
        assert same(part.load(image_id), np.stack(source.load(image_id).planes))


@pytest.mark.parametrize("cls", ALL)
def test_a_location_without_the_set_is_refused(cls: type[TableSource], tmp_path: Path) -> None:
    with pytest.raises(DataError):
        cls.open(str(tmp_path))


CHAMMI = {
    "Allen": (3, (24, 38), ".ome.tiff", ["nucleus", "cell membrane", "protein"]),
    "HPA": (4, (32, 32), ".png", ["microtubules", "protein", "nucleus", "endoplasmic reticulum"]),
    "CP": (5, (16, 16), ".png", ["nucleus", "endoplasmic reticulum", "rna", "golgi body", "mitochondria"]),
}


def test_chammi_gives_three_studies_with_their_labels_in_the_order_of_the_table(tmp_path: Path) -> None:
    written = {}
    for name, (count, size, ending, _) in CHAMMI.items():
        rows = []
        for i in (2, 0, 1):
            path = f"{name}/img {i}{ending}"
            written[f"chammi-{name.lower()}", i] = planes = pixels(count, *size)
            write_tape(tmp_path / path, planes)
            row = {"file_path": path, "channel_width": size[1], "train_test_split": ("Train", "Task_one")[i % 2]}
            rows.append({**row, "Task_one": i % 2 == 1, "Label": f"L{i}", "Plate": f"P{i}", "cell_type": "U2OS"})
        pd.DataFrame(rows).to_csv(tmp_path / name / "enriched_meta.csv", index=False)
    sources = ChammiSource.open(str(tmp_path))
    assert [source.study for source in sources] == ["chammi-allen", "chammi-hpa", "chammi-cp"]
    for source, (_, _, _, kinds) in zip(sources, CHAMMI.values(), strict=True):
        assert [image_id.rpartition("img ")[2][0] for image_id in source.image_ids()] == ["2", "0", "1"]
        for image, i in zip(source.images(), (2, 0, 1), strict=True):
            assert same(image, written[source.study, i])
            assert types(image) == kinds
            row = image.rows[0]
            assert (row["Label"], row["Task_one"], row["experiment.plate"]) == (f"L{i}", str(i == 1), f"P{i}")
            assert row["train_test_split"] == ("Train", "Task_one")[i % 2]
            assert row["biology.cell_type"] == "U2OS"


def test_chammi_of_a_wrong_channel_width_is_an_error_of_the_image(tmp_path: Path) -> None:
    write_tape(tmp_path / "CP/a.png", pixels(4, 16, 20))  # 80 pixels wide: five planes of 16 would fit
    row = {"file_path": "CP/a.png", "channel_width": 20, "train_test_split": "Train", "Label": "x"}
    pd.DataFrame([row]).to_csv(tmp_path / "CP" / "enriched_meta.csv", index=False)
    with pytest.raises(DataError, match=r"geometry\.width of 'CP/a\.png' is 20, but it is 16"):
        ChammiSource(str(tmp_path)).load("CP/a")


def test_chammi_needs_the_data_set_named_where_there_are_several(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no folder Allen, HPA, CP"):
        ChammiSource(str(tmp_path))
    ChammiSource.tiny(tmp_path)
    with pytest.raises(DataError, match="No data set of CHAMMI 'HPA'"):
        ChammiSource(str(tmp_path), dataset="HPA")


def test_hpav23_has_the_channel_order_of_opencv(tmp_path: Path) -> None:
    rgba = pixels(24, 24, 4)
    (tmp_path / "1234").mkdir()
    Image.fromarray(rgba, "RGBA").save(tmp_path / "1234" / "1234_C3_2_17_cell_image.png")
    row = {"if_plate_id": "1234", "position": "C3", "sample": "2", "cell_id": 17.0, "antibody": "HPA1"}
    row |= {"locations": "Nucleoplasm,Cytosol", "atlas_name": "U-2 OS"}
    pd.DataFrame([row]).to_csv(tmp_path / "metadata.csv", index=False)
    image = HPAv23Source(str(tmp_path)).load("1234_C3_2_17")
    blue, green, red, alpha = rgba[..., 2], rgba[..., 1], rgba[..., 0], rgba[..., 3]
    assert same(image, np.stack([blue, green, red, alpha]))
    assert types(image) == ["microtubules", "endoplasmic reticulum", "nucleus", "protein"]
    full = image.rows[0]
    assert (full["experiment.plate"], full["experiment.well"], full["microscopy.fov"]) == ("1234", "C03", "2")
    assert (full["antibody"], full["locations"], full["atlas_name"]) == ("HPA1", "Nucleoplasm,Cytosol", "U-2 OS")
    assert full["cell_id"] == "17"


def test_hpav23_refuses_a_cell_without_a_number(tmp_path: Path) -> None:
    HPAv23Source.tiny(tmp_path)
    sheet = tmp_path / "metadata.csv"
    sheet.write_text(sheet.read_text().replace("2.0", "nan"))
    with pytest.raises(DataError, match="cell_id 'nan' is no whole number"):
        HPAv23Source(str(tmp_path))


@pytest.mark.parametrize("beside", [False, True])
def test_jumpcp1_pools_plates_and_reads_names_relative_to_root_or_plate(tmp_path: Path, beside: bool) -> None:
    written = {}
    for plate in ("BR00117010", "BR00117024"):
        rows = []
        for cell in range(2):
            name = f"images/A01-1-{cell}.png"
            written[f"{plate}/images/A01-1-{cell}"] = planes = pixels(5, 16, 16)
            write_tape(tmp_path / plate / name, planes)
            row = {"Image_Name": name if beside else f"{plate}/{name}", "Key": f"{plate}/a1/3", "Target": "EGFR"}
            rows.append({**row, "Nuclei_Location_Center_X": 101.5})
        pd.DataFrame(rows).to_csv(tmp_path / plate / "sc-metadata.csv", index=False)
    source = JumpCP1Source(str(tmp_path))
    assert source.image_ids() == list(written)
    for image in source.images():
        assert same(image, written[image.image_id])
        row = image.rows[0]
        assert (row["experiment.plate"], row["experiment.well"]) == (image.image_id[:10], "A01")
        assert (row["microscopy.fov"], row["Target"], row["Nuclei_Location_Center_X"]) == ("3", "EGFR", "101.5")
    assert types(image) == CHAMMI["CP"][3]
    assert JumpCP1Source(str(tmp_path), plates="BR00117024").count == 2
    with pytest.raises(DataError, match="has no plate BR1"):
        JumpCP1Source(str(tmp_path), plates="BR1")


def write_idr0017(root: Path, boxes: dict[str, list[list[int]]]) -> dict[str, NDArray[np.uint8]]:
    """Write two plates of two images each; boxes by plate/file."""
    rows, written = [], {}
    for plate in ("p1", "p2"):
        (root / plate).mkdir()
        for image in range(2):
            for channel, kind in ((2, "cytoskeleton"), (1, "nucleus")):
                name = f"i{image}_{kind}.png"
                written[f"{plate}/{name}"] = plane = pixels(40, 50)
                Image.fromarray(plane).save(root / plate / name)
                rows.append(
                    {
                        "imaging.multi_channel_id": f"{plate}-i{image}",
                        "imaging.channel": channel,
                        "imaging.channel_type": kind,
                        "storage.zip": plate,
                        "storage.filename": name,
                        "biology.cell_line": "HCT116",
                        "experiment.reagent": "DMSO",
                        "experiment.control": "negative control",
                        "experiment.study": "idr0017",
                    }
                )
        keyed = {
            f"idr0017-{plate}-converted/{key.partition('/')[2]}": np.array(values, np.int64).reshape(-1, 4)
            for key, values in boxes.items()
            if key.startswith(plate)
        }
        save_file(keyed, root / plate / "crops.safetensors")
    pd.DataFrame(rows).to_csv(root / "idr0017_meta.csv", index=False)
    return written


def test_idr0017_has_its_fields_boxes_and_metadata(tmp_path: Path) -> None:
    boxes = {
        "p1/i0_nucleus.png": [[0, 20, 10, 30], [5, 25, 30, 50]],
        "p1/i1_cytoskeleton.png": [[20, 40, 0, 20]],
        "p2/i0_nucleus.png": [],
    }
    written = write_idr0017(tmp_path, boxes)
    source = IDR0017Source(str(tmp_path))
    assert source.remarks == {NO_BOXES: 1}
    images = {image.image_id: image for image in source.images()}
    assert list(images) == ["p1-i0", "p1-i1", "p2-i0", "p2-i1"]
    for image_id, image in images.items():
        plate, name = image_id.split("-")
        assert same(image, np.stack([written[f"{plate}/{name}_{kind}.png"] for kind in ("nucleus", "cytoskeleton")]))
        assert types(image) == ["nucleus", "cytoskeleton"]
        row = image.rows[0]
        assert (row["experiment.control"], row["biology.cell_line"]) == ("negative control", "HCT116")
        assert row["storage.path"] == f"{plate}/{name}_nucleus.png"
    first = images["p1-i0"]
    assert first.cells is not None
    assert first.cells.tolist() == [[20, 10], [40, 15]]  # x, y of the middles
    assert first.cell_labels is not None
    sides = np.array([first.cell_labels[side] for side in ("y_min", "y_max", "x_min", "x_max")]).T.astype(int)
    assert sides.tolist() == boxes["p1/i0_nucleus.png"]  # the boxes themselves can be had again
    second, empty = images["p1-i1"], images["p2-i0"]
    assert second.cells is not None
    assert second.cells.tolist() == [[10, 30]]
    assert empty.cells is not None
    assert len(empty.cells) == 0
    assert images["p2-i1"].cells is None


def test_idr0017_refuses_a_box_outside_of_the_image(tmp_path: Path) -> None:
    write_idr0017(tmp_path, {"p1/i0_nucleus.png": [[0, 41, 10, 30]]})
    with pytest.raises(DataError, match=r"the box \[0, 41, 10, 30\] .* is not in 50 x 40 pixels"):
        IDR0017Source(str(tmp_path)).load("p1-i0")


def test_idr0017_refuses_two_files_of_boxes_for_a_plate(tmp_path: Path) -> None:
    write_idr0017(tmp_path, {})
    save_file({"a": np.zeros(1)}, tmp_path / "p1" / "other.safetensors")
    with pytest.raises(DataError, match="two files of boxes in 'p1'"):
        IDR0017Source(str(tmp_path))


def test_cellphie_has_fourteen_stains_and_the_outline_of_each_cell(tmp_path: Path) -> None:
    images, masks = pixels(3, 14, 64, 64), (pixels(3, 64, 64) > 128).astype(bool)
    frame = pd.DataFrame(
        {
            "image": list(images),
            "soma_mask": list(masks),
            "train": [1, 0, 1],
            "Gene": ["HTT", "non-target", "MSH3"],
            "Time": ["D28", "D21", "D28"],
            "Media": "m",
            "Sample": ["s1", "s2", "s3"],
            "UMI": [1.0, 2.0, None],
        },
        index=["1_s1_D28", "2_s2_D21", "3_s3_D28"],
    )
    frame.to_pickle(tmp_path / "CELLPHIE.pkl")
    source = CellPHIESource(str(tmp_path / "CELLPHIE.pkl"))
    for i, image in enumerate(source.images()):
        assert same(image, images[i])
        assert np.array_equal(image.masks, masks[i].astype(np.uint16))
        assert len(image.cells) == 1
        assert types(image)[0] == "nucleus"
        assert types(image)[1:11] == ["protein"] * 10
        assert types(image)[11:] == ["rna", "endoplasmic reticulum", "golgi body"]
        assert image.channel_names[2] == "pRPS6"
        row = image.rows[0]
        assert (row["experiment.reagent"], row["geometry.timepoint"]) == (frame["Gene"].iloc[i], frame["Time"].iloc[i])
        assert row["experiment.control"] == ("negative control" if i == 1 else "no")
        assert (row["train"], row["Sample"]) == (str(frame["train"].iloc[i]), f"s{i + 1}")


def test_cellphie_sends_only_the_pixels_of_a_part(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "image": list(pixels(20, 14, 64, 64)),
            "soma_mask": list(pixels(20, 64, 64) // 255),
            **dict.fromkeys(("train", "Gene", "Time", "Media", "Sample"), "x"),
        }
    )
    frame.to_pickle(tmp_path / "CELLPHIE.pkl")
    source = CellPHIESource(str(tmp_path))
    part = source.only(source.image_ids()[7:9])
    assert len(pickle.dumps(part)) < len(pickle.dumps(source)) / 5
    assert same(part.load(part.image_ids()[1]), np.stack(source.load(source.image_ids()[8]).planes))


def test_cellphie_of_another_shape_is_an_error_of_the_cell(tmp_path: Path) -> None:
    columns = {name: ["x"] for name in ("train", "Gene", "Time", "Media", "Sample")}
    frame = pd.DataFrame({"image": [pixels(13, 8, 8)], "soma_mask": [pixels(8, 8)], **columns})
    frame.to_pickle(tmp_path / "CELLPHIE.pkl")
    with pytest.raises(DataError, match=r"'image' is \(13, 8, 8\).*needed: \(14, height, width\)"):
        CellPHIESource(str(tmp_path)).load("cell000000")
    frame.drop(columns="soma_mask").to_pickle(tmp_path / "CELLPHIE.pkl")
    with pytest.raises(DataError, match="has no column 'soma_mask'"):
        CellPHIESource(str(tmp_path))


def test_rbc_mc_has_domain_and_class_of_each_cell(tmp_path: Path) -> None:
    written = {}
    for domain, donor, kind in (
        ("Swiss", "d1/x", "Side"),
        ("Canadian", "d2", "Undecidable"),
        ("Canadian", "d2", "Side"),
    ):
        path = tmp_path / domain / donor / kind / "c 1.ome.tif"
        path.parent.mkdir(parents=True)
        written[f"{domain}/{donor}/{kind}/c 1"] = plane = pixels(48, 48)
        tifffile.imwrite(path, plane, metadata={"axes": "YX"})
    source = RbcMcSource(str(tmp_path))
    assert source.image_ids() == sorted(written)
    for image in source.images():
        assert same(image, written[image.image_id][None])
        parts = image.image_id.split("/")
        assert (image.rows[0]["domain"], image.rows[0]["class"]) == (parts[0], parts[-2])
        assert types(image) == ["bright-field"]


def test_rbc_mc_of_16_bit_stays_16_bit(tmp_path: Path) -> None:
    RbcMcSource.tiny(tmp_path)
    plane = (pixels(16, 20).astype(np.uint16) * 257)[:16]
    tifffile.imwrite(tmp_path / "Swiss" / "donor1" / "SmoothDisc" / "cell1.ome.tif", plane, metadata={"axes": "YX"})
    image = RbcMcSource(str(tmp_path)).load("Swiss/donor1/SmoothDisc/cell1")
    assert image.planes[0].dtype == np.uint16
    assert same(image, plane[None])
