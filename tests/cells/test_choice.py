import pickle
from pathlib import Path

import numpy as np
import pytest

from morphem.cells import cells_from_option
from morphem.cells.cellpose import CellposeCells
from morphem.cells.choice import CellsPerStudy, NoCells
from morphem.cells.classical import ClassicalCells
from morphem.cells.tables import CellsFromLabelImages, CellsFromTable
from morphem.data.record import ImageRecord
from morphem.errors import ConfigError, MorphemError
from morphem.ingest.prepare import Preparation, prepare
from tests.cells.images import discs, record


def test_source_leaves_the_cells_of_the_source() -> None:
    assert cells_from_option("source") is None


def test_none_takes_no_cells() -> None:
    finder = cells_from_option("none")
    assert isinstance(finder, NoCells)
    assert finder.find(record([np.zeros((4, 4))], ["nucleus"])) is None


def test_a_detector_takes_settings_after_a_colon() -> None:
    finder = cells_from_option("adaptive:channel=DAPI,min_diameter_px=20,darker=true")
    assert isinstance(finder, ClassicalCells)
    assert (finder.channels, finder.threshold, finder.min_diameter_px, finder.darker) == (
        ("nucleus",),
        "adaptive",
        20,
        True,
    )
    assert isinstance(cells_from_option("cellpose", diameter_px=40), CellposeCells)


def test_paths_mean_tables_and_label_images(tmp_path: Path) -> None:
    (tmp_path / "Nuclei.csv").write_text("image,x,y\n")
    assert isinstance(cells_from_option(str(tmp_path / "Nuclei.csv")), CellsFromTable)
    assert isinstance(cells_from_option(str(tmp_path)), CellsFromLabelImages)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("otsuu", "did you mean 'otsu'"),
        ("otsu:chanel=nucleus", "did you mean 'channel'"),
        ("otsu:threshold=adaptive", "No setting of 'otsu' 'threshold'"),
        ("otsu:channel", "'channel' is no setting"),
        ("otsu:min_diameter_px=big", "wrong type"),
        ("none:channel=nucleus", "takes no setting"),
        ("missing/cells.csv", "There is no file or folder 'missing/cells.csv'"),
    ],
)
def test_words_that_mean_nothing_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cells_from_option(text)


def test_each_study_can_have_its_own_way(tmp_path: Path) -> None:
    path = tmp_path / "cells.yaml"
    path.write_text("a: {find: otsu, channel: actin}\nb: none\nc: source\ndefault: otsu\n")
    finder = cells_from_option(str(path))
    assert isinstance(finder, CellsPerStudy)
    plane = discs([(20, 20), (60, 30)], 9)

    def count(study: str, **changes: object) -> int | None:
        image = record([plane], ["actin"], experiment__study=study)
        cells = finder.find(type(image)(**{**vars(image), **changes}))
        return None if cells is None else len(cells.centres)

    assert count("a") == 2
    assert count("b", cells=np.array([[1, 1]])) is None
    assert count("c", cells=np.array([[1, 1]])) == 1
    assert count("d") is None  # has no nucleus


def test_a_wrong_file_of_ways_names_file_and_study(tmp_path: Path) -> None:
    path = tmp_path / "cells.yaml"
    path.write_text("a: {channel: actin}\n")
    with pytest.raises(ConfigError, match=r"cells\.yaml', 'a' must be words"):
        cells_from_option(str(path))
    path.write_text("a: otsus\n")
    with pytest.raises(ConfigError, match=r"cells\.yaml', 'a': No way to find cells 'otsus'"):
        cells_from_option(str(path))


@pytest.mark.parametrize("text", ["otsu", "cellpose", "none"])
def test_a_finder_can_be_sent_to_another_process(text: str) -> None:
    finder = cells_from_option(text)
    assert vars(pickle.loads(pickle.dumps(finder))) == vars(finder)


def test_an_unknown_channel_is_refused_before_any_image_is_read() -> None:
    with pytest.raises(MorphemError, match="No channel type 'nucleos'"):
        cells_from_option("otsu:channel=nucleos")


def test_an_image_without_the_channel_of_a_detector_says_so():
    image = ImageRecord("i", [np.zeros((8, 8), np.uint16)], [{"imaging.channel_type": "actin"}], ["phalloidin"])
    prepared = prepare(image, Preparation(), cells_from_option("otsu"))
    assert prepared.cells is None
    assert list(prepared.remarks) == ["no cells were looked for, because there is no channel nucleus"]


def test_no_cells_where_none_were_wanted_is_not_remarked():
    image = ImageRecord("i", [np.zeros((8, 8), np.uint16)], [{"imaging.channel_type": "actin"}], ["phalloidin"])
    assert not prepare(image, Preparation(), cells_from_option("none")).remarks
