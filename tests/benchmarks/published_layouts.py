"""The evaluation sets of CHAMMI-75 in the layouts in which they are published, small, with patterns that tell labels.

Pixels of a label are stripes of their own width and direction under noise; what a set calls control has none.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tifffile
from PIL import Image
from safetensors.numpy import save_file

from morphem.benchmarks.cellphie import CONTROL
from morphem.benchmarks.idr0017 import CELL_LINES, NEGATIVE
from morphem.benchmarks.rbc_mc import CLASSES

RANDOM = np.random.default_rng(17)


def stripes(label: int, height: int, width: int, noise: float = 12.0) -> np.ndarray:
    """A plane of 8 bit; label 0 has no stripes."""
    rows, columns = np.mgrid[:height, :width]
    along = (rows, columns, rows + columns, rows - columns)[label % 4]
    wave = np.sin(2 * np.pi * along / (4 + 3 * (label // 4 + label % 4))) if label else 0.0
    return np.clip(110 + 70 * wave + noise * RANDOM.normal(size=(height, width)), 0, 254).astype(np.uint8)


def _tape(path: Path, planes: list[np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tape = np.concatenate(planes, axis=1)
    if path.suffix == ".tiff":
        tifffile.imwrite(path, tape)
    else:
        Image.fromarray(tape).save(path)


def chammi(folder: Path) -> Path:
    """Three folders with `enriched_meta.csv` and tapes; Allen's planes are wider than high."""
    sets = {"Allen": (3, 24, 38, ".ome.tiff", 2), "HPA": (4, 32, 32, ".png", 3), "CP": (5, 24, 24, ".png", 4)}
    for name, (count, height, width, ending, n_tasks) in sets.items():
        tasks = ("Task_one", "Task_two", "Task_three", "Task_four")[:n_tasks]
        rows = []
        for i, split in enumerate(["Train"] * 12 + [task for task in tasks for _ in range(9)]):
            label = i % 3
            file = f"{name}/images/{i:03d}{ending}"
            _tape(folder / file, [stripes(label + 1, height, width) for _ in range(count)])
            row: dict[str, Any] = {"file_path": file, "channel_width": width, "train_test_split": split}
            row |= {task: split == task for task in tasks}
            rows.append(row | {"Label": f"L{label}", "cell_type": f"line{i // 3 % 3}", "Plate": f"plate{i // 3 % 3}"})
        pd.DataFrame(rows).to_csv(folder / name / "enriched_meta.csv", index=False)
    return folder


def hpav23(folder: Path) -> Path:
    """`metadata.csv`, one PNG of four channels per cell, lists of antibodies and the table of places."""
    places = ("Cytosol", "Nucleoplasm", "Vesicles")
    rows, antibodies = [], [f"HPA{i:06d}" for i in range(60)]
    for i, antibody in enumerate(antibodies):
        for cell in range(2):
            plate, label, well = str(i % 2 + 1), i % 3, f"{'ABCDE'[i // 12]}{i % 12 + 1}"
            name = f"{plate}_{well}_1_{cell}"
            planes = [stripes(kind, 64, 64, 4.0) for kind in (1, 2, 3, label + 1)]
            planes[2][:3] = 255  # saturated microtubules, stored as blue
            (folder / plate).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.stack(planes, axis=-1)).save(folder / plate / f"{name}_cell_image.png")
            rows.append(
                {
                    "if_plate_id": plate,
                    "position": well,
                    "sample": "1",
                    "cell_id": f"{cell}.0",
                    "antibody": antibody,
                    "locations": None if i == 9 else places[label] + (",Aggresome" if i == 4 else ""),
                    "atlas_name": "U2OS",
                }
            )
    pd.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)
    return folder


def hpav23_side(folder: Path) -> None:
    """The files of the benchmark's repository that say how antibodies are split and which places there are."""
    antibodies = [f"HPA{i:06d}" for i in range(60)]
    for name, chosen in (("train", antibodies[:36]), ("valid", antibodies[36:48]), ("test", antibodies[48:])):
        (folder / f"{name}_antibodies.txt").write_text("\n".join(chosen) + "\n")
    known = ["Cytosol", "Nucleoplasm", "Vesicles", "Aggresome", "Rods & Rings", "Cleavage furrow"]
    frame = pd.DataFrame({"Original annotation": known, "Group": "x"})
    frame.to_csv(folder / "location_group_mapping.tsv", sep="\t", index=False)


def idr0017(folder: Path) -> Path:
    """`idr0017_meta.csv`, a folder per plate with PNGs of single channels and one file of boxes of 100 pixels."""
    rows = []
    for line, plate in zip(CELL_LINES[:2], ("P1", "P2"), strict=True):
        (folder / plate).mkdir(parents=True)
        boxes: dict[str, np.ndarray] = {}
        reagents = [(f"dmso{i % 2}", NEGATIVE, 0) for i in range(10)]
        reagents += [(f"drug{i:02d}", "no", i % 4 + 1 if i < 4 else 0) for i in range(60)]
        reagents.append(("no cells", "no", 0))
        for i, (reagent, control, label) in enumerate(reagents):
            for channel, kind in enumerate(("nucleus", "cytoskeleton")):
                name = f"{plate}-{i:03d}-ch{channel}.png"
                Image.fromarray(stripes(label, 120, 224)).save(folder / plate / name)
                rows.append(
                    {
                        "imaging.multi_channel_id": f"{plate}-{i:03d}",
                        "imaging.channel": channel + 1,
                        "imaging.channel_type": kind,
                        "storage.zip": plate,
                        "storage.filename": name,
                        "biology.cell_line": line,
                        "experiment.reagent": reagent,
                        "experiment.control": control,
                    }
                )
            key = f"idr0017-{plate}-converted/{plate}-{i:03d}-ch0.png"
            if reagent != "no cells":
                boxes[key] = np.array([[2, 102, 1, 101], [10, 110, 120, 220]])
        save_file(boxes, folder / plate / f"{plate}.safetensors")
    pd.DataFrame(rows).to_csv(folder / "idr0017_meta.csv", index=False)
    return folder


def idr0017_side(folder: Path) -> None:
    """The list of hits: four drugs on each line, and one without an image."""
    drugs = [f"drug{i:02d}" for i in range(60)] + ["unknown"]
    columns = {line: [i < 4 or i == 60 for i in range(61)] for line in CELL_LINES[:2]}
    frame = pd.DataFrame({"extracted_drug_name": drugs, "matched_drug_name": drugs, **columns})
    frame.to_csv(folder / "ground_truth.csv", index=False)


def cellphie(folder: Path) -> Path:
    """One pickle of neurons of 14 x 64 x 64 pixels with masks; outside of the masks lie the stripes of another gene."""
    rows = []
    genes = [CONTROL] * 26 + ["HTT"] * 22 + ["MSH3"] * 22 + ["DGKE"] * 4
    labels = {CONTROL: 0, "HTT": 1, "MSH3": 2, "DGKE": 3}
    mask = np.zeros((64, 64), np.uint8)
    mask[8:56, 8:56] = 1
    for i, gene in enumerate(genes):
        image = np.stack([stripes(labels[gene], 64, 64) for _ in range(14)])
        image[:, mask == 0] = stripes(i % 3 + 1, 64, 64)[mask == 0]
        time = "D21" if i % 13 == 12 else "D28"
        columns = {"train": int(i % 3 > 0), "Gene": gene, "Time": time, "Media": "m", "Sample": "s", "UMI": 3.0}
        rows.append({"image": image, "soma_mask": mask, **columns})
    pd.DataFrame(rows).to_pickle(folder / "CELLPHIE.pkl")
    return folder


def rbc_mc(folder: Path) -> Path:
    """A folder per laboratory, donor and shape with TIFFs of 48 x 48 pixels; the laboratories differ in brightness."""
    for site, offset in (("Swiss", 0), ("Canadian", 40)):
        for shape, name in enumerate((*CLASSES, "Undecidable")):
            for i in range(8):
                path = folder / site / "donor1" / name / f"cell{i}.ome.tif"
                path.parent.mkdir(parents=True, exist_ok=True)
                plane = (stripes(shape + 1, 48, 48) * 0.7).astype(np.uint8) + np.uint8(offset)
                tifffile.imwrite(path, plane, metadata={"axes": "YX"})
    return folder


WRITERS = {"chammi": chammi, "hpav23": hpav23, "idr0017": idr0017, "cellphie": cellphie, "rbc_mc": rbc_mc}
SIDES = {"hpav23": hpav23_side, "idr0017": idr0017_side}
