"""CHAMMI-75's encoders over all channels of an image ("MCA"): ChannelViT trained with DINO, MAE and SimCLR.

Source: CaicedoLab/CHAMMI-75 at b84a4ec (MIT): the training code's checkpoints and the evaluation code's wrappers. Which
channel each embedding is for stands in the `channel_map.json` beside a checkpoint.
Differs from it: images of several channel counts are never padded, so no image sees another's padding
(`padded_channels` repeats what the DINO network does, whose mask never reaches its attention); no noise on saturated
pixels, which the authors' evaluation looks for at 255 after it has divided by 255.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from torch import Tensor

from morphem.encoder import Encoder
from morphem.errors import ConfigError, WeightsError, unknown_name
from morphem.normalizers import SelfNormalize
from morphem.pixel_steps import ZScore
from morphem.zoo.base import ByHand, Checkpoint, Pretrained, Record
from morphem.zoo.channel_tokens import Channels, Layout, channel_attention
from morphem.zoo.data_sets import named
from morphem.zoo.replaying import altered, as_published, embed, entering, every_nth, is_of

_LAYOUT = Layout("patch_embed.channel_tokens", "map")
_PREFIXES = {"student": "module.backbone.", "teacher": "backbone."}
_LEFT_OUT = ("decoder.", "encoder_decoder_proj.", "decoder_pred.", "head.")
_INNER_EPS = 1e-5
_MAP = "channel_map.json"


def _record(method: str, size: str, dim: int, n_heads: int, exported: Literal["student", "only"]) -> Record:
    name = {"dino": "DINO", "mae": "MAE", "simclr": "SimCLR"}[method]
    again = ", then once more per plane (eps 1e-5)" if method == "mae" else ""
    return Record(
        name=f"chammi75-channelvit-{method}-{size}",
        summary=f"{name}, channel attention, ViT-{size[0].upper()}/16 on CHAMMI-75: {dim} features per image",
        location=ByHand(
            "https://github.com/CaicedoLab/CHAMMI-75",
            "checkpoint.pth",
            f"Train it with the authors' code, or ask them for the file; put its {_MAP} beside it.",
        ),
        license="MIT",
        restricted=False,
        citation="CHAMMI-75, https://arxiv.org/abs/2512.20833",
        source="https://github.com/CaicedoLab/CHAMMI-75 at b84a4ec9",
        exported=exported,
        input_domain="uint8",
        preparation=f"divided by 255, z-score per plane (eps 1e-7 on the variance), resized to 224 (bilinear){again}",
        native_size_px=224,
        pooling="class token after the final LayerNorm",
        channel_rule=f"any of the types in its {_MAP} (25 for all of CHAMMI-75)",
        embed_dim=dim,
        facts={"n_heads": n_heads, "inner_normalisation": method == "mae"},
    )


class Chammi75Channels(Pretrained):
    """Encoders over all channels that CHAMMI-75's code trains.

    Args:
        n_heads: Attention heads, which no shape shows. Where not given, those of the published network of that width.
        network: Which network of a DINO checkpoint; the authors evaluate the student.
        inner_normalisation: Whether the network normalises every plane once more as its first layer (eps 1e-5), as the
            published configuration of the MAE does. Where not given, as the file is: with a decoder, yes.
        channel_map: Number of each channel type, where no `channel_map.json` lies beside the file.
        unknown: What a channel type gets that is not in the map: `error`, `zero`, `mean` or `nearest`; see
            `ChannelAttention`.
        padded_channels: Repeat what the authors' code does to the smaller images of a batch; see `ChannelAttention`.
        padding_seen: Whether they see the padding, as in the DINO network; see there too.
        accidental_positions: Also repeat what the authors' code does by accident; see `ChannelAttention`.
    """

    records: ClassVar[tuple[Record, ...]] = (
        _record("dino", "small", 384, 6, "student"),
        _record("dino", "base", 768, 12, "student"),
        _record("mae", "small", 384, 6, "only"),
        _record("simclr", "small", 384, 6, "only"),
        _record("simclr", "base", 768, 12, "only"),
    )

    def __init__(
        self,
        n_heads: int | None = None,
        network: Literal["student", "teacher"] = "student",
        inner_normalisation: bool | None = None,
        channel_map: Mapping[str, int] | None = None,
        unknown: Literal["error", "zero", "mean", "nearest"] = "error",
        padded_channels: int | None = None,
        padding_seen: bool = False,
        accidental_positions: bool = False,
    ) -> None:
        if network not in _PREFIXES:
            raise ConfigError(unknown_name("network of a DINO checkpoint", network, _PREFIXES))
        self.n_heads = n_heads
        self.network = network
        self.inner_normalisation = inner_normalisation
        self.channel_map = channel_map
        self.unknown = unknown
        self.padded_channels = padded_channels
        self.padding_seen = padding_seen
        self.accidental_positions = accidental_positions

    @classmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        """Whether a file holds such a network, bare, wrapped, or as student and teacher."""
        return _LAYOUT.fits(_tensors(checkpoint, "student"))

    def convert(self, checkpoint: Checkpoint) -> Encoder:
        """Build the encoder without head (`head.*`) and decoder (`decoder.*`, `*_decoder_proj.*`, `decoder_pred.*`).

        Raises:
            WeightsError: If it is not of this family, keys are missing or left over, or nothing says which channels its
                embeddings are for.
        """
        everything = _tensors(checkpoint, self.network)
        tensors = {name: value for name, value in everything.items() if not name.startswith(_LEFT_OUT)}
        source = str(checkpoint.path)
        nested = isinstance(checkpoint.content.get(self.network), Mapping)
        strategy = channel_attention(
            tensors,
            _LAYOUT,
            self._channels(checkpoint),
            self.n_heads,
            f"{source} ({self.network})" if nested else source,
            unknown=self.unknown,
            padded_channels=self.padded_channels,
            padding_seen=self.padding_seen,
            accidental_positions=self.accidental_positions,
        )
        again = self.inner_normalisation
        again = any(name.startswith("decoder.") for name in everything) if again is None else again
        encoder = Encoder(
            strategy, SelfNormalize(eps=1e-7), 224, "bilinear", after_resize=ZScore(_INNER_EPS) if again else None
        ).eval()
        encoder.card = {"exported": self.network} if nested else {}
        return encoder

    def to_authors(self, encoder: Encoder) -> dict[str, Tensor]:
        """Return the tensors under the names of the network itself; wrapped, those of a DINO checkpoint."""
        prefix = _PREFIXES.get(encoder.card.get("exported", ""), "")
        return {f"{prefix}{key}": value for key, value in _LAYOUT.to_theirs(encoder.channels.state_dict()).items()}

    @classmethod
    def from_golden(cls, record: Mapping[str, Any]) -> Self | None:
        """Take heads, inner normalisation and the channel map of the record."""
        if not is_of(record, "CHAMMI-75 ChannelViT", "chammi75_channelvit") and not is_of(
            record, "CHAMMI-75 multi-channel", "chammi75_multi_channel"
        ):
            return None
        constructor = record["constructor"]
        return cls(
            n_heads=constructor["num_heads"],
            network=record["container"].get("used", "student"),
            inner_normalisation=constructor.get("use_self_image_norm", False),
            channel_map=record["channel_map"],
        )

    def replay(
        self,
        encoder: Encoder,
        checkpoint: Checkpoint,
        record: Mapping[str, Any],
        case: str,
        inputs: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        """Compute a case: through the wrapper where channels have names, else the network on images at their size.

        Positions are those of the authors at every size, accidents included (see `ChannelAttention`).
        """
        images = list(inputs["images"])
        if "channel_id_lists" in inputs:
            return self._mixed(encoder, images, record, inputs["channel_id_lists"])
        if "channels" in inputs:
            channels: list[list[Any]] = [inputs["channels"]] * len(images)
        else:
            channels = inputs["channel_ids"].tolist()
        encoder = as_published(encoder)
        backbone: Any = encoder.channels.backbone
        resize = "channels" in inputs
        result, tokens = entering(backbone.network.blocks[0], lambda: embed(encoder, images, channels, resize=resize))
        return {"features": result, "tokens_embedded": every_nth(tokens, record, case)}

    @staticmethod
    def _mixed(
        encoder: Encoder, images: list[Tensor], record: Mapping[str, Any], numbers: list[list[int]]
    ) -> dict[str, Tensor]:
        """Images of several channel counts: each as it is, and as in the authors' padded batch."""
        images = [image[: len(row)] for image, row in zip(images, numbers, strict=True)]
        alone = embed(encoder, images, numbers, resize=False)
        seen = "attention_mask" not in record["architecture"]
        padding = altered(encoder.channels, padded_channels=max(map(len, numbers)), padding_seen=seen)
        padded = embed(altered(encoder, channels=padding), images, numbers, resize=False)
        return {"features": alone, "features_alone": alone, "features_in_padded_batch": padded}

    def _channels(self, checkpoint: Checkpoint) -> Channels:
        numbers = self.channel_map or checkpoint.sidecars.get(_MAP)
        if not numbers:
            raise WeightsError(
                f"{checkpoint.path} says nothing of its channels; put the {_MAP} of its training beside it, or give "
                "channel_map=..."
            )
        names = sorted(numbers, key=lambda name: int(numbers[name]))
        if [int(numbers[name]) for name in names] != list(range(len(names))):
            raise WeightsError(f"{_MAP} of {checkpoint.path} does not number its channels from 0 without gaps.")
        return named(names)


def _tensors(checkpoint: Checkpoint, network: Literal["student", "teacher"]) -> dict[str, Tensor]:
    """Return the tensors of a network, bare, of a training checkpoint, or with the prefix of one; heads go with it."""
    everything = checkpoint.under("", network, "model_state_dict")
    prefix = _PREFIXES[network]
    if not any(name.startswith(prefix) for name in everything):
        return everything
    around = prefix.removesuffix("backbone.")
    return {name.removeprefix(prefix).removeprefix(around): value for name, value in everything.items()}
