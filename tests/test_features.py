import errno
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from morphem import features
from morphem.errors import ChannelError, ConfigError, DataError
from morphem.features import FeatureTable


def _table(n_rows: int = 6, dim: int = 2, channels: tuple[str, ...] = ("actin", "nucleus")) -> FeatureTable:
    generator = np.random.default_rng(0)
    values = generator.normal(size=(n_rows, dim * len(channels))).astype(np.float32)
    columns, dictionary = features.feature_columns(channels, dim, "channel")
    metadata = pd.DataFrame(
        {
            "Metadata_Plate": ["P1"] * n_rows,
            "Metadata_Well": [f"A{1 + i // 2:02d}" for i in range(n_rows)],
            "Metadata_control_type": ["negcon" if i < 2 else "trt" for i in range(n_rows)],
            "Metadata_Cell": np.arange(n_rows),
            "Metadata_label": pd.Series([None, "x", *["y"] * (n_rows - 2)], dtype="str"),
        }
    )
    return FeatureTable(values, metadata, columns, dictionary, {"model": "m", "rows": n_rows})


@pytest.mark.parametrize(
    ("channel", "name"),
    [
        ("nucleus", "Nucleus"),
        ("endoplasmic reticulum", "EndoplasmicReticulum"),
        ("bright-field", "BrightField"),
        ("r", "R"),
        ("protein2", "Protein2"),
    ],
)
def test_channel_names_lose_spaces_and_hyphens_in_columns(channel: str, name: str) -> None:
    assert features.short_name(channel) == name


def test_repeated_channels_are_numbered_in_panel_order() -> None:
    assert features.channel_labels(["protein", "nucleus", "protein"]) == ["protein", "nucleus", "protein2"]


def test_columns_are_zero_padded_so_that_lexical_order_is_numeric() -> None:
    columns, _ = features.feature_columns(["nucleus"], 12000, "channel")
    assert list(columns) == sorted(columns)


def test_every_column_has_a_dictionary_entry() -> None:
    columns, dictionary = features.feature_columns(["bright-field", "nucleus"], 2, "channel")
    assert columns[2] == "Cells_Morphem_Nucleus_0000"
    assert dictionary[1] == {"column": columns[1], "channel": "bright-field", "index": 1, "kind": "channel"}


def test_channels_whose_column_names_would_meet_are_refused() -> None:
    with pytest.raises(ChannelError, match="would share column names"):
        features.feature_columns(["bright-field", "bright field"], 2, "channel")


def test_concat_puts_channels_in_alphabetical_order_whatever_the_panel() -> None:
    values = np.asarray([[1], [2], [20], [10]], np.float32)
    rows, columns, _ = features.combine_channels(values, [["nucleus", "actin"], ["actin", "nucleus"]], "concat")
    assert columns == ("Cells_Morphem_Actin_0000", "Cells_Morphem_Nucleus_0000")
    assert rows.tolist() == [[2, 1], [20, 10]]


def test_mean_averages_the_planes_of_each_image() -> None:
    values = np.asarray([[1], [3], [10]], np.float32)
    rows, columns, _ = features.combine_channels(values, [["nucleus", "actin"], ["actin"]], "mean")
    assert rows.tolist() == [[2], [10]]
    assert columns == ("Cells_Morphem_Mean_0000",)


def test_concat_over_different_panels_is_refused_with_the_panels_and_the_remedy() -> None:
    labels = [["nucleus"], ["nucleus"], ["actin", "nucleus"]]
    with pytest.raises(DataError, match=r"2 x \[nucleus\]; 1 x \[actin, nucleus\].*combine='mean'"):
        features.combine_channels(np.zeros((4, 1), np.float32), labels, "concat")


def test_parquet_gives_back_values_metadata_dictionary_and_provenance(tmp_path: Path) -> None:
    table = _table()
    table.write(tmp_path / "t.parquet")
    again = features.read(tmp_path / "t.parquet")
    np.testing.assert_array_equal(again.values, table.values)
    pd.testing.assert_frame_equal(again.metadata, table.metadata, check_dtype=False)
    assert again.metadata["Metadata_Cell"].dtype == np.int64
    assert again.columns == table.columns
    assert list(again.dictionary) == list(table.dictionary)
    assert again.provenance == table.provenance


def test_pandas_reads_the_file_as_it_is(tmp_path: Path) -> None:
    _table().write(tmp_path / "t.parquet")
    frame = pd.read_parquet(tmp_path / "t.parquet")
    assert list(frame.columns[:5]) == list(_table().metadata.columns)
    assert frame["Cells_Morphem_Actin_0000"].dtype == np.float32
    assert frame["Metadata_label"].isna().tolist() == [True, *[False] * 5]


def test_a_label_that_is_missing_everywhere_is_still_a_text_column(tmp_path: Path) -> None:
    table = _table()
    empty = replace(table, metadata=table.metadata.assign(Metadata_label=None))
    assert features.write(tmp_path / "t.parquet", [empty, table]) == 12
    assert str(pq.read_schema(tmp_path / "t.parquet").field("Metadata_label").type) == "string"


def test_tables_with_other_columns_are_not_written_into_one_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="differ in their columns"):
        features.write(tmp_path / "t.parquet", [_table(), _table(channels=("actin", "golgi"))])
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file_and_no_half_of_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.parquet"
    _table().write(path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(DataError, match=r"cannot write .*No space left on device.*free some space"):
        _table(4).write(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["t.parquet"]


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.parquet or \.h5ad"):
        _table().write(tmp_path / "t.csv")


def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match="was not written by morphem"):
        features.read(tmp_path / "t.parquet")


@pytest.mark.parametrize("content", [b"", b"no parquet at all"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"t\.parquet is no readable Parquet"):
        features.read(tmp_path / "t.parquet")


def test_a_table_whose_parts_do_not_fit_is_refused() -> None:
    table = _table()
    with pytest.raises(DataError, match="cannot have 5 rows"):
        replace(table, metadata=table.metadata.iloc[:5])


def test_metadata_without_its_prefix_is_refused() -> None:
    table = _table()
    with pytest.raises(DataError, match="do not: plate"):
        replace(table, metadata=table.metadata.rename(columns={"Metadata_Plate": "plate"}))


def test_tables_are_joined_row_after_row() -> None:
    joined = features.concat([_table(), _table(4)])
    assert len(joined) == 10
    assert joined.metadata.index.tolist() == list(range(10))


def test_pycytominer_takes_the_table_as_it_is() -> None:
    pycytominer = pytest.importorskip("pycytominer", reason="pycytominer is not installed")
    frame = _table(n_rows=12).to_frame()
    wells = pycytominer.aggregate(frame, strata=["Metadata_Plate", "Metadata_Well"], features="infer")
    assert wells.shape == (6, 2 + 4)
    normalized = pycytominer.normalize(frame, features="infer", samples="Metadata_control_type == 'negcon'")
    controls = normalized[normalized["Metadata_control_type"] == "negcon"].filter(like="Cells_")
    np.testing.assert_allclose(controls.mean(), 0, atol=1e-5)
    selected = pycytominer.feature_select(
        frame, features="infer", operation=["variance_threshold", "correlation_threshold"]
    )
    assert set(frame.filter(like="Metadata_").columns) <= set(selected.columns)


def test_copairs_takes_metadata_and_values_as_they_are() -> None:
    average_precision = pytest.importorskip("copairs.map", reason="copairs is not installed").average_precision
    table = _table(n_rows=12)
    result = average_precision(
        table.metadata[["Metadata_Plate", "Metadata_Well"]],
        table.values,
        ["Metadata_Well"],
        [],
        [],
        ["Metadata_Well"],
        progress_bar=False,
    )
    assert len(result) == 12
    assert result["average_precision"].between(0, 1).all()


def test_anndata_gets_values_observations_variables_and_provenance(tmp_path: Path) -> None:
    anndata = pytest.importorskip("anndata", reason="the extra morphem[anndata] is not installed")
    table = _table()
    table.write(tmp_path / "t.h5ad")
    data = anndata.read_h5ad(tmp_path / "t.h5ad")
    np.testing.assert_array_equal(data.X, table.values)
    assert data.var_names.tolist() == list(table.columns)
    assert data.var["channel"].tolist() == ["actin", "actin", "nucleus", "nucleus"]
    assert data.obs["Metadata_Well"].astype(str).tolist() == table.metadata["Metadata_Well"].tolist()
    assert data.obs["Metadata_label"].isna().tolist() == [True, *[False] * 5]
    assert '"model": "m"' in data.uns["morphem"]


def test_without_anndata_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "anndata", None)
    with pytest.raises(ConfigError, match=r"install 'morphem\[anndata\]'"):
        _table().write(tmp_path / "t.h5ad")
    assert not list(tmp_path.iterdir())
