"""`Trainer.predict` with an `Embedder` in as many processes as asked for. Run by test_prediction.py.

Arguments: number of processes, encoder, shards, output.
"""

import sys
from pathlib import Path

import lightning.pytorch as L
from lightning.pytorch.strategies import DDPStrategy

from morphem import embed_job, zoo
from morphem.embed_job import EmbedJob, Target, parts_folder
from morphem.extraction import EmbedSettings, Extraction
from morphem.prediction import Embedder


def main(n_processes: int, encoder: str, shards: str, output: Path) -> None:
    """Embed and write."""
    embed_job._PART_PLANES = 12  # several parts for each process
    run = Extraction(zoo.load(encoder), shards, EmbedSettings(tile_size_px=16))
    trainer = L.Trainer(
        accelerator="cpu",
        devices=n_processes,
        strategy=DDPStrategy(process_group_backend="gloo") if n_processes > 1 else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    embedder = Embedder(EmbedJob([Target(run, output)], parts_folder(output)))
    trainer.predict(embedder, return_predictions=False)
    if trainer.global_rank == 0:
        (report,) = embedder.reports or ()
        print(f"rows {report.n_rows} checked {report.checked.n_rows} parts {len(embedder.job.parts)}")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4]))
