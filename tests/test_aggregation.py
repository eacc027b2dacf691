from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from morphem import features
from morphem.aggregation import average, check_level
from morphem.errors import ConfigError, DataError
from morphem.features import FeatureTable
from tests.references import plain_average


def _tiles(n_rows: int = 12, seed: int = 0) -> FeatureTable:
    generator = np.random.default_rng(seed)
    columns, dictionary = features.feature_columns(["nucleus"], 3, "channel")
    image = generator.integers(0, 4, n_rows)
    metadata = pd.DataFrame(
        {
            "Metadata_Study": "s",
            "Metadata_Plate": [f"P{i // 2}" for i in image],
            "Metadata_Well": [f"A{i % 2}" for i in image],
            "Metadata_Key": [f"k{i}" for i in image],
            "Metadata_treatment": pd.Series([["dmso", None, "drug", "drug"][i] for i in image], dtype="str"),
            "Metadata_Unit": "tile",
            "Metadata_Tile_Y": np.arange(n_rows),
        }
    )
    return FeatureTable(generator.normal(size=(n_rows, 3)).astype(np.float32), metadata, columns, dictionary)


def test_rows_of_an_image_become_their_mean_in_order_of_first_appearance() -> None:
    table = _tiles()
    result = average([table], "image")
    expected = plain_average.averages(table.values, table.metadata["Metadata_Key"].tolist())
    np.testing.assert_allclose(result.values, expected, atol=1e-6)
    assert result.metadata["Metadata_Key"].tolist() == list(dict.fromkeys(table.metadata["Metadata_Key"]))
    assert result.metadata["Metadata_Object_Count"].sum() == len(table)
    assert set(result.metadata["Metadata_Unit"]) == {"image"}


def test_tables_one_after_another_give_what_one_table_gives() -> None:
    tables = [_tiles(seed=seed, n_rows=5 + seed) for seed in range(4)]
    whole, streamed = average([features.concat(tables)], "well"), average(iter(tables), "well")
    np.testing.assert_allclose(streamed.values, whole.values, atol=1e-6)
    pd.testing.assert_frame_equal(streamed.metadata, whole.metadata)


def test_a_column_that_varies_within_a_row_is_left_out_and_said() -> None:
    result = average([_tiles(n_rows=60)], "well")
    assert "Metadata_treatment" in result.metadata
    merged = replace(_tiles(n_rows=60), metadata=_tiles(n_rows=60).metadata.assign(Metadata_Well="A1"))
    result = average([merged], "well")
    assert "Metadata_treatment" not in result.metadata
    assert "Metadata_treatment" in result.provenance["columns_that_vary_within_a_row"]


def test_a_label_that_is_missing_throughout_a_group_stays_missing() -> None:
    result = average([_tiles(n_rows=60)], "image")
    missing = result.metadata["Metadata_treatment"].isna()
    assert result.metadata["Metadata_Key"][missing].tolist() == ["k1"]


def test_places_of_crops_are_left_out() -> None:
    assert "Metadata_Tile_Y" not in average([_tiles(n_rows=1)], "image").metadata


def test_planes_are_averaged_channel_by_channel() -> None:
    table = _tiles()
    channels = ["actin", "nucleus"] * 6
    result = average([replace(table, metadata=table.metadata.assign(Metadata_Channel=channels))], "image")
    names = list(zip(table.metadata["Metadata_Key"], channels, strict=True))
    np.testing.assert_allclose(result.values, plain_average.averages(table.values, names), atol=1e-6)


@pytest.mark.parametrize("well", ["unknown", None, ""])
def test_rows_without_a_well_are_not_thrown_together(well: str | None) -> None:
    table = _tiles()
    wells = table.metadata["Metadata_Well"].astype(object).copy()
    wells.iloc[:3] = well
    with pytest.raises(DataError, match="3 rows have no Metadata_Well"):
        average([replace(table, metadata=table.metadata.assign(Metadata_Well=wells))], "well")


def test_a_table_without_wells_is_refused() -> None:
    table = _tiles()
    with pytest.raises(DataError, match="needs Metadata_Well"):
        average([replace(table, metadata=table.metadata.drop(columns="Metadata_Well"))], "well")


def test_no_table_at_all_is_refused() -> None:
    with pytest.raises(DataError, match="no feature table"):
        average([], "image")


@pytest.mark.parametrize(("level", "unit"), [("plate", "tile"), ("cell", "tile"), ("cell", "image")])
def test_levels_that_do_not_exist_or_are_finer_than_the_rows_are_refused(level: str, unit: str) -> None:
    with pytest.raises(ConfigError, match=f"aggregate='{level}'"):
        check_level(level, unit)
