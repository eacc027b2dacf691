from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from morphem.cellprofiler import CellProfilerTable, channel_of
from morphem.errors import ConfigError, DataError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    frame = pd.DataFrame(
        {
            "Metadata_Plate": ["P1", "P1", "P2"],
            "Metadata_Well": ["A01", "A02", "A01"],
            "Metadata_gene": ["x", "y", "z"],
            "Cells_AreaShape_Area": [1.0, 2.0, 3.0],
            "Nuclei_Intensity_MeanIntensity_DNA": [0.5, 0.25, 0.125],
        }
    )
    frame.to_csv(tmp_path / "profiles.csv.gz", index=False)
    return tmp_path / "profiles.csv.gz"


def test_rows_come_in_the_order_that_is_asked_for_with_their_metadata(file: Path) -> None:
    rows = pd.DataFrame({"Metadata_Well": ["A01", "A02"], "Metadata_Plate": ["P2", "P1"], "Metadata_Key": ["k", "l"]})
    table = CellProfilerTable(file).embed(rows)
    np.testing.assert_array_equal(table.values, np.array([[3, 0.125], [2, 0.25]], np.float32))
    assert table.metadata["Metadata_Key"].tolist() == ["k", "l"]
    assert table.metadata["Metadata_gene"].tolist() == ["z", "y"]


def test_the_table_says_what_each_feature_was_measured_in(file: Path) -> None:
    whole = CellProfilerTable(file)
    assert (len(whole), whole.embed_dim) == (3, 2)
    assert [entry["channel"] for entry in whole.table().dictionary] == ["", "nucleus"]
    assert whole.table().provenance["model"] == "CellProfiler"


def test_other_values_have_another_fingerprint(file: Path) -> None:
    first = CellProfilerTable(file).table().provenance["weights_fingerprint"]
    frame = pd.read_csv(file)
    frame.loc[0, "Cells_AreaShape_Area"] = 7.0
    frame.to_csv(file, index=False)
    assert CellProfilerTable(file).table().provenance["weights_fingerprint"] != first


@pytest.mark.parametrize(
    ("column", "channel"),
    [
        ("Cells_AreaShape_Zernike_3_1", ""),
        ("Cells_Intensity_MeanIntensity_Mito", "mitochondria"),
        ("Cytoplasm_Granularity_3_AGP", "actin golgi plasma membrane"),
        ("Nuclei_Texture_Contrast_RNA_10_03_256", "rna"),
        ("Cells_RadialDistribution_FracAtD_ER_1of4", "endoplasmic reticulum"),
        ("Nuclei_Correlation_Correlation_DNA_Brightfield", "nucleus and bright-field"),
        ("Cells_Texture_Entropy_HighZBF_5_00_256", "bright-field"),
    ],
)
def test_channels_are_read_off_the_names(column: str, channel: str) -> None:
    assert channel_of(column) == channel


def test_wells_without_a_row_are_named(file: Path) -> None:
    rows = pd.DataFrame({"Metadata_Plate": ["P1", "P9"], "Metadata_Well": ["A01", "H12"]})
    with pytest.raises(DataError, match=r"no row for 1 of 2 wells \(Metadata_Plate, Metadata_Well: P9, H12\)"):
        CellProfilerTable(file).embed(rows)


def test_rows_that_keys_do_not_tell_apart_are_refused(file: Path) -> None:
    with pytest.raises(DataError, match=r"two rows of one key \(Metadata_Well: A01\)"):
        CellProfilerTable(file, keys=["Metadata_Well"])
    with pytest.raises(ConfigError, match="'Metadata_Wel'"):
        CellProfilerTable(file, keys=["Metadata_Wel"])


def test_missing_values_are_refused(file: Path) -> None:
    frame = pd.read_csv(file)
    frame.loc[1, "Cells_AreaShape_Area"] = np.nan
    frame.to_csv(file, index=False)
    with pytest.raises(DataError, match="1 values of 1 of CellProfiler's features are missing or infinite"):
        CellProfilerTable(file)


def test_the_published_profiles_of_jump_read_as_an_encoders_table(real_data: Path) -> None:
    folder = real_data / "jumpcp1-profiles" / "BR00117010"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    whole = CellProfilerTable(folder)
    assert (len(whole), whole.embed_dim) == (384, 904)
    wells = whole.table().metadata[["Metadata_Plate", "Metadata_Well"]].iloc[::-1]
    np.testing.assert_array_equal(whole.embed(wells).values, whole.table().values[::-1])
