"""Controls: what an encoder has to beat. A network that was never trained, features of chance, and CellProfiler.

Source: the rows "random ViT" and "CellProfiler" of the papers (CHAMMI-75, uniDINO), made anew: nobody publishes these
weights, so they are a function of a seed.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from morphem.backbones.gaussian import GaussianFeatures
from morphem.backbones.vit import VisionTransformer
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.encoder import Encoder
from morphem.errors import ConfigError, WeightsError
from morphem.normalizers import SelfNormalize
from morphem.pixel_steps import Chain
from morphem.zoo.base import Checkpoint, Computed, Pretrained, Record

Kind = Literal["random_vit", "gaussian", "cellprofiler"]
_SOURCE = "https://github.com/CaicedoLab/CHAMMI-75 at b84a4ec (the untrained network has MorphEm's architecture)"


def _record(name: str, kind: Kind, embed_dim: int, **words: Any) -> Record:
    general: dict[str, Any] = {
        "license": "not applicable",
        "restricted": False,
        "citation": "CHAMMI-75, Caicedo lab",
        "source": _SOURCE,
        "exported": "only",
        "native_size_px": None,
        "channel_rule": "any channels, each on its own",
        "facts": {"kind": kind},
    }
    return Record(name=name, embed_dim=embed_dim, **{**general, **words})


class Controls(Pretrained):
    """Encoders that have learned nothing; no file belongs to them.

    Args:
        kind: `random_vit`: MorphEm's architecture as it is before training; `gaussian`: normal numbers, a function of
            the pixels; `cellprofiler`: a table of features, which is no network.
        seed: Of the weights or the numbers.
        network: Of timm, for `random_vit`.
        embed_dim: Features per channel, for `gaussian`.

    Raises:
        ConfigError: If `kind` is unknown.
    """

    records: ClassVar[tuple[Record, ...]] = (
        _record(
            "random-vits16",
            "random_vit",
            384,
            summary="Untrained ViT-S/16, bag of channels: 384 features per channel",
            location=Computed("weights drawn from a seed"),
            input_domain="uint8",
            preparation="divided by 255, z-score per plane (eps 1e-7 on the variance), then resized to 224 (bilinear)",
            native_size_px=224,
            pooling="class token after the final LayerNorm, per channel",
        ),
        _record(
            "gaussian",
            "gaussian",
            384,
            summary="Normal numbers, a function of the pixels: 384 features per channel",
            location=Computed("numbers drawn from a seed and the pixels"),
            input_domain="any",
            preparation="none",
            pooling="none",
        ),
        _record(
            "cellprofiler",
            "cellprofiler",
            904,
            summary="A table of CellProfiler's features read as if it were an encoder (904 in JUMP-CP's)",
            location=Computed("a table that CellProfiler and pycytominer made"),
            citation="Carpenter et al. 2006, https://doi.org/10.1186/gb-2006-7-10-r100",
            source="https://github.com/CellProfiler/CellProfiler",
            input_domain="unknown",
            preparation="CellProfiler's pipeline",
            pooling="as the table's rows",
            channel_rule="the channels of the pipeline",
        ),
    )
    not_compared: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        kind: Kind = "random_vit",
        seed: int = 0,
        network: str = "vit_small_patch16_224",
        embed_dim: int = 384,
    ) -> None:
        kinds = ("random_vit", "gaussian", "cellprofiler")
        if kind not in kinds:
            raise ConfigError(f"controls: kind='{kind}' must be one of {', '.join(kinds)}.")
        if kind != "random_vit" and network != "vit_small_patch16_224":
            raise ConfigError(f"controls: network='{network}' has no effect with kind='{kind}'; leave it out.")
        if kind != "gaussian" and embed_dim != 384:
            raise ConfigError(f"controls: embed_dim={embed_dim} has no effect with kind='{kind}'; leave it out.")
        self.kind = kind
        self.seed = seed
        self.network = network
        self.embed_dim = embed_dim

    def build(self) -> Encoder:
        """Make the encoder; the global random state is left as it was.

        Raises:
            WeightsError: If it is a table, with how to read it.
        """
        if self.kind == "cellprofiler":
            raise WeightsError(
                "'cellprofiler' is a table of features, not a network; read it with "
                "morphem.cellprofiler.CellProfilerTable(path), whose embed(rows) gives the table that an encoder would."
            )
        if self.kind == "gaussian":
            encoder = Encoder(
                BagOfChannels(GaussianFeatures(self.embed_dim, self.seed)), Chain([], input_domain="any"), None
            )
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                backbone = VisionTransformer(self.network)
            encoder = Encoder(BagOfChannels(backbone), SelfNormalize(), input_size_px=224)
        encoder.card = {"control": self.kind, "seed": self.seed}
        return encoder.eval()

    @classmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        """Say no: a control has no file."""
        return False

    def convert(self, checkpoint: Checkpoint) -> Encoder:
        """Refuse any file.

        Args:
            checkpoint: Any.

        Raises:
            WeightsError: Always.
        """
        names = " and ".join(record.name for record in self.records[:2])
        raise WeightsError(f"controls have no file ({checkpoint.path} was given); load {names} by name.")

    def to_authors(self, encoder: Encoder) -> dict[str, Tensor]:
        """Return the tensors under our names: there are no authors."""
        return dict(encoder.channels.backbone.state_dict())  # type: ignore[union-attr]

    @classmethod
    def from_golden(cls, record: Mapping[str, Any]) -> Self | None:
        """Say no: there is nothing to compare with."""
        return None

    def replay(
        self,
        encoder: Encoder,
        checkpoint: Checkpoint,
        record: Mapping[str, Any],
        case: str,
        inputs: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        """Compute nothing: no golden record is of a control."""
        return {}
