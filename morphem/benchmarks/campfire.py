"""Campfire's isolated shifts: probes of compounds on plates, and of channels, that training has or has not seen.

Source: Hurry et al. 2025 (Campfire), sections on out-of-distribution probes; GSK-AI/campfire at b034f8d.
Differs from it: probe B keeps plates together in every fold by rule, where the code's unshuffled folds do so by the
order of the file alone; the code stops on the fold that it then reports, which only the variant `published` does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem.benchmarks.base import Benchmark, Column, FeatureRecipe, Inputs, Part, PublishedRow, column, make_table
from morphem.benchmarks.bootstrap import interval
from morphem.benchmarks.campfire_split import (
    CONTROL_COMPOUNDS,
    HELD_OUT_PLATES,
    SPLITS,
    SplitSettings,
    build_split,
    drawn,
)
from morphem.benchmarks.metrics import balanced_accuracy, confusion
from morphem.benchmarks.neighbours import Ints
from morphem.benchmarks.score import Score
from morphem.benchmarks.splits import group_folds
from morphem.benchmarks.tiny import planted
from morphem.errors import ConfigError, DataError
from morphem.features import FeatureTable

_PLATE, _WELL, _COMPOUND = "Metadata_Plate", "Metadata_Well", "Metadata_Compound"
Floats = NDArray[np.float32]


def _row(model: str, values: tuple[float, float, float, float], note: str = "") -> PublishedRow:
    names = ("controls_test", "controls_ood_plate", "compounds_test", "compounds_ood_plate")
    return PublishedRow(model, dict(zip(names, values, strict=True)), "Campfire, out-of-distribution probes", note)


class Campfire(Benchmark):
    """Campfire: what is lost when the plate is new, when the compound is new, and when both are?

    The table's split column is used where it has one; otherwise `build_split` makes it.

    Args:
        variant: See `variants`.
        seed: Of cells, subsets, folds, weights and intervals; the split has its own.
        held_out_plates: Plates that training never sees; the published five of JUMP-CP where not given.
        n_held_out_compounds: See `SplitSettings`.
        n_train: See `SplitSettings`.
        n_val: See `SplitSettings`.
        cells_per_group: Cells of one compound, plate and split for the controls; published: 100.
        cells_per_well: Cells of a well for the held-out compounds; published: 30.
        n_subsets: Equal parts of the training cells, one linear layer each; published: 10.
        n_folds: Of the probe of held-out compounds; published: 5.
        max_epochs: At least 1; published: 100.

    Raises:
        ConfigError: If a number is out of range.
    """

    protocol_version = 1
    title = "Campfire: probes of single cells on unseen plates and of unseen compounds"
    measures = (
        "Crops of single cells of JUMP-CP have to be told apart by what the cells were treated with. Probe A names "
        "the eight positive controls and DMSO, on plates that both encoder and probe know and on plates that neither "
        "has seen. Probe B names sixty compounds that the encoder has never seen, on known plates and on new ones. So"
        " each shift shows alone."
    )
    reading = (
        "Accuracy on the nine controls: chance is 0.11, an ImageNet transformer reaches 0.42 on known and 0.32 on new"
        " plates, Campfire 0.46 and 0.38. On the sixty compounds chance is 0.017, and 0.23 is good."
    )
    source = "Hurry et al. 2025 (Campfire); GSK-AI/campfire at b034f8d"
    parts = (
        Part(
            "table",
            "one row per cell",
            (
                Column(_PLATE, "plate"),
                Column(_WELL, "position on the plate"),
                Column(_COMPOUND, "compound, by its JUMP identifier", ("Metadata_JCP2022", "Metadata_Reagent")),
                Column("Metadata_Plate_Type", "TARGET2 or COMPOUND", required=False),
                Column("Metadata_Split", "what a well is for; built where it is missing", required=False),
            ),
            recipe=FeatureRecipe(unit="cell", crop_size_px=112),
        ),
    )
    score_names: ClassVar[Mapping[str, str]] = {
        "controls_ood_plate": "accuracy on nine controls, plates that were never seen",
        "controls_test": "accuracy on nine controls, plates that were seen",
        "compounds_test": "accuracy on held-out compounds, plates that were seen",
        "compounds_ood_plate": "accuracy on held-out compounds, plates that were never seen",
        "controls_ood_plate_balanced": "balanced accuracy of the first",
        "controls_test_balanced": "balanced accuracy of the second",
    }
    variants: ClassVar[Mapping[str, str]] = {
        "published": "probe B stops on the fold that it reports and keeps its last weights; made the published numbers",
        "leak_free": "probe B stops on plates of its own and keeps the weights that validated best",
    }
    published = (
        _row("Campfire ViT-L/14", (0.460, 0.375, 0.229, 0.220)),
        _row("ViT-S/8, ImageNet", (0.418, 0.322, 0.195, 0.187)),
        _row("ViT-L/14", (0.356, 0.281, 0.158, 0.152), "a DINOv2 network, trained on far more than ImageNet"),
        _row("Campfire ViT-L/14, unseen channels", (0.44, 0.353, 0.206, 0.199)),
        _row("ViT-S/8, ImageNet, unseen channels", (0.457, 0.356, 0.204, 0.191)),
    )
    interval_unit = "plate"
    biology = _COMPOUND
    control = (_COMPOUND, (CONTROL_COMPOUNDS[0], "DMSO"))
    tiny_finds = 0.4  # nine classes of 24 cells each to learn from, with noise as large as the effect
    tiny_null = 0.25

    def __init__(
        self,
        variant: str | None = None,
        seed: int = 0,
        held_out_plates: tuple[str, ...] | None = None,
        n_held_out_compounds: int = 60,
        n_train: int = 14,
        n_val: int = 2,
        cells_per_group: int = 100,
        cells_per_well: int = 30,
        n_subsets: int = 10,
        n_folds: int = 5,
        max_epochs: int = 100,
    ) -> None:
        super().__init__(variant, seed)
        counts = {
            "cells_per_group": cells_per_group,
            "cells_per_well": cells_per_well,
            "n_subsets": n_subsets,
            "max_epochs": max_epochs,
            "n_folds": n_folds - 1,
        }
        low = [name for name, count in counts.items() if count < 1]
        if low:
            raise ConfigError(f"campfire: {low[0]} has to be at least {2 if low[0] == 'n_folds' else 1}.")
        self.held_out_plates = held_out_plates
        self.n_held_out_compounds = n_held_out_compounds
        self.n_train = n_train
        self.n_val = n_val
        self.cells_per_group = cells_per_group
        self.cells_per_well = cells_per_well
        self.n_subsets = n_subsets
        self.n_folds = n_folds
        self.max_epochs = max_epochs

    def score(self, inputs: Inputs) -> Score:
        """Train and test both probes."""
        table = inputs.table
        split = self._split(table)
        order = np.lexsort(
            (*table.values[:, :3].T, *(column(table, n).astype(str) for n in (_WELL, _PLATE, _COMPOUND)))
        )
        cells = _Cells(table, split, order)
        controls = self._controls(cells)
        compounds, missing = self._compounds(cells)
        values = {**controls.values, **compounds.values}
        missing |= {
            name: "see Metadata_Split" for name in self.score_names if name not in values and name not in missing
        }
        return Score(
            values=values,
            details={**controls.details, **compounds.details},
            intervals={
                name: _plate_interval(hits, plates, self.interval_unit, self.seed)
                for name, (hits, plates) in {**controls.hits, **compounds.hits}.items()
            },
            rules={
                "split": "wells by plate and compound, see build_split; no well, and of held-out plates no plate, is "
                "on both sides",
                "classifier": "one linear layer on features as they are, AdamW (1e-3, weight decay 1e-2), halved every "
                f"25 epochs, at most {self.max_epochs}, patience 25",
                "variant": self.variants[self.variant],
            },
            counts={f"cells_{name}": int((split == name).sum()) for name in SPLITS},
            missing=missing,
        )

    def _split(self, table: FeatureTable) -> NDArray[Any]:
        """Return what each cell is for."""
        if "Metadata_Split" in table.metadata:
            split = column(table, "Metadata_Split").astype(str)
            wrong = sorted(set(split) - set(SPLITS))
            if wrong:
                raise DataError(f"campfire: Metadata_Split holds '{wrong[0]}'; allowed: {', '.join(SPLITS)}.")
            return split
        names = [name for name in (_PLATE, _WELL, _COMPOUND, "Metadata_Plate_Type") if name in table.metadata]
        wells = table.metadata[names].astype(str).drop_duplicates().reset_index(drop=True)
        settings = SplitSettings(
            held_out_plates=HELD_OUT_PLATES if self.held_out_plates is None else tuple(self.held_out_plates),
            n_held_out_compounds=self.n_held_out_compounds,
            n_train=self.n_train,
            n_val=self.n_val,
        )
        wells["split"] = build_split(wells, settings).to_numpy()
        place = {(p, w): s for p, w, s in zip(wells[_PLATE], wells[_WELL], wells["split"], strict=True)}
        keys = zip(column(table, _PLATE).astype(str), column(table, _WELL).astype(str), strict=True)
        return np.asarray([place[key] for key in keys], dtype=object)

    def _controls(self, cells: "_Cells") -> "_Result":
        """Probe A: nine controls, one layer for each part of the training cells."""
        known = cells.take(np.isin(cells.compound, (*CONTROL_COMPOUNDS, "DMSO")))
        classes = sorted(set(known.compound))
        if len(classes) < 2:
            raise DataError(
                f"campfire: {len(classes)} of the nine control compounds are in the table; name compounds by their "
                "JUMP identifiers (JCP2022_...)."
            )
        sides = {
            name: known.some(name, self.cells_per_group, self.seed) for name in ("train", "val", "test", "ood_plate")
        }
        for name in ("train", "val", "test"):
            if not len(sides[name].values):
                raise DataError(
                    f"campfire: no control cell is of split '{name}'; all of train, val and test are needed."
                )
        result = _Result({}, {}, {})
        parts = parts_of_classes(sides["train"].compound, self.n_subsets, self.seed)
        numbers = {name: side.numbers(classes) for name, side in sides.items()}
        runs: dict[str, list[Ints]] = {"test": [], "ood_plate": []}
        for i in range(self.n_subsets):
            part = parts == i
            if len(set(numbers["train"][part])) < 2:
                raise DataError(
                    f"campfire: a part of the training cells has one class; lower n_subsets={self.n_subsets}."
                )
            told = train_layer(
                sides["train"].values[part],
                numbers["train"][part],
                (sides["val"].values, numbers["val"]),
                [sides[name].values for name in runs],
                n_classes=len(classes),
                seed=self.seed + i,
                max_epochs=self.max_epochs,
                keep_best=False,
            )
            for name, predicted in zip(runs, told, strict=True):
                runs[name].append(predicted)
        for name, predictions in runs.items():
            truth = numbers[name]
            if len(truth):
                hits = np.mean([predicted == truth for predicted in predictions], axis=0)
                each = [float((predicted == truth).mean()) for predicted in predictions]
                score = f"controls_{name}"
                result.values[score] = float(np.mean(each))
                result.values[f"{score}_balanced"] = float(np.mean([balanced_accuracy(truth, p) for p in predictions]))
                result.hits[score] = (hits, sides[name].plate)
                result.details[score] = {
                    "deviation_over_subsets": float(np.std(each)),
                    "classes": classes,
                    "confusion": sum(confusion(truth, p, len(classes)) for p in predictions),
                }
        return result

    def _compounds(self, cells: "_Cells") -> tuple["_Result", dict[str, str]]:
        """Probe B: compounds that the encoder has not seen, in folds over plates, and on new plates."""
        result = _Result({}, {}, {})
        names = ("compounds_test", "compounds_ood_plate")
        seen = cells.some("ood_compound", self.cells_per_well, self.seed, by=(_PLATE, _WELL))
        new = cells.some("ood_both", self.cells_per_well, self.seed, by=(_PLATE, _WELL))
        classes = sorted(set(seen.compound))
        plates = sorted(set(seen.plate))
        if len(classes) < 2 or len(plates) < self.n_folds + (self.variant == "leak_free"):
            reason = f"there are {len(classes)} held-out compounds on {len(plates)} known plates"
            return result, dict.fromkeys(names, reason)
        truth = seen.numbers(classes)
        foreign = np.isin(new.compound, classes)
        new = new.take(foreign)
        predicted = np.full(len(truth), -1, np.int64)
        on_new: list[Ints] = []
        for i, (learn, test) in enumerate(group_folds(truth, seen.plate, self.n_folds, seed=self.seed)):
            judge = test
            if self.variant == "leak_free":
                aside = drawn(sorted(set(seen.plate[learn])), 1, self.seed, "validation", str(i))[0]
                judge, learn = learn[seen.plate[learn] == aside], learn[seen.plate[learn] != aside]
            told = train_layer(
                seen.values[learn],
                truth[learn],
                (seen.values[judge], truth[judge]),
                [seen.values[test], new.values],
                n_classes=len(classes),
                seed=self.seed + i,
                max_epochs=self.max_epochs,
                keep_best=self.variant == "leak_free",
            )
            predicted[test] = told[0]
            on_new.append(told[1])
        result.values["compounds_test"] = float((predicted == truth).mean())
        result.hits["compounds_test"] = ((predicted == truth).astype(float), seen.plate)
        missing: dict[str, str] = {}
        if len(new.values):
            wanted = new.numbers(classes)
            hits = np.mean([found == wanted for found in on_new], axis=0)
            result.values["compounds_ood_plate"] = float(hits.mean())
            result.hits["compounds_ood_plate"] = (hits, new.plate)
        else:
            missing["compounds_ood_plate"] = "no held-out compound is on a held-out plate"
        return result, missing

    @classmethod
    def tiny_instance(cls) -> "Campfire":
        """Return the protocol with few cells, subsets and epochs."""
        return cls(cells_per_group=6, cells_per_well=6, n_subsets=2, n_folds=2, max_epochs=60)

    @classmethod
    def tiny(cls, seed: int, effect: float) -> Inputs:
        """Nine plates, two of them held out; nine controls and four held-out compounds on each, six cells a well."""
        roles = ("train",) * 4 + ("val", "test", "test") + ("ood_plate",) * 2
        rows = []
        for plate, role in enumerate(roles):
            compounds = [(name, role) for name in CONTROL_COMPOUNDS]
            compounds += [(f"JCP2022_9{i}", "ood_both" if role == "ood_plate" else "ood_compound") for i in range(4)]
            for well, (name, split) in enumerate(compounds):
                row = {_PLATE: f"P{plate}", _WELL: f"A{well + 1:02d}", _COMPOUND: name, "Metadata_Split": split}
                rows += [row] * 6
        metadata = pd.DataFrame(rows)
        values = planted(
            list(metadata[_COMPOUND]), seed=seed, effect=effect, batches=list(metadata[_PLATE]), batch_effect=0.2
        )
        return Inputs({"table": make_table(10 * values, metadata)})  # so that the slow published layer learns soon


@dataclass(frozen=True)
class _Result:
    """Scores, what goes beside them, and hits with the plates they are on."""

    values: dict[str, float]
    details: dict[str, Any]
    hits: dict[str, tuple[NDArray[np.float64], NDArray[Any]]]


class _Cells:
    """Cells in an order that does not depend on that of the table.

    Args:
        table: One row per cell.
        split: What each is for.
        rows: Which, and in which order.
    """

    def __init__(self, table: FeatureTable, split: NDArray[Any], rows: Ints) -> None:
        self._source = (table, split)
        self._rows = np.asarray(rows, np.int64)
        self.values: Floats = table.values[self._rows]
        self.compound, self.plate, self.well = (
            column(table, name).astype(str)[self._rows] for name in (_COMPOUND, _PLATE, _WELL)
        )
        self.split = split[self._rows]

    def take(self, chosen: NDArray[np.bool_] | Ints) -> "_Cells":
        return _Cells(*self._source, self._rows[chosen])

    def numbers(self, classes: list[str]) -> Ints:
        """Return the class of every cell, (R,)."""
        return np.searchsorted(np.asarray(classes), self.compound).astype(np.int64)

    def some(self, split: str, count: int, seed: int, by: tuple[str, ...] = (_PLATE,)) -> "_Cells":
        """Return at most `count` cells of every compound and plate (and well) of a split, drawn without replacement."""
        rows = np.flatnonzero(self.split == split)
        parts = [self.compound, self.plate] + ([self.well] if _WELL in by else [])
        groups: dict[tuple[str, ...], list[int]] = {}
        for row in rows:
            groups.setdefault(tuple(str(part[row]) for part in parts), []).append(int(row))
        from morphem.benchmarks.bootstrap import generator

        chosen: list[int] = []
        for name in sorted(groups):
            members = groups[name]
            random = generator(seed, "cells", split, *name)
            chosen += sorted(random.choice(members, min(count, len(members)), replace=False).tolist())
        return self.take(np.asarray(chosen, np.int64))


def parts_of_classes(labels: NDArray[Any], n_parts: int, seed: int) -> Ints:
    """Deal the rows of every class into equal parts at random, (R,).

    Args:
        labels: (R,).
        n_parts: How many.
        seed: Of the draw.
    """
    from morphem.benchmarks.bootstrap import generator

    result = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        result[generator(seed, "parts", str(label)).permutation(own)] = np.arange(len(own)) % n_parts
    return result


def train_layer(
    train: Floats,
    labels: Ints,
    validation: tuple[Floats, Ints],
    tests: list[Floats],
    *,
    n_classes: int,
    seed: int,
    max_epochs: int,
    keep_best: bool,
    patience: int = 25,
) -> list[Ints]:
    """Train the published linear layer and return the classes that it gives to the rows of every test.

    Global random numbers are neither used nor changed.

    Args:
        train: (M, F).
        labels: (M,), 0 to K - 1.
        validation: Rows and labels on whose accuracy training stops.
        tests: Each (T, F); may be empty.
        n_classes: K.
        seed: Of the weights and the batches.
        max_epochs: At least 1.
        keep_best: Test the weights that validated best; otherwise the last ones, as published.
        patience: Epochs without gain after which training stops.
    """
    import torch
    from torch import nn

    rows, wanted = torch.from_numpy(np.ascontiguousarray(train)), torch.from_numpy(labels)
    judged, truth = torch.from_numpy(np.ascontiguousarray(validation[0])), torch.from_numpy(validation[1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = nn.Linear(train.shape[1], n_classes)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3, weight_decay=1e-2)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 25, 0.5)
        best, best_epoch = -1.0, 0
        best_weights = {name: value.clone() for name, value in layer.state_dict().items()}
        for epoch in range(max_epochs):
            for batch in torch.split(torch.randperm(len(rows)), 32):
                loss: torch.Tensor = nn.functional.cross_entropy(layer(rows[batch]), wanted[batch])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            scheduler.step()
            with torch.no_grad():
                score = float((layer(judged).argmax(1) == truth).float().mean())
            if score > best:
                best, best_epoch = score, epoch
                best_weights = {name: value.clone() for name, value in layer.state_dict().items()}
            elif epoch - best_epoch >= patience:
                break
        if keep_best:
            layer.load_state_dict(best_weights)
        with torch.no_grad():
            return [
                layer(torch.from_numpy(np.ascontiguousarray(test))).argmax(1).numpy().astype(np.int64) for test in tests
            ]


def _plate_interval(hits: NDArray[np.float64], plates: NDArray[Any], unit: str, seed: int) -> Any:
    names, number = np.unique(plates.astype(str), return_inverse=True)
    sums, counts = np.bincount(number.reshape(-1), weights=hits), np.bincount(number.reshape(-1))
    return interval(lambda chosen: float(sums[chosen].sum() / counts[chosen].sum()), len(names), unit, seed=seed)
