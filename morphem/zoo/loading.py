"""`morphem.load`: an encoder by the name of a record, from the hub, from a folder or a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from morphem import weights
from morphem.encoder import Encoder
from morphem.errors import ConfigError, WeightsError, unknown_name
from morphem.sharded_checkpoints import is_sharded_checkpoint, read_sharded
from morphem.spec import from_spec
from morphem.zoo import catalogue
from morphem.zoo.base import Checkpoint, Computed, HubFile

_CHECKPOINTS = (".ckpt", ".pth", ".pt", ".bin", ".safetensors")


def load(
    name_or_path: str | Path,
    *,
    family: str | None = None,
    revision: str | None = None,
    local_files_only: bool | None = None,
    **facts: Any,
) -> Encoder:
    """Load an encoder, ready to embed.

    Args:
        name_or_path: Name of a record (`morphem models list`; a folder of the same name is `./NAME`); a folder that
            `save_pretrained` wrote; the folder of a run (its exported encoder, or else its last checkpoint); a
            checkpoint of morphem, or the file of a known family; or `owner/name` on the hub.
        family: Short name of the family that a file is of, where it cannot be told from the file.
        revision: Commit, tag or branch, for records and hub ids.
        local_files_only: Look in the caches only; where not given, as `HF_HUB_OFFLINE` says.
        facts: What the file cannot show, as the constructor of the family takes it, for example `n_heads=12`.

    Raises:
        WeightsError: If there is no such model, it holds more than weights, or it does not fit its architecture.
        ConfigError: If the family does not know a fact, or the model takes none.
    """
    path, name = Path(name_or_path), str(name_or_path)
    entry = None if name.startswith((".", "/", "~")) else catalogue.find(name)
    if path.exists() and (entry is None or name != entry.record.name):
        if revision is not None:
            raise WeightsError(f"'{name}' is a file or folder; a revision ('{revision}') belongs to the hub.")
        return _from_folder(path, family, facts) if path.is_dir() else _from_file(path, family, facts)
    if entry is not None:
        return _from_entry(entry, revision, local_files_only, facts)
    if path.suffix in _CHECKPOINTS or not weights.is_hub_id(name) or name.startswith((".", "/", "~")):
        hint = unknown_name("model", name, catalogue.list_models())
        raise WeightsError(f"'{name}' is neither a file, a folder nor a hub id (owner/name). {hint}")
    _no_facts(name, family, facts)
    return Encoder.from_pretrained(name, revision, local_files_only)


def _no_facts(source: str, family: str | None, facts: Mapping[str, Any]) -> None:
    named = ([f"family='{family}'"] if family else []) + list(facts)
    if named:
        raise ConfigError(f"{', '.join(named)} has no effect on {source}, which says itself what it is; leave it out.")


def _from_entry(
    entry: catalogue.Entry, revision: str | None, local_files_only: bool | None, facts: Mapping[str, Any]
) -> Encoder:
    """Load a record."""
    location = entry.record.location
    if isinstance(location, Computed):
        if revision is not None:
            raise WeightsError(f"'{entry.record.name}' is computed; it has no revision ('{revision}').")
        encoder = catalogue.build(entry.family, entry.cls, {**entry.record.facts, **facts}).build()
        encoder.origin = {"model": entry.record.name}
        return encoder
    if not isinstance(location, HubFile):
        raise WeightsError(f"'{entry.record.name}' cannot be fetched; give its file.")
    files = [location.file, *location.sidecars]
    folder = weights.fetch(location.hub_id, files, revision or location.revision, local_files_only)
    checkpoint = Checkpoint.read(folder / location.file)
    family = catalogue.build(entry.family, entry.cls, {**entry.record.facts, **facts})
    encoder = family.convert(checkpoint)
    encoder.origin = {"model": location.hub_id, "revision": folder.name}
    encoder.card = {
        "exported": entry.record.exported,
        "license": entry.record.license,
        "source": entry.record.source,
        **encoder.card,
    }
    return encoder


def _from_folder(folder: Path, family: str | None, facts: Mapping[str, Any]) -> Encoder:
    """Load from a folder in hub form, from a checkpoint that is a folder, or from the folder of a run."""
    if is_sharded_checkpoint(folder):
        _no_facts(str(folder), family, facts)
        return load_checkpoint(folder)
    for place in (folder, folder / "encoder"):
        if (place / weights.CONFIG_FILE).is_file():
            return _from_hub_form(place, family, facts)
    found = sorted(folder.rglob("*.ckpt"))
    last = [path for path in found if path.name == "last.ckpt"]
    chosen = last if len(last) == 1 else found
    if len(chosen) == 1:
        return load_checkpoint(chosen[0]) if chosen[0].is_dir() else _from_file(chosen[0], family, facts)
    if not found:
        raise WeightsError(f"{folder} holds no {weights.CONFIG_FILE}, no folder 'encoder' and no checkpoint (*.ckpt).")
    shown = ", ".join(str(path.relative_to(folder)) for path in chosen[:4])
    raise WeightsError(f"{folder} holds {len(chosen)} checkpoints ({shown}{', ...' * (len(chosen) > 4)}); name one.")


def _from_hub_form(folder: Path, family: str | None, facts: Mapping[str, Any]) -> Encoder:
    """Load a folder of ours, or the download of a family whose config names no format of ours."""
    config = weights.read_config(folder)
    if "format_version" not in config and (folder / weights.WEIGHTS_FILE).is_file():
        return _from_file(folder / weights.WEIGHTS_FILE, family, facts)
    _no_facts(str(folder), family, facts)
    return Encoder.from_pretrained(folder)


def _from_file(path: Path, family: str | None, facts: Mapping[str, Any]) -> Encoder:
    """Load a training checkpoint of ours, or the file of a family."""
    checkpoint = Checkpoint.read(path)
    if isinstance(checkpoint.content.get("morphem"), Mapping):
        _no_facts(str(path), family, facts)
        return _from_content(checkpoint.content, str(path))
    if path.name == weights.WEIGHTS_FILE and "format_version" in checkpoint.sidecars.get(weights.CONFIG_FILE, {}):
        return _from_hub_form(path.parent, family, facts)
    name, cls = catalogue.recognise(checkpoint, family)
    encoder = catalogue.build(name, cls, facts).convert(checkpoint)
    encoder.origin = {"model": str(path)}
    licenses = {record.license for record in cls.records}
    card = {"source": cls.records[0].source, **({"license": licenses.pop()} if len(licenses) == 1 else {})}
    encoder.card = {**card, **encoder.card}
    return encoder


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
