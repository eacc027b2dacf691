"""MorphEm: DINO, bag of channels, ViT-S/16, trained on all of CHAMMI-75.

Source: CaicedoLab/CHAMMI-75 at b84a4ec9 (https://github.com/CaicedoLab/CHAMMI-75), weights at
https://huggingface.co/CaicedoLab/MorphEm, both MIT.
Differs from it: no noise on saturated pixels by default. The authors' own evaluation divides by 255 before the step
that looks for the value 255, so there it never acts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor

from morphem import weights
from morphem.backbones.vit import VisionTransformer
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.encoder import Encoder
from morphem.errors import WeightsError
from morphem.normalizers import SelfNormalize
from morphem.zoo.base import Pretrained, Record

_HEAD = "head."
_PREFIXES = {"student": "module.backbone.", "teacher": "backbone."}


class MorphEm(Pretrained):
    """The released encoder, and others of its family (its training checkpoints, other widths).

    Args:
        n_heads: Attention heads, which no shape shows: 6 for ViT-S (the release), 12 for ViT-B, 16 for ViT-L.
    """

    record: ClassVar[Record] = Record(
        name="morphem",
        summary="DINO, bag of channels, ViT-S/16 on CHAMMI-75: 384 features per channel",
        hub_id="CaicedoLab/MorphEm",
        file=weights.WEIGHTS_FILE,
        revision=None,
        license="mit",
        source="https://github.com/CaicedoLab/CHAMMI-75",
        exported="unknown",
    )

    def __init__(self, n_heads: int = 6) -> None:
        self.n_heads = n_heads

    def convert(self, tensors: Mapping[str, Tensor], source: str) -> Encoder:
        """Build the encoder from tensors under timm's names; the DINO head is left out."""
        backbone = {name: tensor for name, tensor in tensors.items() if not name.startswith(_HEAD)}
        shapes: dict[str, Any] = _architecture(backbone, source)
        network = VisionTransformer("vit_small_patch16_224", n_heads=self.n_heads, **shapes)
        weights.load_strictly(network.network, backbone, source)
        return Encoder(BagOfChannels(network), SelfNormalize(), input_size_px=224, interpolation="bilinear").eval()

    def convert_training(
        self, checkpoint: Mapping[str, Any], source: str, network: Literal["student", "teacher"] = "student"
    ) -> Encoder:
        """Build the encoder from a checkpoint of the authors' training.

        Args:
            checkpoint: Its content, with `student` and `teacher`.
            source: Where it comes from, for messages.
            network: The authors evaluate the student.

        Raises:
            WeightsError: If the checkpoint is of another kind, or keys are missing or left over.
        """
        tensors, prefix = checkpoint.get(network), _PREFIXES[network]
        if not isinstance(tensors, Mapping):
            raise WeightsError(f"{source} has no '{network}'; its keys are {', '.join(map(str, checkpoint))}.")
        backbone = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        encoder = self.convert(backbone, f"{source} ({network})")
        encoder.origin = {"model": source}
        encoder.card = {"exported": network, "source": self.record.source}
        return encoder

    def load_training(self, path: str | Path, network: Literal["student", "teacher"] = "student") -> Encoder:
        """Read a checkpoint of the authors' training; see `convert_training`."""
        return self.convert_training(weights.read_checkpoint(Path(path)), str(path), network)


def _architecture(tensors: Mapping[str, Tensor], source: str) -> dict[str, int]:
    """Read width, depth, patch and native size off the shapes."""
    needed = ("pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight")
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise WeightsError(
            f"{source} is no MorphEm encoder: {', '.join(missing)} not among its {len(tensors)} tensors."
        )
    width, _, patch, _ = tensors["patch_embed.proj.weight"].shape
    grid = round((tensors["pos_embed"].shape[1] - 1) ** 0.5)
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    return {"embed_dim": width, "depth": depth, "patch_size_px": patch, "image_size_px": grid * patch}
