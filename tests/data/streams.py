"""Small shard sets of several studies, and streams over them, for tests of reading."""

from pathlib import Path
from typing import Any, NamedTuple

from morphem.data.index import Unit, open_index
from morphem.data.order import StudyBalance, study_quotas
from morphem.data.sampling import Scales
from morphem.data.shards import ShardSet
from morphem.data.stream import CropStream
from morphem.types import ChannelBatch
from tests.data.records import make_image, write_set

IMAGES = {"alpha": 7, "beta": 4, "gamma": 2}
TYPES = {"alpha": ("nucleus", "actin"), "beta": ("bright-field",), "gamma": ("nucleus", "actin", "mitochondria")}
N_IMAGES = 13
N_PLANES = 7 * 2 + 4 * 1 + 2 * 3


def write_studies(root: Path) -> Path:
    """Write three studies of 13 images and 24 planes: with two cells, without any, and with an empty table of cells."""
    cells = {"alpha": [(3, 4), (29, 19)], "beta": None, "gamma": []}
    for number, study in enumerate(("gamma", "alpha", "beta")):  # shard order is not the order of names
        size = (20 + number, 30)
        write_set(
            root,
            [
                make_image(
                    f"{study} {i}", study=study, types=TYPES[study], cells=cells[study], size=size, seed=10 * number + i
                )
                for i in range(IMAGES[study])
            ],
            study=study,
            max_images=3,
        )
    return root


def make_stream(
    root: Path, *, unit: Unit = "plane", balance: Any = "none", shuffle: bool = True, seed: int = 0, **settings: Any
) -> CropStream:
    """Open a stream of crops of about 10 pixels."""
    shards = ShardSet(root)
    index = open_index(shards, folder=root / "index")
    sizes = index.sizes(unit)
    return CropStream(
        index,
        shards.reader(),
        StudyBalance(list(sizes.values()), study_quotas(sizes, balance), seed=seed, shuffle=shuffle),
        Scales(default=10),
        unit=unit,
        seed=seed,
        **{"batch_size": 4, **settings},
    )


class Seen(NamedTuple):
    """All that identifies a crop in a batch, with its pixels."""

    row: int
    key: str
    seed: int
    box: tuple[int, ...]
    channel_types: tuple[str, ...]
    pixels: bytes


def seen(batch: ChannelBatch) -> list[Seen]:
    """Take a batch apart into its crops."""
    starts, areas = batch.starts().tolist(), batch.sizes.prod(1).tolist()
    crops = []
    for i, key in enumerate(batch.keys):
        planes = range(int(batch.offsets[i]), int(batch.offsets[i + 1]))
        pixels = b"".join(batch.planes[starts[p] : starts[p] + areas[p]].numpy().tobytes() for p in planes)
        types = tuple(batch.channel_types[p] for p in planes)
        crops.append(Seen(int(batch.rows[i]), key, int(batch.seeds[i]), tuple(batch.boxes[i].tolist()), types, pixels))
    return crops
