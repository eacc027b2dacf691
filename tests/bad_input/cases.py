"""What the tests of bad input share: outcomes of commands, places in shards, small studies."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from morphem.data.shards import ShardSet

RAMP = np.arange(40 * 40, dtype=np.uint16).reshape(40, 40)


@dataclass
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The error as the user reads it, behind any progress bar."""
        return self.err.rpartition("morphem: error: ")[2].strip()


def embed(encoder: Path, shards: object, *options: object) -> list[object]:
    return ["embed", "--model", encoder, "--data", shards, "--output", "out.parquet", "--accelerator", "cpu", *options]


def plane(shards: Path, number: int) -> tuple[Path, int, int]:
    """Return where a plane's PNG lies: shard, offset and length in bytes."""
    row = ShardSet(shards).table().to_pandas().iloc[number]
    return shards / row["shard"], int(row["plane_offset"]), int(row["plane_nbytes"])


def overwrite(file: Path, offset: int, data: bytes) -> None:
    with file.open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def study(folder: Path, pixels: np.ndarray, **columns: str) -> Path:
    """Write a study folder of one image of one plane."""
    folder.mkdir()
    Image.fromarray(pixels).save(folder / "a.png")
    row = {"file": "a.png", "imaging.multi_channel_id": "a", "imaging.channel_type": "nucleus", **columns}
    pd.DataFrame([row]).to_csv(folder / "metadata.csv", index=False)
    return folder
