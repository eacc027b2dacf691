"""The golden record that our own exports carry: inputs drawn from a seed, and what the encoder gives for them."""

import json
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from morphem import weights
from morphem.data.schema import channel_vocabulary
from morphem.encoder import Encoder, evaluating
from morphem.errors import MorphemError, WeightsError
from morphem.vocabulary import Vocabulary

RECORD_FILE = "golden.json"
TENSORS_FILE = "golden.safetensors"
_FORMAT = "morphem export 1"
_LARGEST = 5  # channels
_TOLERANCE = 2e-5


class OwnExport:
    """A folder that `morphem models export` wrote.

    Args:
        folder: With `config.json`, `model.safetensors` and the golden record.
    """

    file = weights.WEIGHTS_FILE

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def is_own(record: Mapping[str, Any]) -> bool:
        """Whether a golden record is of one of our own exports."""
        return record.get("format") == _FORMAT

    def load(self) -> Encoder:
        """Load the exported encoder."""
        return Encoder.from_pretrained(self.folder)

    @staticmethod
    def replay_with(encoder: Encoder) -> Callable[[str, Mapping[str, Any]], dict[str, Tensor]]:
        """Return the function that computes a case with an encoder."""
        return lambda case, inputs: {"features": features_of(encoder, inputs["images"], inputs["channels"])}


def features_of(encoder: Encoder, images: Tensor, channels: Sequence[str]) -> Tensor:
    """Embed images as a user would, (N, features), on the CPU.

    Args:
        encoder: Float32 or float64.
        images: (N, C, H, W), pixels of its input domain.
        channels: C names.
    """
    return torch.as_tensor(encoder.embed(list(images), channels).values)


def draw(shape: Sequence[int], domain: str, seed: int) -> Tensor:
    """Draw images that look a little like cells: soft blobs on a noisy background, not white noise alone.

    Args:
        shape: N, C, H, W.
        domain: Of the pixels: `uint8`, `uint16`, `unit`, or `any`, which gets bytes.
        seed: Of everything.
    """
    generator = torch.Generator().manual_seed(seed)
    _, _, height, width = shape
    noise = torch.rand(*shape, generator=generator)
    coarse = torch.rand(*shape[:2], max(2, height // 16), max(2, width // 16), generator=generator)
    blobs = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    unit = (0.8 * blobs**2 + 0.2 * noise).clamp(0, 1)
    if domain == "unit":
        return unit
    return (unit * 65535).to(torch.int32).to(torch.uint16) if domain == "uint16" else (unit * 255).to(torch.uint8)


def channel_sets(encoder: Encoder) -> list[list[str]]:
    """Return channel sets that an encoder takes: one channel, several, and as many as it can up to five.

    Args:
        encoder: Any.
    """
    fixed, vocabulary = own_channels(encoder)
    if fixed:
        return [fixed, fixed[::-1]] if len(fixed) > 1 else [fixed]
    seen = [] if vocabulary else encoder.card.get("channel_types", [])
    known = vocabulary or list(dict.fromkeys([*seen, *channel_vocabulary()]))
    sizes = sorted({1, min(2, len(known)), min(3, len(known)), min(_LARGEST, len(known))})
    return [known[:size] for size in sizes]


def own_channels(encoder: Encoder) -> tuple[list[str], list[str]]:
    """Return the panel that an encoder is fixed to, and the channel types that it knows; each empty where it has none.

    Args:
        encoder: Any.
    """
    fixed: list[str] = []
    known: list[str] = []
    for part in encoder.channels.modules():
        panel, vocabulary = getattr(part, "channels", None), getattr(part, "vocabulary", None)
        if isinstance(panel, list | tuple) and all(isinstance(name, str) for name in panel):
            fixed = fixed or list(panel)
        if isinstance(vocabulary, Vocabulary):
            known = known or list(vocabulary.names)
    return fixed, known


def write(encoder: Encoder, folder: Path, name: str, seed: int = 0) -> list[str]:
    """Write the golden record of an exported encoder into its folder.

    Args:
        encoder: What was exported.
        folder: Where it was exported to.
        name: What the record is called.
        seed: Of the inputs.

    Returns:
        Names of the cases.

    Raises:
        WeightsError: If the encoder takes none of the images.
    """
    tensors: dict[str, Tensor] = {}
    cases: dict[str, Any] = {}
    refused: dict[str, str] = {}
    wide = _double(folder)
    for number, (channels, size) in enumerate(_settings(encoder)):
        case = f"{len(channels)}_channels_{size[0]}x{size[1]}_{number}"
        images = draw((1, len(channels), *size), encoder.input_domain, seed + number)
        try:
            with evaluating(encoder):
                features = features_of(encoder, images, channels)
                exact = features_of(wide, images, channels)
        except MorphemError as fault:
            refused[case] = str(fault)
            continue
        tensors |= {f"{case}.images": images, f"{case}.features": features, f"{case}.features_f64": exact}
        error = (features.double() - exact.double()).abs().max().item()
        tolerance = max(_TOLERANCE, _TOLERANCE * features.abs().max().item(), 10 * error)
        cases[case] = {
            "inputs": {"images": f"{case}.images", "channels": list(channels)},
            "outputs": {"features": f"{case}.features"},
            "precision": {"features": {"suggested_absolute_tolerance_float32": float(f"{tolerance:.1e}")}},
        }
    if not cases:
        raise WeightsError(f"the encoder takes none of the images of its own record: {next(iter(refused.values()))}")
    record = {
        "format": _FORMAT,
        "fixture": name,
        "peer": "morphem",
        "container": {"file": weights.WEIGHTS_FILE},
        "recipe": ["morphem.load(this folder).embed(images, channels=channels)"],
        "seeds": {"inputs": seed},
        "cases": cases,
        "refused": refused,
        "environment": {"morphem": version("morphem"), "torch": torch.__version__, "device": "CPU"},
    }
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / TENSORS_FILE)
    weights.readable_by_others(folder / TENSORS_FILE)
    (folder / RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return list(cases)


def _double(folder: Path) -> Encoder:
    return Encoder.from_pretrained(folder).double()


def _settings(encoder: Encoder) -> list[tuple[list[str], tuple[int, int]]]:
    """Return channel sets and sizes to record: every set at the native size, the smallest at others too."""
    side = encoder.input_size_px or 224
    sets = channel_sets(encoder)
    others = [(side + 32, side + 32), (side, side + 16)]
    return [(channels, (side, side)) for channels in sets] + [(sets[0], size) for size in others]
