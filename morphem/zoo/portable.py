"""An encoder as a function of one tensor, for programs without morphem: torch.export and ONNX, each checked.

Pixels go in, features come out, in the order of the columns of `Encoder.embed`; normalising and resizing are inside.
The number of images, their channels and their size are fixed when the function is made: shapes that cannot vary cannot
be got wrong.
"""

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from morphem.encoder import Encoder, evaluating
from morphem.errors import WeightsError
from morphem.pickles import first_line
from morphem.recipe import Recipe
from morphem.types import ChannelBatch
from morphem.zoo.own_record import draw
from morphem.zoo.replaying import altered

PROGRAM_FILE = "encoder.pt2"
ONNX_FILE = "encoder.onnx"
NOTES_FILE = "portable.json"
_TOLERANCE = 1e-4  # relative to the largest feature; other kernels add in another order
_CONSTANTS = 1 << 20


class TensorForm(nn.Module):
    """Images of a fixed panel and size in, features out.

    Args:
        encoder: Any; its recipe's tiles are cut before (one call takes one piece).
        channels: Names of the planes, in their order.
        n_images: Images per call.

    Attributes:
        encoder: The encoder, without the noise on saturated pixels, which depends on the name of an image.
    """

    def __init__(self, encoder: Encoder, channels: Sequence[str], n_images: int) -> None:
        super().__init__()
        self.encoder = without_noise(encoder)
        self.names = [encoder.channels.resolve(name) for name in channels]
        self.n_images = n_images
        self.order = sorted(range(len(self.names)), key=lambda place: self.names[place])

    def forward(self, images: Tensor) -> Tensor:
        """Embed.

        Args:
            images: (n_images, C, H, W), of the type of the encoder's input domain.

        Returns:
            (n_images, features), float32, as `Encoder.embed(images, channels, recipe=Recipe())` gives.
        """
        planes = [list(image) for image in images]
        batch = ChannelBatch.from_planes(planes, [self.names] * self.n_images)
        features = self.encoder.features(batch)
        if self.encoder.per_channel:
            features = features.reshape(self.n_images, len(self.names), -1)[:, self.order].flatten(1)
        if self.encoder.recipe.unit_length:
            features = features / features.norm(dim=1, keepdim=True).clamp_min(1e-12)
        return features


def without_noise(encoder: Encoder) -> Encoder:
    """Return the encoder with the same weights that leaves saturated pixels as they are.

    Args:
        encoder: Any.
    """
    if not any(getattr(part, "saturation_noise", False) for part in encoder.normalizer.modules()):
        return encoder
    normalizer = copy.deepcopy(encoder.normalizer)
    for part in normalizer.modules():
        if getattr(part, "saturation_noise", False):
            part.saturation_noise = False  # type: ignore[assignment]
    return altered(encoder, normalizer=normalizer)


@contextlib.contextmanager
def _traceable() -> Iterator[None]:
    """Let torch.export see through what an encoder does around its network.

    The small integer tensors that say which plane is where depend on shapes alone, which are fixed; by default torch
    forgets the values of tensors of more than one number. And switching autocast off, where it is off anyway, would
    become a part of the program that torch cannot save.
    """
    import torch._subclasses.fake_tensor as fake
    import torch.fx.experimental.proxy_tensor as proxy

    modules: list[Any] = [fake, proxy]
    kept, autocast = [module.CONSTANT_NUMEL_LIMIT for module in modules], torch.autocast
    try:
        for module in modules:
            module.CONSTANT_NUMEL_LIMIT = _CONSTANTS
        torch.autocast = lambda *_, **__: contextlib.nullcontext()  # type: ignore[assignment, misc]
        yield
    finally:
        torch.autocast = autocast  # type: ignore[misc]
        for module, limit in zip(modules, kept, strict=True):
            module.CONSTANT_NUMEL_LIMIT = limit


def trace(form: TensorForm, example: Tensor) -> Any:
    """Return the function as an exported program of torch.

    Args:
        form: The encoder.
        example: Images of the shape and type that it shall take.

    Raises:
        WeightsError: If torch cannot export it.
    """
    try:
        with evaluating(form), _traceable(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(form, (example,), strict=False)
    except Exception as fault:  # whatever torch's tracer meets in a stranger's encoder
        raise WeightsError(f"torch.export cannot take this encoder apart: {first_line(fault)}") from fault


def write_program(program: Any, form: TensorForm, example: Tensor, folder: Path) -> float:
    """Save an exported program, and compare what the saved file gives with the encoder.

    Returns:
        The largest absolute difference.

    Raises:
        WeightsError: If it gives something else.
    """
    path = folder / PROGRAM_FILE
    torch.export.save(program, path)
    loaded = torch.export.load(path).module()
    return _checked(path, form, example, lambda images: loaded(images))


def write_onnx(program: Any, form: TensorForm, example: Tensor, folder: Path) -> float:
    """Save an exported program as ONNX, and compare what onnxruntime makes of it with the encoder.

    Returns:
        The largest absolute difference.

    Raises:
        WeightsError: If onnx is not installed, cannot express the encoder, or gives something else.
    """
    runtime = _onnx()
    path = folder / ONNX_FILE
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                program, dynamo=True, input_names=["images"], output_names=["features"], verbose=False
            )
        made.save(str(path))  # type: ignore[union-attr]
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as fault:  # the exporter and the runtime raise classes of their own
        # the exporter's own message is a page about itself; what it could not translate stands in the cause
        raise WeightsError(f"ONNX cannot express this encoder: {first_line(fault.__cause__ or fault)}") from fault
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    return _checked(
        path, form, example, lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    )


def require_onnx() -> None:
    """Refuse early where ONNX is asked for and not installed.

    Raises:
        WeightsError: With the command that installs it.
    """
    _onnx()


def _onnx() -> Any:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as fault:
        raise WeightsError(
            f"ONNX needs packages that are not installed ({fault.name}): pip install 'morphem[onnx]'."
        ) from fault
    return onnxruntime


def _checked(path: Path, form: TensorForm, example: Tensor, run: Any) -> float:
    """Compare on the example and on other images; a file that gives something else is not kept."""
    worst = 0.0
    domain = form.encoder.input_domain
    for images in (example, draw(tuple(example.shape), domain, seed=1)):
        channels, recipe = form.names, Recipe(unit_length=form.encoder.recipe.unit_length)
        expected = torch.from_numpy(form.encoder.embed(list(images), channels, recipe=recipe).values)
        found = run(images).detach()
        difference = (found - expected).abs().max().item() if found.shape == expected.shape else float("nan")
        if not difference <= _TOLERANCE * max(1.0, expected.abs().max().item()):
            path.unlink()
            raise WeightsError(f"{path.name} gives other features than the encoder (difference {difference:.1e}).")
        worst = max(worst, difference)
    return worst


def write_notes(form: TensorForm, example: Tensor, folder: Path, files: dict[str, float]) -> None:
    """Say what the portable files take and give, in `portable.json`.

    Args:
        form: The encoder.
        example: Images as they take them.
        folder: Where they are.
        files: Largest difference from the encoder, by file.
    """
    notes = {
        "input": {
            "name": "images",
            "shape": list(example.shape),
            "axes": ["image", "channel", "y", "x"],
            "type": str(example.dtype).removeprefix("torch."),
            "domain": form.encoder.input_domain,
            "channels": form.names,
        },
        "output": {
            "name": "features",
            "columns": list(form.encoder.embed(list(example[:1]), form.names, recipe=Recipe()).columns),
        },
        "noise_on_saturated_pixels": "left out",
        "one_piece_per_image": not form.encoder.recipe.whole_image,
        "largest_difference": files,
    }
    (folder / NOTES_FILE).write_text(json.dumps(notes, indent=2) + "\n", encoding="utf-8")
