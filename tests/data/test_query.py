import pyarrow as pa
import pytest

from morphem.data.query import columns_of, compile_query, explain_empty
from morphem.errors import ConfigError

TABLE = pa.table(
    {
        "experiment.study": ["a", "a", "b", "c"],
        "microscopy.type": ["fluorescence", "bright-field", "fluorescence", "fluorescence"],
        "geometry.channels": [1, 2, 3, 2],
        "dose": pa.array(["0", None, "10", None]),
    }
)


def rows(query: str) -> list[int]:
    table = TABLE.append_column("row", pa.array(range(4)))
    return table.filter(compile_query(query, TABLE.schema))["row"].to_pylist()


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("experiment.study == 'a'", [0, 1]),
        ("'a' == experiment.study", [0, 1]),
        ("microscopy.type != 'fluorescence'", [1]),
        ("geometry.channels > 1", [1, 2, 3]),
        ("1 < geometry.channels <= 2", [1, 3]),
        ("geometry.channels >= 2 and experiment.study != 'b'", [1, 3]),
        ("experiment.study == 'b' or geometry.channels == 1", [0, 2]),
        ("not (experiment.study == 'a' or experiment.study == 'b')", [3]),
        ("experiment.study in ['a', 'c']", [0, 1, 3]),
        ("experiment.study not in ('a',)", [2, 3]),
        ("geometry.channels in [3, 1]", [0, 2]),
        ("geometry.channels > -1", [0, 1, 2, 3]),
        ("dose == None", [1, 3]),
        ("dose is not None", [0, 2]),
        ("experiment.study in []", []),
    ],
)
def test_a_query_selects_the_rows_that_it_says(query: str, expected: list[int]) -> None:
    assert rows(query) == expected


@pytest.mark.parametrize(
    "query",
    ["dose == '0'", "not dose == '10'", "dose != '10'", "dose in ['0']", "not dose in ['10']", "dose not in ['10']"],
)
def test_a_missing_label_matches_no_comparison(query: str) -> None:
    assert rows(query) == [0]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("experiment.stdy == 'a'", r"no column 'experiment\.stdy'; nearest: experiment\.study"),
        ("experiment.study == a", r"no column 'a' \(a text needs quotes\)"),
        ("experiment.study = 'a'", "malformed at character"),
        ("experiment.study ==", "malformed at its end"),
        ("", "malformed"),
        ("geometry.channels", "compares nothing"),
        ("geometry.channels and dose == '1'", "'geometry.channels' is not a comparison"),
        ("geometry.channels == '2'", "is a number and ''2'' is a text"),
        ("experiment.study in ['a', 2]", "is a text and 2 is a number"),
        ("experiment.study in 'abc'", r"write COLUMN in \['a', 'b'\]"),
        ("geometry.channels < None", "write COLUMN == None"),
        ("1 == 1", "not allowed"),
        ("geometry.channels == True", "not allowed"),
        ("__import__('os').system('true') == 0", "not allowed"),
        ("[x for x in dose] == 'a'", "not allowed"),
        ("geometry.channels + 1 == 2", "not allowed"),
    ],
)
def test_a_malformed_query_is_refused_with_the_reason(query: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compile_query(query, TABLE.schema)


def test_the_columns_of_a_query_are_listed_once_in_order() -> None:
    assert columns_of("dose == '1' and experiment.study == 'a' or dose == '2'", TABLE.schema) == [
        "dose",
        "experiment.study",
    ]


def test_an_empty_result_is_explained_by_the_values_present() -> None:
    sentence = explain_empty("experiment.study == 'z' and geometry.channels > 5", TABLE, "root")
    assert "selects no channel plane of 'root'" in sentence
    assert "experiment.study has a, b, c; geometry.channels has 1, 2, 3" in sentence
