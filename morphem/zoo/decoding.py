"""Decoders that published files carry, as our own: for the proof that reconstructions agree.

Our decoders put the column of a patch before its row, as MAE does; CA-MAE and Campfire the row before the column. Both
give one function of the pixels where all weights follow the exchange, so theirs are loaded with their halves exchanged.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from morphem.zoo.strictness import check_names

_FROM_WIDTH = ("q", "kv", "qkv", "fc1", "predict")  # linear layers that read tokens of the decoder's width
_TABLES = ("types",)


def load_exchanged(decoder: nn.Module, tensors: Mapping[str, Tensor], width: int, source: str) -> None:
    """Copy weights of a decoder whose positions have the row first into one of ours.

    Args:
        decoder: One of `morphem.decoders`.
        tensors: Under our names.
        width: Of the decoder.
        source: Where they come from, for messages.

    Raises:
        WeightsError: If names are missing or left over, or shapes differ.
    """
    check_names(decoder.state_dict(), tensors, source)
    decoder.load_state_dict({name: _exchanged(name, value, width) for name, value in tensors.items()})


def with_biases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with zeros for the biases that the authors leave out of queries, keys and values.

    Args:
        tensors: By name.
    """
    complete = dict(tensors)
    for name, value in tensors.items():
        if name.endswith(("qkv.weight", "q.weight", "kv.weight")):
            complete.setdefault(name.removesuffix("weight") + "bias", value.new_zeros(len(value)))
    return complete


def _exchanged(name: str, value: Tensor, width: int) -> Tensor:
    """Exchange the halves of the axis that counts the decoder's width."""
    *_, layer, kind = ("", *name.split("."))
    if kind == "freqs":  # of rotary positions, which count heads
        return value
    if layer in _FROM_WIDTH:
        return value.roll(width // 2, 1) if kind == "weight" else value
    return value.roll(width // 2, 1 if layer in _TABLES else 0)
