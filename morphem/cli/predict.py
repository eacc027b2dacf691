"""`morphem predict`: the table of `morphem embed`, through the Trainer of a run's config."""

from pathlib import Path

import lightning.pytorch as L

from morphem import zoo
from morphem.data.module import ShardData
from morphem.data.shards import resolve_root
from morphem.embed_job import EmbedJob, Target, parts_folder
from morphem.embed_recipe import settings_for
from morphem.errors import ConfigError
from morphem.extraction import Extraction
from morphem.prediction import Embedder


def predict(trainer: L.Trainer, data: ShardData, checkpoint: str | None) -> None:
    """Write `NAME.features.parquet` beside the checkpoint: a row per plane or image, cut as the encoder's recipe says.

    Args:
        trainer: Its devices and processes are used.
        data: `root` and `query` say what is embedded.
        checkpoint: Path of the checkpoint whose encoder embeds.

    Raises:
        ConfigError: If there are no shards or no checkpoint, or the table exists.
    """
    if data.root is None:
        raise ConfigError("data.root is not set; give the shards to embed, for example --data.root shards/.")
    if checkpoint is None or not Path(checkpoint).exists():
        raise ConfigError(f"predict needs the path of a checkpoint with --ckpt_path, and got '{checkpoint}'.")
    encoder = zoo.load(checkpoint)
    settings = settings_for(encoder, query=data.query, combine="none" if encoder.per_channel else "concat")
    output = Path(checkpoint).with_suffix(".features.parquet")
    run = Extraction(encoder, resolve_root(data.root), settings, num_workers=data.num_workers)
    embedder = Embedder(EmbedJob([Target(run, output)], parts_folder(output)))
    trainer.predict(embedder, return_predictions=False)
    for report in embedder.reports or ():
        print(f"wrote {report.path}: {report.n_rows} rows x {report.n_features} features")
