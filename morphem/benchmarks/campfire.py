"""Campfire's isolated shifts: probes of compounds on plates, and of channels, that training has or has not seen.

Source: Hurry et al. 2025 (Campfire), sections on out-of-distribution probes; GSK-AI/campfire at b034f8d.
Differs from it: probe B keeps plates together in every fold by rule, where the code's unshuffled folds do so by the
order of the file alone; the code stops on the fold that it then reports, which only the variant `published` does. The
authors' list of wells is not public; `python -m morphem.benchmarks.campfire_split wells.csv split.csv` draws one by the
published numbers, so that an encoder can be trained on wells of `train` alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem.benchmarks.base import (
    Benchmark,
    Column,
    FeatureRecipe,
    Inputs,
    Part,
    PublishedRow,
    make_table,
    take,
)
from morphem.benchmarks.campfire_channels import of_channels, panel_channels, panels_of
from morphem.benchmarks.campfire_probe import (
    COMPOUND,
    PLATE,
    WELL,
    Cells,
    parts_of_classes,
    train_layer,
)
from morphem.benchmarks.campfire_split import (
    CONTROL_COMPOUNDS,
    HELD_OUT_PLATES,
    SPLITS,
    SplitSettings,
    drawn,
    split_of_cells,
)
from morphem.benchmarks.metrics import balanced_accuracy, confusion
from morphem.benchmarks.mixing import content_order
from morphem.benchmarks.neighbours import Ints
from morphem.benchmarks.score import Score
from morphem.benchmarks.share_intervals import interval_of_share
from morphem.benchmarks.splits import group_folds
from morphem.benchmarks.tiny import planted
from morphem.errors import ConfigError, DataError
from morphem.features import FeatureTable


def _row(model: str, values: tuple[float, float, float, float], note: str = "") -> PublishedRow:
    names = ("controls_test", "controls_ood_plate", "compounds_test", "compounds_ood_plate")
    return PublishedRow(model, dict(zip(names, values, strict=True)), "Campfire, out-of-distribution probes", note)


class Campfire(Benchmark):
    """Campfire: what is lost when the plate is new, when the compound is new, and when both are?

    The table's split column is used where it has one, and checked; otherwise `build_split` makes it.

    Args:
        variant: See `variants`.
        seed: Of cells, subsets, folds, weights and intervals; the split has its own.
        held_out_plates: Plates that training never sees; the published five of JUMP-CP where not given.
        n_held_out_compounds: Compounds besides controls that no part of the split learns from; published: 60.
        n_train: Plates of every known compound to learn from; each compound draws its own; published: 14.
        n_val: Plates of every known compound to stop on; the rest is tested; published: 2.
        cells_per_group: Cells of one compound, plate and split for the controls; published: 100.
        cells_per_well: Cells of a well for the held-out compounds; published: 30.
        n_subsets: Equal parts of the training cells, one linear layer each; published: 10.
        n_folds: Of the probe of held-out compounds; published: 5.
        max_epochs: At least 1; published: 100.
        panel: Channels whose features are probed: a published panel (`nu`, `mito`, `agp`, `nu_agp`, `nu_mito`,
            `nu_agp_mito`, or the unseen `nu_er_rna`), or channel types joined by `+`; all of the table where not given.
            Features that mix channels cannot be cut; embed again with a query of channel planes.
        channel_study: Probe every published panel besides; the scores are in the details.

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
                Column(PLATE, "plate"),
                Column(WELL, "position on the plate"),
                Column(COMPOUND, "compound, by its JUMP identifier", ("Metadata_JCP2022", "Metadata_Reagent")),
                Column("Metadata_Plate_Type", "TARGET2 or COMPOUND", required=False),
                Column("Metadata_Split", "what a well is for; built where it is missing", required=False),
            ),
            recipe=FeatureRecipe(
                unit="cell",
                crop_size_px=112,
                differs=(
                    "cells are those of the shards, and wells are drawn by name; the authors' lists are not public",
                ),
            ),
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
    biology = COMPOUND
    control = (COMPOUND, (CONTROL_COMPOUNDS[0], "DMSO"))
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
        panel: str | None = None,
        channel_study: bool = False,
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
        if panel is not None:
            panel_channels(panel)
        self.panel = panel
        self.channel_study = channel_study

    def score(self, inputs: Inputs) -> Score:
        """Train and test both probes."""
        cells = take(inputs.table, content_order(inputs.table, (COMPOUND, PLATE, WELL)))  # whatever their order was
        split = split_of_cells(cells, self._split_settings())
        table = cells if self.panel is None else of_channels(cells, panel_channels(self.panel))
        found, missing = self._probes(table, split)
        values, details = found.values, dict(found.details)
        if self.channel_study:
            details["channel_study"] = self._study(cells, split)
        missing |= {
            name: "see Metadata_Split" for name in self.score_names if name not in values and name not in missing
        }
        return Score(
            values=values,
            details=details,
            intervals={
                name: interval_of_share(hits, plates, self.interval_unit, self.seed)
                for name, (hits, plates) in found.hits.items()
            },
            rules={
                "split": "wells by plate and compound, see build_split; no well, and of held-out plates no plate, is "
                "on both sides",
                "classifier": "one linear layer on features as they are, AdamW (1e-3, weight decay 1e-2), halved every "
                f"25 epochs, at most {self.max_epochs}, patience 25",
                "variant": self.variants[self.variant],
                "channels": "all of the table" if self.panel is None else ", ".join(panel_channels(self.panel)),
            },
            counts={f"cells_{name}": int((split == name).sum()) for name in SPLITS},
            missing=missing,
        )

    def _split_settings(self) -> SplitSettings:
        return SplitSettings(
            held_out_plates=HELD_OUT_PLATES if self.held_out_plates is None else tuple(self.held_out_plates),
            n_held_out_compounds=self.n_held_out_compounds,
            n_train=self.n_train,
            n_val=self.n_val,
        )

    def _probes(self, table: FeatureTable, split: NDArray[Any]) -> tuple["_Result", dict[str, str]]:
        """Train and test both probes on one table, and say which scores it does not allow."""
        cells = Cells(table, split, np.arange(len(table)))
        controls = self._controls(cells)
        compounds, missing = self._compounds(cells)
        found = _Result(
            {**controls.values, **compounds.values},
            {**controls.details, **compounds.details},
            {**controls.hits, **compounds.hits},
        )
        return found, missing

    def _study(self, table: FeatureTable, split: NDArray[Any]) -> dict[str, dict[str, float]]:
        """Return the scores of every published panel whose channels the table has, same cells and weights' seeds."""
        panels = panels_of(table)
        if not panels:
            raise DataError(
                "campfire: the channel study needs features of single channels (nucleus, mitochondria, ...); embed "
                "with combine=concat, or set channel_study to false."
            )
        return {name: self._probes(of_channels(table, channels), split)[0].values for name, channels in panels.items()}

    def _controls(self, cells: "Cells") -> "_Result":
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

    def _compounds(self, cells: "Cells") -> tuple["_Result", dict[str, str]]:
        """Probe B: compounds that the encoder has not seen, in folds over plates, and on new plates."""
        result = _Result({}, {}, {})
        names = ("compounds_test", "compounds_ood_plate")
        seen = cells.some("ood_compound", self.cells_per_well, self.seed, by=(PLATE, WELL))
        new = cells.some("ood_both", self.cells_per_well, self.seed, by=(PLATE, WELL))
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
                row = {PLATE: f"P{plate}", WELL: f"A{well + 1:02d}", COMPOUND: name, "Metadata_Split": split}
                rows += [row] * 6
        metadata = pd.DataFrame(rows)
        values = planted(
            list(metadata[COMPOUND]), seed=seed, effect=effect, batches=list(metadata[PLATE]), batch_effect=0.2
        )
        return Inputs({"table": make_table(10 * values, metadata)})  # so that the slow published layer learns soon


@dataclass(frozen=True)
class _Result:
    """Scores, what goes beside them, and hits with the plates they are on."""

    values: dict[str, float]
    details: dict[str, Any]
    hits: dict[str, tuple[NDArray[np.float64], NDArray[Any]]]
