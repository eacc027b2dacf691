"""Encoders that are trained already: by name, from the hub, from a folder or a checkpoint.

Only data is read: safetensors, or pickles restricted to weights.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from morphem import registry, weights
from morphem.encoder import Encoder
from morphem.errors import WeightsError, unknown_name
from morphem.sharded_checkpoints import is_sharded_checkpoint, read_sharded
from morphem.spec import from_spec
from morphem.zoo.base import Pretrained, Record

__all__ = ["Pretrained", "Record", "list_models", "load", "load_checkpoint"]

_CHECKPOINTS = (".ckpt", ".pth", ".pt")


def list_models() -> list[str]:
    """Return the names of all registered encoders, without loading any."""
    return registry.names("zoo")


def load(name_or_path: str | Path, *, revision: str | None = None, local_files_only: bool | None = None) -> Encoder:
    """Load an encoder, ready to embed.

    Args:
        name_or_path: A name of the zoo (a folder of the same name is `./NAME`); a folder that `save_pretrained` wrote;
            the folder of a run (its exported encoder, or else its last checkpoint); a checkpoint of morphem or of
            CHAMMI-75's DINO; or `owner/name` on the hub.
        revision: Commit, tag or branch, for names and hub ids.
        local_files_only: Look in the hub's cache only; where not given, as `HF_HUB_OFFLINE` says.

    Raises:
        WeightsError: If there is no such model, it holds more than weights, or it does not fit its architecture.
    """
    path, name = Path(name_or_path), str(name_or_path)
    if path.exists() and name not in list_models():  # a folder of that name is ./NAME
        if revision is not None:
            raise WeightsError(f"'{name}' is a file or folder; a revision ('{revision}') belongs to the hub.")
        return _from_folder(path) if path.is_dir() else _from_file(path)
    known = _known(name)
    if known is not None:
        return known.load(revision=revision, local_files_only=local_files_only)
    if path.suffix in _CHECKPOINTS or not weights.is_hub_id(name) or name.startswith((".", "/", "~")):
        hint = unknown_name("model", name, list_models())
        raise WeightsError(f"'{name}' is neither a file, a folder nor a hub id (owner/name). {hint}")
    return Encoder.from_pretrained(name, revision, local_files_only)


def _known(name: str) -> Pretrained | None:
    """Return the registered model of a short name or hub id, or None."""
    if name in registry.names("zoo"):
        model: Pretrained = registry.get("zoo", name)()
        return model
    if not weights.is_hub_id(name):
        return None
    # only our own records are asked for a hub id: another package's may not even be importable
    ours = [plugin for plugin in registry.plugins("zoo") if plugin.target.startswith("morphem.")]
    return next((model for model in (plugin.load()() for plugin in ours) if model.record.hub_id == name), None)


def _from_folder(folder: Path) -> Encoder:
    """Load from a folder in hub form, from a checkpoint that is a folder, or from the folder of a run."""
    if is_sharded_checkpoint(folder):
        return load_checkpoint(folder)
    for place in (folder, folder / "encoder"):
        if (place / weights.CONFIG_FILE).is_file():
            return _from_hub_form(place)
    found = sorted(folder.rglob("*.ckpt"))
    last = [path for path in found if path.name == "last.ckpt"]
    chosen = last if len(last) == 1 else found
    if len(chosen) == 1:
        return load_checkpoint(chosen[0]) if chosen[0].is_dir() else _from_file(chosen[0])
    if not found:
        raise WeightsError(f"{folder} holds no {weights.CONFIG_FILE}, no folder 'encoder' and no checkpoint (*.ckpt).")
    shown = ", ".join(str(path.relative_to(folder)) for path in chosen[:4])
    raise WeightsError(f"{folder} holds {len(chosen)} checkpoints ({shown}{', ...' * (len(chosen) > 4)}); name one.")


def _from_hub_form(folder: Path) -> Encoder:
    """Load a folder of ours, or the download of the one foreign model whose config names no format of ours."""
    config = weights.read_config(folder)
    if "format_version" not in config and (folder / weights.WEIGHTS_FILE).is_file():
        from morphem.zoo.morphem import MorphEm

        return MorphEm().load(folder)
    return Encoder.from_pretrained(folder)


def _from_file(path: Path) -> Encoder:
    """Load a training checkpoint, or the bare weights of a known model."""
    if path.suffix == ".safetensors":
        beside = path.with_name(weights.CONFIG_FILE)
        if beside.is_file() and path.name == weights.WEIGHTS_FILE:
            return _from_folder(path.parent)
        from morphem.zoo.morphem import MorphEm

        return MorphEm().load(path)
    content = weights.read_checkpoint(path)
    if {"student", "teacher"} <= set(content):
        from morphem.zoo.morphem import MorphEm

        return MorphEm().convert_training(content, str(path))
    return _from_content(content, str(path))


def load_checkpoint(path: str | Path) -> Encoder:
    """Load the encoder that a morphem training checkpoint exports, without building its method.

    Args:
        path: A `.ckpt`, or the folder of a sharded one.

    Raises:
        WeightsError: If it is of another program, holds more than data, or does not fit its own architecture.
    """
    content = read_sharded(path) if is_sharded_checkpoint(path) else weights.read_checkpoint(Path(path))
    return _from_content(content, str(path))


def _from_content(content: Mapping[str, Any], source: str) -> Encoder:
    ours = content.get("morphem")
    if not isinstance(ours, Mapping) or not {"spec", "exported"} <= set(ours):
        raise WeightsError(
            f"{source} was not written by morphem (it has no 'morphem' entry; its keys are "
            f"{', '.join(map(str, content))}); give a morphem checkpoint, or a folder with {weights.CONFIG_FILE}."
        )
    spec = ours["spec"].get("init_args", {}).get("encoder")
    if spec is None:
        raise WeightsError(f"{source} says nothing of its encoder; it is damaged, or of another version.")
    encoder = from_spec(spec)
    prefix = ours["exported"]
    tensors = {
        name.removeprefix(prefix): tensor for name, tensor in content["state_dict"].items() if name.startswith(prefix)
    }
    weights.load_strictly(encoder, tensors, f"{source} ({prefix}*)")
    encoder.origin = {"model": source}
    return encoder.eval()  # type: ignore[no-any-return]
