"""Campfire: the split isolates each shift and leaks nothing, cells and layers are as published, channels can go."""

import numpy as np
import pandas as pd
import pytest

from morphem.benchmarks import campfire as module
from morphem.benchmarks.base import Inputs, make_table, take
from morphem.benchmarks.campfire import Campfire
from morphem.benchmarks.campfire_channels import PANELS, of_channels, panel_channels, panels_of
from morphem.benchmarks.campfire_probe import Cells, parts_of_classes, train_layer
from morphem.benchmarks.campfire_split import (
    CONTROL_COMPOUNDS,
    HELD_OUT_PLATES,
    SplitSettings,
    build_split,
    check_split,
    split_of_cells,
)
from morphem.benchmarks.campfire_split import main as write_split
from morphem.errors import ConfigError, DataError
from morphem.features import FeatureTable, feature_columns
from tests.references.linear_layer import adamw_layer

PLATES = (*HELD_OUT_PLATES, *(f"JCPQC{i:03d}" for i in range(1, 21)))


@pytest.fixture(scope="module")
def wells() -> pd.DataFrame:
    """25 TARGET2 plates of 40 compounds, two wells of each, and two COMPOUND plates."""
    names = [*CONTROL_COMPOUNDS, *(f"JCP2022_9{i:05d}" for i in range(31))]
    rows = [
        (plate, f"{chr(65 + i % 16)}{i // 16 + 1:02d}", names[i % 40], "TARGET2") for plate in PLATES for i in range(80)
    ]
    rows += [(f"C{p}", f"A{i:03d}", f"JCP2022_9{i:05d}", "COMPOUND") for p in range(2) for i in range(300)]
    columns = ["Metadata_Plate", "Metadata_Well", "Metadata_Compound", "Metadata_Plate_Type"]
    return pd.DataFrame(rows, columns=columns)


@pytest.fixture(scope="module")
def split(wells: pd.DataFrame) -> pd.Series:
    return build_split(wells, SplitSettings(n_held_out_compounds=8))


def test_published_numbers_are_the_defaults() -> None:
    settings = SplitSettings()
    assert settings.held_out_plates == ("JCPQC051", "JCPQC052", "JCPQC053", "JCPQC054", "JCPQC034")
    assert (settings.n_held_out_compounds, settings.n_train, settings.n_val, settings.seed) == (60, 14, 2, 10)
    assert settings.compound_share == 0.6
    assert len(set(settings.controls)) == 9
    assert settings.controls[0] == "JCP2022_033924"
    probe = Campfire()
    assert (probe.cells_per_group, probe.cells_per_well, probe.n_subsets, probe.n_folds) == (100, 30, 10, 5)


def test_every_known_compound_has_14_train_2_val_and_4_test_plates_of_one_well(wells, split) -> None:
    target = wells["Metadata_Plate_Type"] == "TARGET2"
    for name in CONTROL_COMPOUNDS:
        own = split[target & (wells["Metadata_Compound"] == name) & ~wells["Metadata_Plate"].isin(HELD_OUT_PLATES)]
        assert own.value_counts().to_dict() == {"train": 14, "val": 2, "test": 4, "unused": 20}
    assert (split[target & wells["Metadata_Plate"].isin(HELD_OUT_PLATES)].isin(["ood_plate", "ood_both"])).all()


def test_compounds_draw_their_plates_separately(wells, split) -> None:
    test_plates = {
        name: frozenset(wells["Metadata_Plate"][(wells["Metadata_Compound"] == name) & (split == "test")])
        for name in CONTROL_COMPOUNDS
    }
    assert len(set(test_plates.values())) > 5


def test_held_out_compounds_are_never_learnt_from_and_controls_never_held_out(wells, split) -> None:
    held_out = set(wells["Metadata_Compound"][split.isin(["ood_compound", "ood_both"])])
    assert len(held_out) == 8
    assert not held_out & set(CONTROL_COMPOUNDS)
    assert set(split[wells["Metadata_Compound"].isin(held_out)]) == {"ood_compound", "ood_both", "unused"}
    on_compound_plates = wells["Metadata_Compound"].isin(held_out) & (wells["Metadata_Plate_Type"] == "COMPOUND")
    assert set(split[on_compound_plates]) == {"unused"}
    check_split(wells, split.to_numpy())


def test_wells_of_compound_plates_join_with_the_published_share(wells, split) -> None:
    held_out = set(wells["Metadata_Compound"][split.isin(["ood_compound"])])
    rows = (wells["Metadata_Plate_Type"] == "COMPOUND") & ~wells["Metadata_Compound"].isin(held_out)
    assert (split[rows] == "train").mean() == pytest.approx(0.6, abs=0.06)
    none = build_split(wells, SplitSettings(n_held_out_compounds=8, compound_share=0.0))
    assert set(none[rows]) == {"unused"}


def test_the_split_depends_on_names_and_seed_alone(wells, split) -> None:
    np.random.seed(3)
    turned = wells.sample(frac=1.0, random_state=1)
    again = build_split(turned, SplitSettings(n_held_out_compounds=8))
    assert (again.loc[wells.index] == split).all()
    state = np.random.get_state()[1].copy()
    other = build_split(wells, SplitSettings(n_held_out_compounds=8, seed=11))
    assert (np.random.get_state()[1] == state).all()
    assert (other != split).any()


def test_wells_that_cannot_be_split_are_refused(wells) -> None:
    few = SplitSettings(n_held_out_compounds=8)
    with pytest.raises(DataError, match="31 compounds besides controls, but 60 are to be held out"):
        build_split(wells)
    with pytest.raises(DataError, match=r"held-out plate|did you mean"):
        build_split(wells[wells["Metadata_Plate"] != "JCPQC034"], few)
    with pytest.raises(DataError, match="16 plates remain, but 14 are drawn to learn from"):
        build_split(wells[~wells["Metadata_Plate"].isin(PLATES[-4:])], few)
    with pytest.raises(DataError, match="is there twice"):
        build_split(pd.concat([wells, wells.head(1)], ignore_index=True), few)
    with pytest.raises(DataError, match="it says TARGET2 or COMPOUND"):
        build_split(wells.assign(Metadata_Plate_Type="POSCON8"), few)
    with pytest.raises(ConfigError, match="compound_share=2 from 0 to 1"):
        SplitSettings(compound_share=2)


def test_the_split_is_written_for_those_who_train(wells, split, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    path, output = tmp_path / "wells.csv", tmp_path / "split.csv"
    wells.to_csv(path, index=False)
    write_split([str(path), str(output), "--n-held-out-compounds", "8"])
    assert (pd.read_csv(output)["Metadata_Split"].to_numpy() == split.to_numpy()).all()
    assert "train" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        write_split([str(path), str(output)])
    assert "31 compounds besides controls, but 60 are to be held out" in capsys.readouterr().err


LEAKS = {
    "plate": ("Metadata_Plate", "P0", "ood_plate", "plate P0 has both a seen and an unseen role"),
    "compound": ("Metadata_Compound", CONTROL_COMPOUNDS[1], "ood_compound", "both a seen and an unseen role"),
}


@pytest.mark.parametrize("what", LEAKS)
def test_a_given_split_that_leaks_is_refused(what: str) -> None:
    name, value, role, message = LEAKS[what]
    table = Campfire.tiny(0, 1.0).table
    rows = table.metadata[name].eq(value) & table.metadata["Metadata_Well"].eq("A02")
    split = table.metadata["Metadata_Split"].mask(rows, role)
    changed = make_table(table.values, table.metadata.assign(Metadata_Split=split))
    with pytest.raises(DataError, match=message):
        Campfire.tiny_instance().score(Inputs({"table": changed}))


def test_a_well_of_two_roles_and_unknown_roles_are_refused() -> None:
    table = Campfire.tiny(0, 1.0).table
    split = table.metadata["Metadata_Split"].to_numpy(object).copy()
    split[0] = "val"
    with pytest.raises(DataError, match="well P0 A01 has several roles"):
        split_of_cells(make_table(table.values, table.metadata.assign(Metadata_Split=split)), SplitSettings())
    split[0] = "training"
    with pytest.raises(DataError, match="holds 'training'; allowed: train, val"):
        split_of_cells(make_table(table.values, table.metadata.assign(Metadata_Split=split)), SplitSettings())


def test_cells_are_drawn_by_plate_for_controls_and_by_well_for_held_out_compounds() -> None:
    rows = [("P0", f"A{w}", "X", "ood_plate") for w in range(3) for _ in range(20)]
    metadata = pd.DataFrame(rows, columns=["Metadata_Plate", "Metadata_Well", "Metadata_Compound", "Metadata_Split"])
    table = make_table(np.arange(60.0)[:, None] * np.ones((1, 4)), metadata)
    cells = Cells(table, metadata["Metadata_Split"].to_numpy(object), np.arange(60))
    by_plate = cells.some("ood_plate", 10, 0)
    by_well = cells.some("ood_plate", 10, 0, by=("Metadata_Plate", "Metadata_Well"))
    assert len(by_plate.values) == 10
    assert pd.Series(by_well.well).value_counts().to_dict() == {"A0": 10, "A1": 10, "A2": 10}
    assert len(np.unique(by_well.values[:, 0])) == 30


def test_training_cells_are_dealt_into_equal_parts_of_every_class() -> None:
    labels = np.repeat(["a", "b", "c"], [140, 140, 97])
    parts = parts_of_classes(labels, 10, seed=0)
    for name, least, most in (("a", 14, 14), ("b", 14, 14), ("c", 9, 10)):
        counts = np.bincount(parts[labels == name], minlength=10)
        assert (counts.min(), counts.max()) == (least, most)


def test_the_layer_learns_stops_and_leaves_global_random_numbers_alone() -> None:
    import torch

    random = np.random.default_rng(0)
    labels = np.arange(300) % 3
    rows = (5 * np.eye(3)[labels] @ random.normal(size=(3, 8)) + random.normal(size=(300, 8))).astype(np.float32)
    before = torch.get_rng_state()
    settings = {"n_classes": 3, "max_epochs": 30, "keep_best": False}
    first, again = (train_layer(rows[:200], labels[:200], (rows[200:250], labels[200:250]), [rows[250:]], seed=1,
                                **settings)[0] for _ in range(2))  # fmt: skip
    assert torch.equal(torch.get_rng_state(), before)
    assert (first == again).all()
    assert (first == labels[250:]).mean() > 0.9


def test_the_layer_is_that_of_a_plain_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same first weights and batches through the formulas of AdamW, in float64, with the published schedule."""
    import torch

    random = np.random.default_rng(0)
    labels = np.arange(70) % 2
    rows = (labels[:, None] * 2.0 + random.normal(size=(70, 5))).astype(np.float32)
    orders: list[np.ndarray] = []
    shuffle = torch.randperm

    def watching(count: int) -> torch.Tensor:
        orders.append(shuffle(count).numpy())
        return torch.from_numpy(orders[-1])

    monkeypatch.setattr(torch, "randperm", watching)
    asked = random.normal(size=(400, 5)).astype(np.float32) + 1
    settings = {"n_classes": 2, "seed": 3, "max_epochs": 40, "keep_best": False, "patience": 99}
    found = train_layer(rows, labels, (rows, labels), [asked], **settings)[0]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first = torch.nn.Linear(5, 2)
    weight, bias = adamw_layer(rows, labels, orders, first.weight.detach().numpy(), first.bias.detach().numpy())
    assert (found == (asked @ weight.T + bias).argmax(1)).mean() > 0.99


def test_the_leak_free_probe_stops_on_plates_that_it_neither_learns_from_nor_reports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = Campfire.tiny(0, 1.0).table
    plate_of = {
        tuple(row): plate for row, plate in zip(table.values.tolist(), table.metadata["Metadata_Plate"], strict=True)
    }
    seen: list[tuple[bool, set[str], set[str], set[str]]] = []
    original = module.train_layer

    def watching(train, labels, validation, tests, **settings):  # type: ignore[no-untyped-def]
        sides = [{plate_of[tuple(row)] for row in side.tolist()} for side in (train, validation[0], tests[0])]
        seen.append((settings["n_classes"] == 4, *sides))
        return original(train, labels, validation, tests, **{**settings, "max_epochs": 1})

    monkeypatch.setattr(module, "train_layer", watching)
    settings = {"cells_per_group": 6, "cells_per_well": 6, "n_subsets": 2, "n_folds": 2, "max_epochs": 1}
    Campfire("leak_free", **settings).score(Inputs({"table": table}))
    probe_b = [sides for is_b, *sides in seen if is_b]
    assert len(probe_b) == 2
    for learn, stop, test in probe_b:
        assert not learn & stop
        assert not test & (learn | stop)
    seen.clear()
    Campfire("published", **settings).score(Inputs({"table": table}))
    assert all(stop == test and not learn & test for is_b, learn, stop, test in seen if is_b)


def _channelled(seed: int = 0) -> FeatureTable:
    """The tiny layout; compounds show in nucleus and ER, the other channels hold noise."""
    table = Campfire.tiny(seed, 1.0).table
    names = ("nucleus", "mitochondria", "actin", "endoplasmic reticulum", "rna")
    columns, dictionary = feature_columns(names, 16, "channel")
    random = np.random.default_rng(seed)
    told = ("nucleus", "endoplasmic reticulum")
    blocks = [table.values if name in told else 10 * random.normal(size=table.values.shape) for name in names]
    return FeatureTable(np.concatenate(blocks, axis=1).astype(np.float32), table.metadata, columns, dictionary)


def test_panels_are_cut_by_name_and_all_published_ones_are_there() -> None:
    table = _channelled()
    assert set(panels_of(table)) == set(PANELS)
    cut = of_channels(table, panel_channels("nu_er_rna"))
    assert {entry["channel"] for entry in cut.dictionary} == {"nucleus", "endoplasmic reticulum", "rna"}
    np.testing.assert_array_equal(cut.values[:, :16], table.values[:, :16])
    assert panel_channels("dapi+mito") == ("nucleus", "mitochondria")
    lost = of_channels(table, ("nucleus", "mitochondria"))
    assert set(panels_of(lost)) == {"nu", "mito", "nu_mito"}


@pytest.mark.slow
def test_the_channel_study_finds_the_channels_that_tell_compounds() -> None:
    inputs = Inputs({"table": _channelled()})
    settings = {"cells_per_group": 6, "cells_per_well": 6, "n_subsets": 2, "n_folds": 2, "max_epochs": 60}
    found = Campfire(channel_study=True, panel="nu", **settings).score(inputs)
    study = {name: scores["controls_ood_plate"] for name, scores in found.details["channel_study"].items()}
    assert set(study) == set(PANELS)
    assert study["nu"] == pytest.approx(found.values["controls_ood_plate"])
    assert min(study["nu"], study["nu_er_rna"]) > max(study["mito"], study["agp"]) + 0.15


def test_features_that_mix_channels_and_unknown_panels_are_refused() -> None:
    inputs = Campfire.tiny(0, 1.0)
    with pytest.raises(DataError, match="not of single channels, so no panel can be cut out"):
        Campfire(panel="nu").score(inputs)
    with pytest.raises(DataError, match="the channel study needs features of single channels"):
        Campfire.tiny_instance()._study(inputs.table, np.asarray([]))
    with pytest.raises(ConfigError, match="panel='nucleuss' is none of nu, mito"):
        Campfire(panel="nucleuss")
    with pytest.raises(DataError, match="channel of the features"):
        of_channels(of_channels(_channelled(), ("nucleus",)), ("rna",))


def test_tables_without_what_the_probes_need_say_so() -> None:
    table = Campfire.tiny(0, 1.0).table
    tiny = {"cells_per_group": 6, "cells_per_well": 6, "n_subsets": 2, "n_folds": 2, "max_epochs": 1}
    with pytest.raises(ConfigError, match="n_subsets has to be at least 1"):
        Campfire(n_subsets=0)
    foreign = table.metadata["Metadata_Compound"].map(lambda name: name.replace("JCP2022_0", "BRD_0"))
    with pytest.raises(DataError, match="0 of the nine control compounds are in the table"):
        Campfire(**tiny).score(
            Inputs({"table": make_table(table.values, table.metadata.assign(Metadata_Compound=foreign))})
        )
    seen = take(table, ~table.metadata["Metadata_Split"].isin(["val"]).to_numpy())
    with pytest.raises(DataError, match="no control cell is of split 'val'"):
        Campfire(**tiny).score(Inputs({"table": seen}))
    known = take(table, ~table.metadata["Metadata_Split"].isin(["ood_compound", "ood_both", "ood_plate"]).to_numpy())
    found = Campfire(**tiny).score(Inputs({"table": known}))
    assert "0 held-out compounds on 0 known plates" in found.missing["compounds_test"]
    assert "controls_ood_plate" in found.missing
