"""Data sets that joint-channel encoders were trained on: channels in the order of the embeddings, and statistics.

Sources: insitro/ChannelViT at 1077a10 for JUMP-CP (as insitro prepared it), ImageNet and So2Sat (`so2sat.yaml`,
`so2sat_hard.yaml`, as stored at b7eb894 and 993fafe).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from morphem.data.schema import resolve_channel
from morphem.domains import Domain
from morphem.errors import ChannelError, ConfigError, unknown_name
from morphem.normalizers import DatasetNormalize, Normalizer
from morphem.pixel_steps import Chain
from morphem.zoo.channel_tokens import Channels


@dataclass(frozen=True)
class DataSet:
    """Channels and pixel statistics of a data set.

    Attributes:
        names: What the authors call the channels, in the order of their numbers.
        mean: Of each channel, in units of pixel / divide_by.
        std: Likewise.
        divide_by: What pixels are divided by first.
        domain: Pixels that the statistics are for.
        input_size_px: What images are resized to; None for no resize.
        interpolation: Of that resize.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    divide_by: float = 1.0
    domain: Domain = "uint8"
    input_size_px: int | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    @property
    def channels(self) -> Channels:
        """The channel types, with the names that the authors give them."""
        return named(self.names)

    @property
    def types(self) -> tuple[str, ...]:
        """Channel type of each channel; where there is none, its own name, known to these weights alone."""
        return self.channels.names

    def first(self, n_channels: int) -> "DataSet":
        """Return the data set with its first channels alone.

        Args:
            n_channels: How many.
        """
        part = slice(n_channels)
        return replace(self, names=self.names[part], mean=self.mean[part], std=self.std[part])

    def normalizer(self) -> Normalizer:
        """Return the normaliser with the statistics of each channel type."""
        mean, std = dict(zip(self.types, self.mean, strict=True)), dict(zip(self.types, self.std, strict=True))
        own = DatasetNormalize(mean, std, self.divide_by)
        return own if self.domain == "uint8" else Chain([own], self.domain)


def named(names: Sequence[str]) -> Channels:
    """Return channels by the types that the authors' names stand for.

    A name that stands for no type, or for one that another name has already, is known to these weights alone.

    Args:
        names: As the authors spell them, in the order of their numbers.
    """
    types: list[str] = []
    for name in names:
        own = channel_type(name)
        types.append(name if own != name and (own in names or own in types) else own)
    return Channels(tuple(types), dict(zip(names, types, strict=True)))


def channel_type(name: str) -> str:
    """Return the channel type that a name of the authors stands for, or the name itself where there is none.

    Args:
        name: As the authors spell it.
    """
    try:
        return resolve_channel(name)
    except ChannelError:
        return name


JUMPCP = DataSet(
    names=("Mito", "AGP", "RNA", "ER", "DNA", "HighZBF", "LowZBF", "BF"),
    mean=(
        4.031743599139058,
        1.565935237087539,
        3.77367898215863,
        3.4605251427133257,
        4.1723172504050225,
        6.780529773318951,
        6.787385700135139,
        6.778120829362721,
    ),
    std=(
        17.318438884455695,
        12.015918256263747,
        16.966058078452495,
        15.064776266287147,
        17.964118200870608,
        21.638766346725316,
        21.670565699654457,
        21.639488585095584,
    ),
)
IMAGENET = DataSet(
    names=("r", "g", "b"),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    divide_by=255.0,
    input_size_px=224,
    interpolation="bicubic",
)
_SO2SAT_NAMES = tuple(f"So2Sat {number}" for number in range(18))
SO2SAT_RANDOM = DataSet(
    names=_SO2SAT_NAMES,
    mean=(
        *(-2.7661554e-05, 2.2139642e-05, 2.3079854e-05, -2.897074e-05, 0.045271896, 0.26610142),
        *(0.0019685407, 0.0014894817, 0.12442144, 0.11015362, 0.102517806, 0.11548226),
        *(0.15986235, 0.1819497, 0.17501162, 0.19551599, 0.15673669, 0.11150938),
    ),
    std=(
        *(0.17874631, 0.1779993, 0.46587786, 0.46137187, 4.026994, 8.289052),
        *(2.7971811, 1.6728995, 0.039532706, 0.047356457, 0.06560701, 0.06269057),
        *(0.07596791, 0.08922283, 0.09054905, 0.09972874, 0.0992988, 0.08763404),
    ),
    domain="any",
)
SO2SAT_HARD = DataSet(
    names=_SO2SAT_NAMES,
    mean=(
        *(-3.5912242e-05, -7.658551e-06, 5.937501e-05, 2.516598e-05, 0.044198506, 0.25761467),
        *(0.0007556685, 0.0013503395, 0.12375654, 0.109277464, 0.101086065, 0.114239536),
        *(0.15926327, 0.18147452, 0.17457514, 0.1950194, 0.15428114, 0.109052904),
    ),
    std=(
        *(0.17555329, 0.17556609, 0.4599934, 0.45599362, 2.855352, 8.322579),
        *(2.44937, 1.464371, 0.0395863, 0.047778852, 0.066362865, 0.063593246),
        *(0.07744504, 0.09099384, 0.09217117, 0.10162713, 0.09989747, 0.0877891),
    ),
    domain="any",
)
DATA_SETS = {
    "jumpcp": JUMPCP,
    "jumpcp_cellpaint": JUMPCP.first(5),
    "imagenet": IMAGENET,
    "camelyon": IMAGENET,
    "so2sat_random": SO2SAT_RANDOM,
    "so2sat_hard": SO2SAT_HARD,
}
BY_COUNT = {8: "jumpcp", 5: "jumpcp_cellpaint", 3: "imagenet"}
"""Which data set as many channels are most likely of."""


def data_set(name: str | DataSet) -> DataSet:
    """Return a data set by name, or as it is given.

    Args:
        name: One of `DATA_SETS`.

    Raises:
        ConfigError: If there is none of that name.
    """
    if isinstance(name, DataSet):
        return name
    if name not in DATA_SETS:
        raise ConfigError(unknown_name("data set", name, DATA_SETS))
    return DATA_SETS[name]


def from_record(record: Mapping[str, Any], n_channels: int | None = None) -> DataSet:
    """Return the data set that a golden record describes.

    Args:
        record: With `normalisation` (`mean` and `std`, one for each channel), a `recipe` in words, and the names of the
            channels under `channel_vocabulary`; without these, names are those of the known data set of as many
            channels, or numbers.
        n_channels: How many of the statistics belong to channels of the encoder; all where not given.
    """
    mean, std = (tuple(float(value) for value in record["normalisation"][key][:n_channels]) for key in ("mean", "std"))
    known = BY_COUNT.get(len(mean))
    names = DATA_SETS[known].names if known else tuple(f"channel {number}" for number in range(len(mean)))
    divided = any("divided by 255" in line or "divide by 255" in line for line in record["recipe"])
    return DataSet(tuple(record.get("channel_vocabulary", names))[: len(mean)], mean, std, 255.0 if divided else 1.0)
