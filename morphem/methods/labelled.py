"""What methods that train on labels share: which column, its classes, and the label of every row.

The data module says which classes there are (`ShardData(labels=[...])`); nobody types their number. The checkpoint
keeps their names, so that a run goes on, and is scored, with the same numbers.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from morphem import rng
from morphem.data.views import MultiCrop
from morphem.encoder import Encoder
from morphem.errors import ConfigError, unknown_name
from morphem.methods.base import Method
from morphem.optimizers import AdamWRecipe
from morphem.types import ChannelBatch


class LabelledMethod(Method):
    """Base of methods that train on one column of labels.

    Where the channel strategy embeds each plane alone, every plane has the label of its image. Rows without a label are
    left out of the loss; `unlabelled` says how many a batch had.

    Args:
        encoder: What is trained.
        views: Makes the views of a batch.
        recipe: Optimizer and its schedules.
        label: The column of the data module's labels to train on; may be None where it has one.
        classes: Names of the classes; taken from the data module when training starts where None.
        seed: Seed of dropout, stochastic depth and of the weights that belong to classes.

    Raises:
        ConfigError: If there are fewer than two classes.
    """

    def __init__(
        self,
        encoder: Encoder,
        views: MultiCrop,
        recipe: AdamWRecipe,
        label: str | None,
        classes: Sequence[str] | None,
        seed: int = 0,
    ) -> None:
        super().__init__(encoder, views, recipe, seed=seed)
        self.label = label
        self.label_number = 0
        self.column = label
        self.classes: tuple[str, ...] = ()
        self._given = classes

    @abstractmethod
    def build_head(self, n_classes: int) -> None:
        """Make the weights that belong to classes; called once, as soon as it is known how many there are.

        Args:
            n_classes: K, at least 2.
        """

    def start_with_given_classes(self) -> None:
        """Build the head if the classes were given; to be called at the end of `__init__`."""
        if self._given is not None:
            self.take_classes(self._given)

    def take_classes(self, classes: Sequence[str]) -> None:
        """Fix the classes and build the head for them.

        Args:
            classes: Their names, in the order of their numbers.

        Raises:
            ConfigError: If there are fewer than two, or the method was built for others.
        """
        what = f"label '{self.column}'" if self.column else "the label"
        if self.classes:
            if self.classes != tuple(classes):
                raise ConfigError(
                    f"{self._name}: {what} has other classes ({_some(classes)}) than the method was built for "
                    f"({_some(self.classes)}); train on the same data, query and labels, or start anew."
                )
            return
        if len(classes) < 2:
            raise ConfigError(
                f"{self._name}: {what} has one class alone ({_some(classes)}), which leaves nothing to tell apart; "
                "choose another column, or widen data.query."
            )
        self.classes = tuple(classes)
        # A checkpoint alone rebuilds the method, so the classes join the arguments that it is built with
        self._init_args = {**self._init_args, "classes": list(classes)}
        with torch.random.fork_rng():
            torch.manual_seed(rng.mix(self.seed, "classes"))
            self.build_head(len(classes))

    @property
    def _name(self) -> str:
        return type(self).__name__.lower()

    def setup(self, stage: str) -> None:
        """Take the classes from the data module, before weights are loaded and spread over devices.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.

        Raises:
            ConfigError: If the data have no label column, the column is not among them, or it has one class.
        """
        if stage == "predict":
            return
        columns: Mapping[str, Sequence[str]] = getattr(self.trainer.datamodule, "classes", None) or {}  # type: ignore[attr-defined]
        if not columns:
            if stage == "fit":
                raise ConfigError(
                    f"{self._name} trains on labels, but the data bring none along; name a column of the metadata, "
                    "for example --data.labels '[experiment.reagent]'."
                )
            return  # a checkpoint may bring the classes
        self.label_number = self._number(columns)
        self.column = list(columns)[self.label_number]
        self.take_classes(list(columns.values())[self.label_number])

    def _number(self, columns: Mapping[str, Sequence[str]]) -> int:
        if self.label is None:
            if len(columns) > 1:
                raise ConfigError(
                    f"{self._name} trains on one label, but data.labels names {len(columns)} ({', '.join(columns)}); "
                    "choose one of them with model.label."
                )
            return 0
        if self.label not in columns:
            raise ConfigError(f"{self._name}: {unknown_name('label in data.labels', self.label, columns)}")
        return list(columns).index(self.label)

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Take the classes of the checkpoint, so that its head fits.

        Raises:
            ConfigError: If the data have other classes.
            WeightsError: If it is of another architecture.
        """
        about = checkpoint.get("morphem", {}).get("spec", {}).get("init_args", {})
        stored = about.get("classes") or ()
        if stored and self.classes and tuple(stored) != self.classes:
            raise ConfigError(
                f"the checkpoint was trained on other classes ({_some(stored)}) than the data have "
                f"({_some(self.classes)}); use the same data, query and labels, or start anew."
            )
        if stored:
            self.take_classes(stored)
        super().on_load_checkpoint(checkpoint)

    def row_labels(self, batch: ChannelBatch, number: int | None = None) -> Tensor:
        """Return the class of each row that the encoder gives for a batch, -1 where it is unknown, (M,), int64.

        Args:
            batch: Ragged or dense.
            number: Which label column; the method's own where not given.

        Raises:
            ConfigError: If the batch has no such label.
        """
        number = self.label_number if number is None else number
        if batch.labels.shape[1] <= number:
            raise ConfigError(
                f"{self._name} trains on labels, but the batch has {batch.labels.shape[1]} label columns; "
                "name one with data.labels."
            )
        labels = batch.labels[:, number]
        return labels[batch.image_of_plane()] if self.encoder.per_channel else labels

    def embed_labelled(self, views: list[ChannelBatch]) -> tuple[Tensor, Tensor, int]:
        """Embed views, all of one size in one pass.

        Args:
            views: Dense normalised batches.

        Returns:
            Embeddings of all rows of all views, (R, D); their classes, (R,); how many rows belong to the first view.
        """
        embeddings, labels = [], []
        for _, group in groupby(views, key=lambda view: view.planes.shape[1:]):
            joined = ChannelBatch.cat(list(group))
            embeddings.append(self.encoder(joined))
            labels.append(self.row_labels(joined))
        first = views[0].n_planes if self.encoder.per_channel else views[0].n_images
        return torch.cat(embeddings), torch.cat(labels), first

    def _log_loss(self, name: str, batch: ChannelBatch) -> None:
        """Log the mean over the labelled rows of all batches, and what else tells how well the labels are met."""
        output = self.step(self.make_views(batch))
        weight = int(output.logs["counted"])
        stage = name.partition("/")[0]
        values = {name: output.loss}
        if "accuracy" in output.logs:
            values[f"{stage}/accuracy"] = output.logs["accuracy"]
        self.log_dict(values, on_step=False, on_epoch=True, sync_dist=True, batch_size=weight)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:4])
    return shown + (f" and {len(names) - 4} more" if len(names) > 4 else "")
