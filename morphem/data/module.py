"""Shards for a Lightning trainer: a training stream, and a validation set that is read in full and in order.

The number of this process and of all processes come from the trainer, so that every launcher splits the data in the
same way.
"""

from collections.abc import Sequence
from typing import Any, Literal

import lightning.pytorch as L

from morphem.data.index import Index, Unit, open_index
from morphem.data.labels import describe_difference
from morphem.data.loader import StartMethod, StreamLoader
from morphem.data.order import StudyBalance, study_quotas
from morphem.data.sampling import Scale, Scales
from morphem.data.shards import ShardSet, resolve_root
from morphem.data.stream import CropStream, check_sizes
from morphem.errors import ConfigError, DataError


class ShardData(L.LightningDataModule):
    """Crops from a folder of shards.

    Args:
        root: Shards to train on or to predict: a folder, an address of an object store (s3://, gs://, https://), or
            `sample://train` for the sample that is generated on first use.
        batch_size: Crops per device and step.
        unit: `plane`: each channel plane is a sample of its own, as in the published bag-of-channels training.
            `image`: the planes of an image stay together and share a crop.
        query: Selects channel planes by their metadata, for example `microscopy.type != 'fluorescence'`; an image keeps
            the planes that match. All of them where not given.
        balance: `none`: every sample once per pass. `cycle`: every study is repeated to the size of the largest.
        weights: Share of the stream by study, instead of `balance`; every study is named, 0 leaves one out.
        scales: Crop sizes in pixels (or `full`) by study, before the published ones.
        default_scale: Crop size in pixels (or `full`) of studies without a published one.
        crops_per_image: Crops cut from one decoded sample; must divide `batch_size`. More than one trains faster where
            decoding is the bottleneck, with batches that are less mixed.
        samples_per_epoch: Samples in an epoch, over all devices; one pass over the data where not given.
        num_workers: Reading processes per device.
        prefetch: Batches that each worker makes ahead.
        pin_memory: Use page-locked memory where training runs on a GPU.
        val_root: Shards to compute the validation loss on; none where not given.
        max_damaged: How many samples may be damaged before the run stops; more than 1 % stop it too.
        seed: Seed of the order and of all crops; 0 where not given.
        start_method: How workers are started; the platform's own way where not given. Object stores need `spawn`.
        labels: Columns of the metadata that batches bring along as numbers of classes, for methods that train on
            labels: a column of the schema such as `experiment.reagent`, or a label ingested with the images.

    Attributes:
        classes: For each label column its classes, in the order that numbers them: by name, those of `root` alone. They
            are known after `setup`, or from a checkpoint, which keeps them.

    Raises:
        ConfigError: If settings do not fit together.
    """

    def __init__(
        self,
        root: str | None = None,
        batch_size: int = 64,
        unit: Unit = "plane",
        query: str | None = None,
        balance: Literal["none", "cycle"] = "none",
        weights: dict[str, float] | None = None,
        scales: dict[str, Scale | list[Scale]] | None = None,
        default_scale: Scale = "full",
        crops_per_image: int = 1,
        samples_per_epoch: int | None = None,
        num_workers: int = 2,
        prefetch: int = 2,
        pin_memory: bool = True,
        val_root: str | None = None,
        max_damaged: int = 100,
        seed: int | None = None,
        start_method: StartMethod | None = None,
        labels: list[str] | None = None,
    ) -> None:
        super().__init__()
        check_sizes(batch_size, crops_per_image, samples_per_epoch)
        check_labels(labels or [])
        self.root = root
        self.batch_size = batch_size
        self.unit = unit
        self.query = query
        self.balance = balance
        self.weights = weights
        self.scales = Scales(scales, default_scale)
        self.crops_per_image = crops_per_image
        self.samples_per_epoch = samples_per_epoch
        self.num_workers = num_workers
        self.prefetch = prefetch
        self.pin_memory = pin_memory
        self.val_root = val_root
        self.max_damaged = max_damaged
        self.seed = seed or 0
        self.start_method = start_method
        self.labels = tuple(labels or ())
        self.classes: dict[str, list[str]] = {}
        self._opened: dict[str, tuple[ShardSet, Index]] = {}
        self._loaders: list[StreamLoader] = []

    def prepare_data(self) -> None:
        """Build the indexes once per machine; the other processes find them in the cache."""
        for root in filter(None, (self.root, self.val_root)):
            self._open(root)

    def setup(self, stage: str | None = None) -> None:
        """Open what a stage reads, so that a missing folder or an empty query stops the run before it starts.

        Args:
            stage: `fit`, `validate`, `test`, `predict`, or None for all.

        Raises:
            DataError: If shards are missing or damaged, nothing matches the query, or a label is missing everywhere.
            ConfigError: If the root of the stage is not set, or weights or scales name studies that do not exist.
        """
        if stage in ("validate", "test") and self.val_root is None:
            raise ConfigError(
                "data.val_root is not set; give the shards to score, for example --data.val_root shards/."
            )
        if stage in ("fit", "predict", None):
            _, index = self._open(self._train_root())
            self.scales.check_studies(index.studies)
            study_quotas(index.sizes(self.unit), self.balance, self.weights)
        if self.val_root is not None:
            self._open(self.val_root)
        if self.root is not None and not self.classes:
            self.classes = self._find_classes(self.root)

    def _find_classes(self, root: str) -> dict[str, list[str]]:
        _, index = self._open(root)
        for label, classes in index.classes.items():
            if not classes:
                raise DataError(
                    f"no channel plane of '{root}' (as selected by data.query) has a label '{label}': all "
                    f"{index.n_planes:,} are empty or unknown; name another column in data.labels, or ingest it."
                )
        return {label: list(classes) for label, classes in index.classes.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the classes, so that a resumed run and a validation number them in the same way."""
        return {"classes": self.classes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the classes of a checkpoint where this run does not train, and compare them where it does.

        Raises:
            ConfigError: If the data have other classes than the checkpoint, whose numbers would then mean others.
        """
        stored: dict[str, list[str]] = state_dict["classes"]
        known = {column: stored.get(column) for column in self.labels}
        if self.classes and self.classes != known:
            raise ConfigError(
                "the data have other classes than the checkpoint was trained with "
                f"({describe_difference(self.classes, stored)}); use the same data, query and labels, or start anew."
            )
        unknown = [column for column in self.labels if column not in stored]
        if unknown:
            raise ConfigError(
                f"the checkpoint was trained without the label '{unknown[0]}' (it has: {', '.join(stored) or 'none'}); "
                "correct data.labels."
            )
        self.classes = {column: stored[column] for column in self.labels}

    def _train_root(self) -> str:
        if self.root is None:
            raise ConfigError(
                "data.root is not set; give a folder of shards with --data.root shards/ (morphem ingest makes one), "
                "or add --config sample.yaml to train on the built-in sample."
            )
        return self.root

    def teardown(self, stage: str | None = None) -> None:
        """Stop the workers of all loaders.

        Args:
            stage: What ended; all stages share their workers.
        """
        while self._loaders:
            self._loaders.pop().close()

    def describe(self) -> str:
        """Return one line about the training data: samples, images, studies, and how they are drawn."""
        _, index = self._open(self._train_root())
        sizes = index.sizes(self.unit)
        drawn = "by weight" if self.weights else {"none": "each once", "cycle": "balanced over studies"}[self.balance]
        epoch = self.samples_per_epoch or sum(study_quotas(sizes, self.balance, self.weights))
        return (
            f"{index.n_planes:,} planes of {index.n_images:,} images in {len(sizes)} studies ({self.root}), {drawn}; "
            f"{epoch:,} {self.unit}s an epoch"
        )

    def train_dataloader(self, num_workers: int | None = None) -> StreamLoader:
        """Return the training stream of this process.

        Args:
            num_workers: Reading processes, instead of the setting.
        """
        shards, index = self._open(self._train_root())
        sizes = index.sizes(self.unit)
        quotas = study_quotas(sizes, self.balance, self.weights)
        stream = CropStream(
            index,
            shards.reader(),
            StudyBalance(list(sizes.values()), quotas, seed=self.seed),
            self.scales,
            batch_size=self.batch_size,
            unit=self.unit,
            crops_per_image=self.crops_per_image,
            samples_per_epoch=self.samples_per_epoch,
            seed=self.seed,
            classes=self._classes(),
            **self._place(),
        )
        overfit = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        return self._loader(stream, fixed_epoch=overfit, num_workers=num_workers)

    def val_dataloader(self) -> StreamLoader | list[StreamLoader]:
        """Return every sample of `val_root` exactly once, always with the same crops; nothing without a `val_root`."""
        return [] if self.val_root is None else self._in_full(self.val_root)

    def test_dataloader(self) -> StreamLoader:
        """Return every sample of `val_root` exactly once.

        Raises:
            ConfigError: If there is no `val_root`.
        """
        if self.val_root is None:
            raise ConfigError("data.val_root is not set; give the shards to test on.")
        return self._in_full(self.val_root)

    def predict_dataloader(self) -> StreamLoader:
        """Return every sample of `root` exactly once, study after study, each in the order of its shards."""
        return self._in_full(self._train_root())

    def _in_full(self, root: str) -> StreamLoader:
        shards, index = self._open(root)
        sizes = list(index.sizes(self.unit).values())
        stream = CropStream(
            index,
            shards.reader(),
            StudyBalance(sizes, sizes, seed=self.seed, shuffle=False),
            self.scales,
            batch_size=self.batch_size,
            unit=self.unit,
            seed=self.seed,
            exact=True,
            classes=self._classes(),
            **self._place(),
        )
        return self._loader(stream, fixed_epoch=True)

    def _classes(self) -> dict[str, list[str]]:
        """The classes of the training data, which number the labels of all data."""
        if self.labels and not self.classes:
            if self.root is None:
                raise ConfigError(
                    f"data.labels ({', '.join(self.labels)}) needs the classes that training had; give data.root, or "
                    "score a checkpoint with --ckpt_path."
                )
            self.classes = self._find_classes(self.root)
        return self.classes

    def _loader(self, stream: CropStream, *, fixed_epoch: bool, num_workers: int | None = None) -> StreamLoader:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        loader = StreamLoader(
            stream,
            num_workers=self.num_workers if num_workers is None else num_workers,
            prefetch=self.prefetch,
            pin_memory=self.pin_memory and on_gpu,
            start_method=self.start_method,
            max_damaged=self.max_damaged,
            fixed_epoch=fixed_epoch,
        )
        self._loaders.append(loader)
        return loader

    def _place(self) -> dict[str, Any]:
        if self.trainer is None:
            return {"rank": 0, "world_size": 1}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    def _open(self, root: str) -> tuple[ShardSet, Index]:
        if root not in self._opened:
            shards = ShardSet(resolve_root(root))
            self._opened[root] = (shards, open_index(shards, self.query, labels=self.labels))
        return self._opened[root]


def check_labels(labels: Sequence[str]) -> None:
    """Refuse a text in place of a list of label columns, and a column that is named twice.

    Args:
        labels: Columns.

    Raises:
        ConfigError: With the text or the column.
    """
    if isinstance(labels, str):
        raise ConfigError(f"data.labels is a list of columns, not the text '{labels}'; write ['{labels}'].")
    twice = [label for label in labels if list(labels).count(label) > 1]
    if twice:
        raise ConfigError(f"data.labels names '{twice[0]}' twice; name it once.")
