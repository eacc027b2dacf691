"""Microsnoop: a convolutional network for any channel, trained to paint masked images.

Source: Xun et al. 2024, https://doi.org/10.1016/j.xinn.2023.100541; cellimnet/microsnoop-publish at 3f0b0ce (text of
BSD-3-Clause, but the authors allow academic use only and give notice of a patent); blocks of scellseg 0.1.8. Facts that
no shape shows: pixels are scaled to their 1st and 99th percentiles tile by tile, after padding, without clipping; the
embedding of a field is the mean over overlapping tiles and is not scaled again.
"""

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from torch import Tensor

from morphem.backbones.residual_cnn import ResidualCNN, ResidualDecoder, style
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.data.crops import CropRule
from morphem.encoder import Encoder
from morphem.errors import ConfigError, WeightsError
from morphem.pieces import cut, mean_rows
from morphem.pixel_steps import Chain, Percentiles
from morphem.recipe import Recipe
from morphem.zoo.base import Checkpoint, Pretrained, Record, WebFile
from morphem.zoo.key_names import KeyNames
from morphem.zoo.seen import network_batch
from morphem.zoo.strictness import load_renamed, without_memory

_FILE = (
    "20220904-1246_cnn_trData-microsnoop_trMode-mae_batchSize-16_inputSize-224_inChans-1_embedDim-256_"
    "maskRatio-0.25_epoch-999.pth"
)
_COMMIT = "3f0b0ce83963a4c62942d30aba7b16f23e047cc1"
_WRAPPED = "module."
_DOWN = "encoder.downsample.down.res_down_{i}."
_UP = "decoder.upsample.up.res_up_{i}."
_FIRST = f"{_DOWN.format(i=0)}conv.conv_0.2.weight"
# a block of the authors is normalisation, ReLU and convolution (0, 1, 2), a projection has no ReLU (0, 1)
_ENCODER = KeyNames(
    [
        (f"{_DOWN}conv.conv_{{j}}.0.{{rest}}", "stages.{i}.convs.{j}.norm.{rest}"),
        (f"{_DOWN}conv.conv_{{j}}.2.{{rest}}", "stages.{i}.convs.{j}.conv.{rest}"),
        (f"{_DOWN}proj.0.{{rest}}", "stages.{i}.projection.norm.{rest}"),
        (f"{_DOWN}proj.1.{{rest}}", "stages.{i}.projection.conv.{rest}"),
    ]
)
_DECODER = KeyNames(
    [
        (f"{_UP}conv.conv_0.0.{{rest}}", "stages.{i}.first.norm.{rest}"),
        (f"{_UP}conv.conv_0.2.{{rest}}", "stages.{i}.first.conv.{rest}"),
        *(
            (f"{_UP}conv.conv_{number}.{theirs}.{{rest}}", f"stages.{{i}}.styled.{number - 1}.{ours}.{{rest}}")
            for number in (1, 2, 3)
            for theirs, ours in (("conv.0", "conv.norm"), ("conv.2", "conv.conv"), ("full", "from_style"))
        ),
        (f"{_UP}proj.0.{{rest}}", "stages.{i}.projection.norm.{rest}"),
        (f"{_UP}proj.1.{{rest}}", "stages.{i}.projection.conv.{rest}"),
        ("decoder.base_bn.{rest}", "last.norm.{rest}"),
        ("decoder.base_conv.{rest}", "last.conv.{rest}"),
    ]
)


class Microsnoop(Pretrained):
    """The released encoder; its decoder (`decoder.*`) is left out.

    Args:
        cells: False: fields, in overlapping tiles of 224 pixels, padded where they are smaller. True: crops of single
            cells of any size, padded to a square and resized to 224 (bilinear as OpenCV does, without antialiasing).
        tile_size_px: Side of a tile, a multiple of 2 ** (stages - 1). Published: 224.

    Raises:
        ConfigError: If the side is below 1.
    """

    fixture: ClassVar[str] = "microsnoop"
    records: ClassVar[tuple[Record, ...]] = (
        Record(
            name="microsnoop",
            summary="Microsnoop, residual CNN trained on masked images of many kinds: 256 features per channel",
            location=WebFile(f"https://github.com/cellimnet/microsnoop-publish/raw/{_COMMIT}/output/models/{_FILE}"),
            license="Microsnoop, academic use only",
            restricted=True,
            citation="Xun et al. 2024, https://doi.org/10.1016/j.xinn.2023.100541",
            source="https://github.com/cellimnet/microsnoop-publish at 3f0b0ce",
            exported="only",
            input_domain="any",
            preparation="overlapping tiles of 224 (smaller images padded), scaled to their 1st and 99th percentiles",
            native_size_px=224,
            pooling="mean of the last map, scaled to length 1, per channel; mean over tiles",
            channel_rule="any channels, each on its own",
            embed_dim=256,
        ),
    )

    def __init__(self, cells: bool = False, tile_size_px: int = 224) -> None:
        if tile_size_px < 1:
            raise ConfigError(f"microsnoop: tile_size_px={tile_size_px} must be at least 1.")
        self.cells = cells
        self.tile_size_px = tile_size_px

    @classmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        """Whether a file has the blocks of Microsnoop's encoder, bare or under `model`, with `module.` or without."""
        tensors = checkpoint.entry("model")
        return _FIRST in tensors or _WRAPPED + _FIRST in tensors

    def convert(self, checkpoint: Checkpoint) -> Encoder:
        """Build the encoder from a training checkpoint or its `model`.

        Args:
            checkpoint: The authors' file.

        Raises:
            WeightsError: If keys are missing or left over.
        """
        tensors, wrapped = _unwrapped(checkpoint)
        source = str(checkpoint.path)
        theirs = {k: v for k, v in tensors.items() if not k.startswith("decoder.")}
        with without_memory():
            network = ResidualCNN(_widths(tensors, source))
        load_renamed(network, theirs, lambda given: _ENCODER.inwards(given, source), _ENCODER.outwards, source)
        encoder = Encoder(
            BagOfChannels(network),
            Chain([], input_domain="any"),
            input_size_px=self.tile_size_px,
            antialias=not self.cells,
            fit="pad_and_stretch" if self.cells else "pad",
            after_resize=Percentiles(1.0, 99.0, eps=1e-6),
            recipe=None if self.cells else Recipe(CropRule("tile", self.tile_size_px, tiling="overlap")),
        ).eval()
        encoder.card = {"exported": "only", "key_prefix": _WRAPPED if wrapped else ""}
        return encoder

    def to_authors(self, encoder: Encoder) -> dict[str, Tensor]:
        """Return the tensors under the authors' names, with `module.` where the file had it."""
        prefix = encoder.card.get("key_prefix", _WRAPPED)
        state = encoder.channels.backbone.state_dict()  # type: ignore[union-attr]
        return {prefix + name: tensor for name, tensor in _ENCODER.outwards(state).items()}

    @classmethod
    def from_golden(cls, record: Mapping[str, Any]) -> Self | None:
        """Take `microsnoop*` records."""
        return cls() if str(record.get("fixture", "")).startswith(cls.fixture) else None

    def replay(
        self,
        encoder: Encoder,
        checkpoint: Checkpoint,
        record: Mapping[str, Any],
        case: str,
        inputs: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        """Compute the features of fields or cells, or what the bare network and the decoder make of an image."""
        images, wanted = inputs["images"], record["cases"][case]["outputs"]
        if "last_map" in wanted:
            return self._bare(encoder, checkpoint, images, wanted)
        cells = type(self)(True, self.tile_size_px).convert(checkpoint).to(encoder.device, encoder.dtype)
        single_cells = "rescale" in case or "single-cell" in record["cases"][case]["words"].lower()
        own = cells if single_cells else encoder
        n_images, n_channels = images.shape[:2]
        names = [f"plane {i}" for i in range(n_channels)]
        pieces = cut(list(images), names, [str(i) for i in range(n_images)], own.recipe)
        parts = [own.features(batch) for batch in pieces.batches(names, len(pieces.crops))]
        rows = mean_rows(parts[0], pieces, n_channels)
        outputs = {"features": rows.reshape(n_images, -1)}
        if "tile_features_of_first_plane" in wanted:
            outputs["tile_features_of_first_plane"] = parts[0][: pieces.counts[0] * n_channels : n_channels]
        if "tokens_network_input_of_first_plane" in wanted:
            seen = network_batch(own, next(iter(pieces.batches(names, len(pieces.crops)))))
            outputs["tokens_network_input_of_first_plane"] = seen.planes[:1, :, ::4, ::4]
        return outputs

    def _bare(
        self, encoder: Encoder, checkpoint: Checkpoint, images: Tensor, wanted: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """Run the network on pixels from 0 to 1, and the decoder on its maps."""
        network: ResidualCNN = encoder.channels.backbone  # type: ignore[assignment]
        maps = network.maps(images.flatten(0, 1)[:, None].to(encoder.dtype) / 255)
        outputs = {"last_map": maps[-1], "features": style(maps[-1])}
        for name in wanted:
            match = re.fullmatch(r"reconstruction_every_(\d+)(?:st|nd|rd|th)_pixel", name)
            if match:
                step = int(match[1])
                decoder = self.read_decoder(checkpoint).to(encoder.device, encoder.dtype)
                outputs[name] = decoder(maps)[:, :, ::step, ::step]
        return outputs

    @staticmethod
    def read_decoder(checkpoint: Checkpoint) -> ResidualDecoder:
        """Return the decoder of a training checkpoint, which paints planes from the maps of the network.

        Args:
            checkpoint: The authors' file.

        Raises:
            WeightsError: If keys are missing or left over.
        """
        tensors, _ = _unwrapped(checkpoint)
        source = f"{checkpoint.path} (decoder)"
        with without_memory():
            decoder = ResidualDecoder(_widths(tensors, source))
        theirs = {k: v for k, v in tensors.items() if k.startswith("decoder.")}
        load_renamed(decoder, theirs, lambda given: _DECODER.inwards(given, source), _DECODER.outwards, source)
        return decoder.eval()


def _unwrapped(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], bool]:
    """Return the tensors without `module.`, and whether they had it."""
    tensors = checkpoint.under("", "model")
    wrapped = any(name.startswith(_WRAPPED) for name in tensors)
    return {name.removeprefix(_WRAPPED) if wrapped else name: tensor for name, tensor in tensors.items()}, wrapped


def _widths(tensors: Mapping[str, Tensor], source: str) -> tuple[int, ...]:
    """Read the widths of the stages off the shapes."""
    found: list[int] = []
    while (name := f"{_DOWN.format(i=len(found))}conv.conv_0.2.weight") in tensors:
        found.append(len(tensors[name]))
    if not found:
        raise WeightsError(f"{source} is no Microsnoop encoder: {_FIRST} is not among its {len(tensors)} tensors.")
    return tuple(found)
