import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from morphem.errors import DataError
from morphem.readers.files import open_files
from morphem.sources.safe_pickle import read_frame


class Command:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_table_of_arrays_texts_and_numbers_comes_back(tmp_path: Path, protocol: int) -> None:
    frame = pd.DataFrame(
        {
            "image": [np.arange(6, dtype=np.uint8).reshape(2, 3), np.ones((2, 3), np.uint16)],
            "Gene": ["HTT", None],
            "train": [1, 0],
            "UMI": [1.5, np.nan],
            "kind": pd.Categorical(["a", "b"]),
            "flag": [True, False],
        },
        index=["x", "y"],
    )
    with (tmp_path / "t.pkl").open("wb") as file:
        pickle.dump(frame, file, protocol=protocol)
    back = read_frame(open_files(str(tmp_path)), "t.pkl")
    assert np.array_equal(back["image"].iloc[0], frame["image"].iloc[0])
    pd.testing.assert_frame_equal(back.drop(columns="image"), frame.drop(columns="image"))


def test_a_pickle_that_brings_a_command_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "t.pkl").write_bytes(pickle.dumps(pd.DataFrame({"a": [Command(marker)]})))
    with pytest.raises(DataError, match=r"t\.pkl' cannot be read as a table: it asks for \w+\.mkdir"):
        read_frame(open_files(str(tmp_path)), "t.pkl")
    assert not marker.exists()
    pd.read_pickle(tmp_path / "t.pkl")  # the usual reader does run it
    assert marker.exists()


def test_a_pickle_of_something_else_and_a_damaged_one_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(DataError, match="holds a list where a table is needed"):
        read_frame(open_files(str(tmp_path)), "t.pkl")
    (tmp_path / "t.pkl").write_bytes(pickle.dumps(pd.DataFrame({"a": [1]}))[:-30])
    with pytest.raises(DataError, match=r"t\.pkl' cannot be read as a table"):
        read_frame(open_files(str(tmp_path)), "t.pkl")
