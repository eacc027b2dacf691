"""What an encoder gives, made into the rows of a feature table."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from morphem import features
from morphem.errors import ConfigError
from morphem.features import COMBINES, Combine

if TYPE_CHECKING:  # the encoder itself uses this module
    from morphem.encoder import Encoder

_SHORTEST = 1e-12  # a row that is not scaled to length 1: it is zero


def check_combine(encoder: "Encoder", combine: str) -> None:
    """Check that a way of combining channels exists and has an effect.

    Raises:
        ConfigError: If it is unknown, or the encoder gives one embedding per image and it is not `concat`.
    """
    if combine not in COMBINES:
        raise ConfigError(f"combine='{combine}' must be one of {', '.join(COMBINES)}.")
    if not encoder.per_channel and combine != "concat":
        raise ConfigError(
            f"combine='{combine}' has no effect on {type(encoder.channels).__name__}, which gives one embedding per "
            "image; leave it at 'concat'."
        )


def table_columns(
    encoder: "Encoder",
    values: NDArray[np.float32],
    channel_types: Sequence[Sequence[str]],
    combine: Combine,
    unit_length: bool | None = None,
) -> tuple[NDArray[np.float32], tuple[str, ...], tuple[dict[str, Any], ...]]:
    """Turn what `Encoder.features` gives into the rows of a table, their column names and the dictionary.

    Args:
        encoder: Gave the values.
        values: (P, D) or (N, D).
        channel_types: For each of N images the type of each plane, in panel order.
        combine: See `Encoder.embed`.
        unit_length: Whether to scale rows to length 1; as the encoder's recipe says where not given.
    """
    if encoder.per_channel:
        labels = [features.channel_labels(image) for image in channel_types]
        values, columns, dictionary = features.combine_channels(values, labels, combine)
    else:
        columns, dictionary = features.feature_columns(["image"], encoder.embed_dim, "image")
    if encoder.recipe.unit_length if unit_length is None else unit_length:
        lengths = np.linalg.norm(values, axis=1, keepdims=True)
        values = values / np.maximum(lengths, _SHORTEST)
    return values, columns, dictionary
