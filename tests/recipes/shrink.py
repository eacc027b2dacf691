"""Recipes at the size of a test: everything a recipe says stays, but for widths, sides, batches and the length."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests import small_shards

CONFIGS = Path(__file__).parents[2] / "configs"
WIDTHS = {"n_prototypes": 32, "head_hidden_dim": 16, "head_bottleneck_dim": 16, "head_output_dim": 16}
_TINY = {"patch_size_px": 8, "image_size_px": 32, "embed_dim": 16, "depth": 2, "n_heads": 2}
BACKBONES = {"vit": _TINY, "post_norm_vit": {**_TINY, "hidden_dim": 32}, "parallel_vit": {**_TINY, "mlp_ratio": 2}}


def read(name: str) -> dict[str, Any]:
    """The content of a shipped config."""
    content: dict[str, Any] = yaml.safe_load((CONFIGS / name).read_text())
    return content


def names() -> tuple[list[str], list[str]]:
    """Shipped recipes, which name a method, and overlays, which change one (curation has a form of its own)."""
    shipped = sorted(path.name for path in CONFIGS.glob("*.yaml") if "steps" not in read(path.name))
    recipes = [name for name in shipped if "class_path" in read(name).get("model", {})]
    return recipes, [name for name in shipped if name not in recipes]


def parts(settings: Any, class_path: str) -> Iterator[dict[str, Any]]:
    """Every part of some settings that has a class path."""
    for value in settings.values() if isinstance(settings, dict) else settings if isinstance(settings, list) else ():
        yield from parts(value, class_path)
    if isinstance(settings, dict) and settings.get("class_path") == class_path:
        yield settings


def small(recipe: str) -> dict[str, Any]:
    """Return a recipe with small numbers in place of its large ones."""
    settings = copy.deepcopy(read(recipe))
    model = settings["model"]["init_args"]
    for name, changes in BACKBONES.items():
        for part in parts(model, name):
            part["init_args"] = {**part.get("init_args", {}), **changes}
    model.update({key: value for key, value in WIDTHS.items() if key in model or _takes(settings, key)})
    if "decoder" in model:
        model["decoder"] = {**model["decoder"], "width": 16, "depth": 1, "n_heads": 2}
    for part in parts(model, "memory_fusion"):
        part["init_args"]["n_heads"] = 2
    model["encoder"]["init_args"]["input_size_px"] = 32
    largest = max(view["size_px"] for view in model["views"]["init_args"]["recipes"])
    for view in model["views"]["init_args"]["recipes"]:
        view["size_px"] = 32 if view["size_px"] == largest else 16
    settings["trainer"] |= {"accelerator": "cpu", "devices": 1, "max_steps": 2, "enable_progress_bar": False}
    settings["data"] |= {"batch_size": 4, "num_workers": 0}
    return settings


def _takes(settings: dict[str, Any], key: str) -> bool:
    """Whether a method has a default of this name, which would be too wide for a test."""
    heads = {"dino": WIDTHS.keys() - {"head_output_dim"}, "dinov2": WIDTHS.keys() - {"head_output_dim"}}
    heads["simclr"] = heads["supcon"] = {"head_hidden_dim", "head_output_dim"}
    return key in heads.get(settings["model"]["class_path"], set())


def channels(recipe: str) -> list[list[str]]:
    """Channel types of the images that a recipe is tried on: those that it names, else five of Cell Painting."""
    model = read(recipe)["model"]["init_args"]
    for part in parts(model, "fixed_channels"):
        return [part["init_args"]["channels"]] * 2
    named = (model.get("decoder") or {}).get("channels")
    for part in parts(model, "channel_attention"):
        named = [
            name for name in ("nucleus", "mitochondria", "rna", "protein") if name in part["init_args"]["vocabulary"]
        ]
    return [named or ["nucleus", "actin", "rna"], [(named or ["nucleus"])[0]]]


def shards(root: Path, panels: list[list[str]], **rows: str) -> str:
    """Write eight images of two reagents; return the folder."""
    images = [
        small_shards.image(
            f"image{i}", panels[i % len(panels)], (40, 48), cells=3, **{"experiment.reagent": f"r{i // 2 % 2}", **rows}
        )
        for i in range(8)
    ]
    return small_shards.write(root, images, rows.get("experiment.study", "study"))
