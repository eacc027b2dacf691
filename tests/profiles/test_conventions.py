import numpy as np
import pandas as pd
import pytest

from morphem.errors import ConfigError
from morphem.profiles import select_rows

METADATA = pd.DataFrame(
    {
        "Metadata_control_type": ["negcon", None, "poscon", np.nan],
        "Metadata_Dose": [1.0, np.nan, 3.0, 4.0],
        "Metadata_Mixed": ["a", 1, 2.5, None],
        "Metadata_Empty": [None] * 4,
    }
)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("all", [1, 1, 1, 1]),
        ("Metadata_control_type == 'negcon'", [1, 0, 0, 0]),
        ("Metadata_control_type != 'negcon'", [0, 0, 1, 0]),
        ("Metadata_control_type != 'negcon' or Metadata_control_type == None", [0, 1, 1, 1]),
        ("not (Metadata_control_type == 'negcon')", [0, 0, 1, 0]),
        ("Metadata_Dose >= 3 and Metadata_control_type == None", [0, 0, 0, 1]),
        ("Metadata_Mixed in ['1', 'a']", [1, 1, 0, 0]),
        ("Metadata_Empty == 'x'", [0, 0, 0, 0]),
        ("Metadata_Empty > 3 or Metadata_Dose == 1", [1, 0, 0, 0]),
    ],
)
def test_rows_are_chosen_by_a_query(query, expected):
    assert select_rows(METADATA, query, "test").astype(int).tolist() == expected


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("Metadata_control == 'x'", "test: query .*no column 'Metadata_control'.*nearest: Metadata_control_type"),
        ("Metadata_Dose == 'x'", "test: query .*is a number and"),
        ("Metadata_Dose ==", "test: query .*malformed"),
        ("Metadata_Dose", "compares nothing"),
    ],
)
def test_a_wrong_query_is_named(query, message):
    with pytest.raises(ConfigError, match=message):
        select_rows(METADATA, query, "test")
