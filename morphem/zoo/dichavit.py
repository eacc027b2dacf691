"""DiChaViT: ChannelViT with diverse channels and tokens, trained with labels on CHAMMI and JUMP-CP.

Source: chaudatascience/diverse_channel_vit at c22ed15 (MIT), Pham and Plummer 2024, https://arxiv.org/abs/2405.16419;
the order of the eight shared names stands in its `configs/dataset/morphem70k_v2.yaml`. CHAMMI's three data sets have
statistics of their own; its embeddings are either shared by name (8) or one for each data set and channel (12).
Differs from it: channels are named one by one; the authors choose rows and statistics for a whole data set.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Self

from torch import Tensor
from torch.nn.functional import linear

from morphem.encoder import Encoder
from morphem.errors import ConfigError, WeightsError, unknown_name
from morphem.normalizers import DatasetNormalize
from morphem.pixel_steps import Divide
from morphem.zoo.base import ByHand, Checkpoint, Pretrained, Record
from morphem.zoo.channel_tokens import Channels, Layout, channel_attention
from morphem.zoo.data_sets import JUMPCP, DataSet, channel_type, from_record
from morphem.zoo.replaying import as_published, embed, is_of
from morphem.zoo.strictness import needed

_PREFIX = "feature_extractor."
_LAYOUT = Layout("patch_embed.channel_embed.weight", "rows")
_PROXIES = "patch_embed.channel_emb_proxies"
_LEFT_OUT = ("proxies", "adaptive_interface.", "classifer_head.")  # the authors' spelling
_SHARED = ("er", "golgi", "membrane", "microtubules", "mito", "nucleus", "protein", "rna")
CHAMMI = {
    "Allen": DataSet(
        names=("nucleus", "membrane", "protein"),
        mean=(0.17299628, 0.21203272, 0.06717163),
        std=(0.31244728, 0.33736905, 0.15192129),
        divide_by=255.0,
    ),
    "HPA": DataSet(
        names=("microtubules", "protein", "nucleus", "er"),
        mean=(0.08290479, 0.041127298, 0.064044416, 0.08445485),
        std=(0.16213107, 0.1055938, 0.17713426, 0.1631108),
        divide_by=255.0,
    ),
    "CP": DataSet(
        names=("nucleus", "er", "rna", "golgi", "mito"),
        mean=(0.09957531, 0.19229747, 0.16250895, 0.1824028, 0.14978175),
        std=(0.1728119, 0.16629605, 0.15171643, 0.14863704, 0.1524553),
        divide_by=255.0,
    ),
}
_ALL_CHAMMI = tuple((name, channel) for name, own in CHAMMI.items() for channel in own.names)


def _location(file: str) -> ByHand:
    return ByHand(
        "https://drive.google.com/drive/folders/1o9t_vRTbg-933UCQx3OKSI22O4U4h8F0",
        file,
        "Download it from the authors' folder, which is linked in their README, and give it this name.",
    )


_BASE = Record(
    name="dichavit-chammi-12",
    summary="DiChaViT-S/16 on CHAMMI, an embedding for each data set and channel: 384 features per image",
    location=_location("dichavit_chammi_12.pt"),
    license="MIT",
    restricted=False,
    citation="Pham and Plummer 2024, Enhancing Feature Diversity Boosts Channel-Adaptive Vision Transformers, NeurIPS",
    source="https://github.com/chaudatascience/diverse_channel_vit at c22ed15",
    exported="only",
    input_domain="uint8",
    preparation="divided by 255, shorter side to 224 (bilinear), centre crop 224, mean and std of the data set",
    native_size_px=224,
    pooling="class token after the final LayerNorm",
    channel_rule="12, named by data set and channel (Allen nucleus, HPA er, CP rna, ...), or plainly with data_set=CP",
    embed_dim=384,
    facts={"n_heads": 6},
    vocabulary=tuple(f"{name} {channel}" for name, channel in _ALL_CHAMMI),
)


class DiChaViT(Pretrained):
    """Encoders of CHAMMI with 8 or 12 embeddings, and of JUMP-CP.

    Args:
        n_heads: Attention heads, which no shape shows. Where not given, those of the published network of that width.
        trained_on: `chammi` or `jumpcp`, both of which may have 8 channels, or a `DataSet`. Where not given, 12
            channels are CHAMMI's, and 8 are those of the file's number of classes: 14 in CHAMMI.
        data_set: Of CHAMMI: `Allen`, `HPA` or `CP`, whose channels and statistics plain names then mean; without it
            every channel is named with its set, for example `CP nucleus`.
        accidental_positions: Also repeat what the authors' code does by accident; see `ChannelAttention`.
    """

    records: ClassVar[tuple[Record, ...]] = (
        _BASE,
        replace(
            _BASE,
            name="dichavit-chammi-8",
            location=_location("dichavit_chammi_8.pt"),
            summary="DiChaViT-S/16 on CHAMMI, embeddings shared by its data sets: 384 features per image",
            channel_rule="8 shared embeddings, named as those of the 12: each data set has statistics of its own",
        ),
        replace(
            _BASE,
            name="dichavit-jumpcp",
            location=_location("dichavit_jumpcp.pt"),
            summary="DiChaViT-S/16 on JUMP-CP, five stains and bright-field: 384 features per image",
            preparation="values 0 to 255, minus mean, over standard deviation of each channel; no resize",
            channel_rule=f"any of 8 types: {', '.join(JUMPCP.names)}",
            facts={"n_heads": 6, "trained_on": "jumpcp"},
            vocabulary=JUMPCP.names,
        ),
    )

    def __init__(
        self,
        n_heads: int | None = None,
        trained_on: str | DataSet | None = None,
        data_set: str | None = None,
        accidental_positions: bool = False,
    ) -> None:
        if isinstance(trained_on, str) and trained_on not in ("chammi", "jumpcp"):
            raise ConfigError(unknown_name("data that DiChaViT was trained on", trained_on, ("chammi", "jumpcp")))
        if data_set is not None and data_set not in CHAMMI:
            raise ConfigError(unknown_name("data set of CHAMMI", data_set, CHAMMI))
        if data_set is not None and trained_on not in (None, "chammi"):
            raise ConfigError(f"dichavit: data_set='{data_set}' has no effect on an encoder that is not of CHAMMI.")
        self.n_heads = n_heads
        self.trained_on = trained_on
        self.data_set = data_set
        self.accidental_positions = accidental_positions

    @classmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        """Whether a file holds such a network, in a training checkpoint of the authors or with its prefix alone."""
        return _LAYOUT.fits(_strip(_everything(checkpoint)))

    def convert(self, checkpoint: Checkpoint) -> Encoder:
        """Build the encoder.

        `proxies`, `adaptive_interface.0` (the same tensor), `classifer_head.*` and `channel_emb_proxies` serve training
        alone and are left out.
        """
        everything, source = _everything(checkpoint), str(checkpoint.path)
        tensors = {
            name: value
            for name, value in everything.items()
            if not name.startswith(_LEFT_OUT) and name != f"{_PREFIX}{_PROXIES}"
        }
        astray = [name for name in tensors if not name.startswith(_PREFIX)]
        if astray:
            raise WeightsError(f"{source} holds {len(astray)} unexpected tensors ({', '.join(astray[:5])}).")
        tensors = _strip(tensors)
        needed(tensors, (_LAYOUT.table,), source, "DiChaViT encoder")
        count = len(tensors[_LAYOUT.table])
        own = self._trained_on(count, everything, source)
        options = {"accidental_positions": self.accidental_positions}
        if isinstance(own, DataSet):
            strategy = channel_attention(tensors, _LAYOUT, own.channels, self.n_heads, source, **options)
            return Encoder(strategy, own.normalizer(), own.input_size_px, own.interpolation).eval()
        channels, normalizer = _chammi(count, self.data_set, source)
        strategy = channel_attention(tensors, _LAYOUT, channels, self.n_heads, source, **options)
        return Encoder(
            strategy, Divide(255.0), 224, "bilinear", fit="centre_crop", shorter_side_px=224, after_resize=normalizer
        ).eval()

    def to_authors(self, encoder: Encoder) -> dict[str, Tensor]:
        """Return the tensors of the feature extractor, with its prefix."""
        return {f"{_PREFIX}{key}": value for key, value in _LAYOUT.to_theirs(encoder.channels.state_dict()).items()}

    @classmethod
    def from_golden(cls, record: Mapping[str, Any]) -> Self | None:
        """Take heads and data of the record."""
        if not is_of(record, "DiChaViT", "dichavit"):
            return None
        n_heads = record["constructor"]["num_heads"]
        if "channel_rows" in record:
            return cls(n_heads, "chammi")
        return cls(n_heads, from_record(record))

    def replay(
        self,
        encoder: Encoder,
        checkpoint: Checkpoint,
        record: Mapping[str, Any],
        case: str,
        inputs: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        """Compute a case; logits are the classifier of the file on the features.

        Positions are those of the authors at every size, accidents included (see `ChannelAttention`).
        """
        encoder = as_published(encoder)
        images = list(inputs["images"])
        if "channel_rows" in record:
            name, *rest = case.split("_")
            channels: list[Any] = [f"{name} {channel}" for channel in record["channel_order"][name]]
            return {"features": embed(encoder, images, [channels] * len(images), resize="resize" not in rest)}
        features = embed(encoder, images, [inputs["channels"]] * len(images))
        head = {key: value.to(features) for key, value in checkpoint.under("classifer_head.", "model_params").items()}
        return {"features": features, "logits": linear(features, head["weight"], head["bias"])}

    def _trained_on(self, count: int, everything: Mapping[str, Tensor], source: str) -> DataSet | None:
        """Return the data set, or None for CHAMMI's three."""
        if isinstance(self.trained_on, DataSet):
            return self.trained_on
        proxies = everything.get("proxies")
        classes = None if proxies is None else len(proxies)
        told = self.trained_on or ("chammi" if self.data_set or count == len(_ALL_CHAMMI) else None)
        if told is None and count == len(_SHARED) and classes is not None:
            told = "chammi" if classes == 14 else "jumpcp"
        if told is None:
            raise WeightsError(f"{source} may be of CHAMMI or of JUMP-CP; say trained_on='chammi' or 'jumpcp'.")
        return JUMPCP if told == "jumpcp" else None


def _chammi(count: int, data_set: str | None, source: str) -> tuple[Channels, DatasetNormalize]:
    """Name the embeddings of CHAMMI's channels, and give each channel the statistics of its data set.

    A channel is called by its type where its data set was chosen, else by data set and channel. Where embeddings are
    shared, such a name is another one of the shared embedding.
    """
    if count not in (len(_ALL_CHAMMI), len(_SHARED)):
        raise WeightsError(f"{source} has embeddings of {count} channels; those of CHAMMI have 12 or 8.")
    labels = [channel_type(ch) if name == data_set else f"{name} {ch}" for name, ch in _ALL_CHAMMI]
    own_names = {f"{name} {ch}": label for (name, ch), label in zip(_ALL_CHAMMI, labels, strict=True)}
    mean, std = (
        dict(zip(labels, (value for own in CHAMMI.values() for value in getattr(own, kind)), strict=True))
        for kind in ("mean", "std")
    )
    normalizer = DatasetNormalize(mean, std, 1.0)
    if count == len(_ALL_CHAMMI):
        return Channels(tuple(labels), own_names), normalizer
    shared = tuple(channel_type(name) for name in _SHARED)
    types = {label: channel_type(ch) for (_, ch), label in zip(_ALL_CHAMMI, labels, strict=True)}
    return Channels(shared, own_names, {label: kind for label, kind in types.items() if label != kind}), normalizer


def _everything(checkpoint: Checkpoint) -> dict[str, Tensor]:
    return {name.removeprefix("module."): value for name, value in checkpoint.under("", "model_params").items()}


def _strip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(_PREFIX): value for name, value in tensors.items() if name.startswith(_PREFIX)}
