"""`morphem.load`: an encoder by the name of a record, from the hub, from a folder or a file."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from morphem import weights
from morphem.encoder import Encoder
from morphem.errors import ConfigError, WeightsError, unknown_name
from morphem.sharded_checkpoints import is_sharded_checkpoint, read_sharded
from morphem.spec import from_spec
from morphem.zoo import catalogue, download
from morphem.zoo.base import Checkpoint, Computed, Pretrained

_SUFFIXES = (".ckpt", ".pth", ".pt", ".bin", ".safetensors")


def load(
    name_or_path: str | Path,
    *,
    family: str | None = None,
    record: str | None = None,
    revision: str | None = None,
    local_files_only: bool | None = None,
    accept_license: bool = False,
    inert: Collection[str] = (),
    **facts: Any,
) -> Encoder:
    """Load an encoder, ready to embed.

    Args:
        name_or_path: Name of a record (`morphem models list`; a folder of the same name is `./NAME`); a folder that
            `save_pretrained` wrote; the folder of a run (its exported encoder, or else its last checkpoint); a
            checkpoint of morphem, or the file of a known family; or `owner/name` on the hub.
        family: Short name of the family that a file is of, where it cannot be told from the file.
        record: Name of the record that a file is of; it says the family, and what the file cannot show.
        revision: Commit, tag or branch, for records and hub ids.
        local_files_only: Look in the caches only; where not given, as `HF_HUB_OFFLINE` says.
        accept_license: Accept a licence that restricts use; needed once per record and machine.
        inert: Dotted names of classes that a pickled file may name beyond the usual ones; they are never built.
        facts: What the file cannot show, as the constructor of the family takes it, for example `n_heads=12`.

    Raises:
        WeightsError: If there is no such model, it holds more than weights, or it does not fit its architecture; if
            its licence was not accepted; if its file is neither here nor to be had.
        ConfigError: If the family does not know a fact, or the model takes none.
    """
    path, name = Path(name_or_path).expanduser(), str(name_or_path)
    is_path = name.startswith((".", "/", "~"))
    entry = None if is_path else catalogue.find(name)
    if path.exists() and (entry is None or name != entry.record.name):
        if revision is not None:
            raise WeightsError(f"'{name}' is a file or folder; a revision ('{revision}') belongs to the hub.")
        how = _How(family, record, facts, inert)
        return (
            _from_folder(path.expanduser(), how) if path.expanduser().is_dir() else _from_file(path.expanduser(), how)
        )
    if entry is not None:
        _belongs_to_files(name, family, record)
        return _from_entry(entry, revision, local_files_only, accept_license, inert, facts)
    if path.suffix in _SUFFIXES or not weights.is_hub_id(name) or is_path:
        hint = unknown_name("model", name, catalogue.list_models())
        raise WeightsError(f"'{name}' is neither a file, a folder nor a hub id (owner/name). {hint}")
    if family or record or facts:
        raise ConfigError(
            f"'{name}' is no record of the zoo, so it has to be an encoder of morphem, which says itself what it is; "
            "if it is of a known family, download its file and give the path with family=... or record=..."
        )
    return Encoder.from_pretrained(name, revision, local_files_only)


@dataclass(frozen=True)
class _How:
    """What the user says of a file; see `load`."""

    family: str | None
    record: str | None
    facts: Mapping[str, Any]
    inert: Collection[str]


def _no_facts(source: str, how: _How) -> None:
    named = [f"{key}='{value}'" for key, value in (("family", how.family), ("record", how.record)) if value]
    named += list(how.facts)
    if named:
        raise ConfigError(f"{', '.join(named)} has no effect on {source}, which says itself what it is; leave it out.")


def _belongs_to_files(name: str, family: str | None, record: str | None) -> None:
    if family or record:
        said = f"family='{family}'" if family else f"record='{record}'"
        raise ConfigError(f"{said} has no effect on '{name}', which is a record itself; it is for files; leave it out.")


def _from_entry(
    entry: catalogue.Entry,
    revision: str | None,
    local_files_only: bool | None,
    accept_license: bool,
    inert: Collection[str],
    facts: Mapping[str, Any],
) -> Encoder:
    """Load a record."""
    family = catalogue.build(entry.family, entry.cls, {**entry.record.facts, **facts})
    if isinstance(entry.record.location, Computed):
        if revision is not None:
            raise WeightsError(f"'{entry.record.name}' is computed; it has no revision ('{revision}').")
        with torch.random.fork_rng():
            encoder, origin = family.build(), {"model": entry.record.name}
    else:
        fetched = download.fetch(
            entry.record, revision=revision, local_files_only=local_files_only, accept_license=accept_license
        )
        encoder = _converted(family, Checkpoint.read(fetched.path, inert))
        origin = {"model": entry.record.name, "revision": fetched.revision}
    encoder.origin = origin
    encoder.card = {**_card(entry), **encoder.card}
    return encoder


def _card(entry: catalogue.Entry) -> dict[str, Any]:
    """Return what `config.json` keeps of a record: whoever gets the weights must know what they may do with them."""
    record = entry.record
    return {
        "record": record.name,
        "family": entry.family,
        "exported": record.exported,
        "license": record.license,
        "restricted": record.restricted,
        "citation": record.citation,
        "source": record.source,
        "input_domain": record.input_domain,
    }


def _converted(family: Pretrained, checkpoint: Checkpoint) -> Encoder:
    """Convert a file; the global random state stays as it was, though networks draw weights before they get theirs."""
    with torch.random.fork_rng():
        return family.convert(checkpoint)


def _from_folder(folder: Path, how: _How) -> Encoder:
    """Load from a folder in hub form, from a checkpoint that is a folder, or from the folder of a run."""
    if is_sharded_checkpoint(folder):
        _no_facts(str(folder), how)
        return load_checkpoint(folder)
    for place in (folder, folder / "encoder"):
        if (place / weights.CONFIG_FILE).is_file() and _is_ours(weights.read_config(place)):
            _no_facts(str(place), how)
            return Encoder.from_pretrained(place)
    found = sorted(folder.rglob("*.ckpt")) or sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES)
    last = [path for path in found if path.name == "last.ckpt"]
    chosen = last if len(last) == 1 else found
    if len(chosen) == 1:
        return load_checkpoint(chosen[0]) if chosen[0].is_dir() else _from_file(chosen[0], how)
    if not found:
        raise WeightsError(
            f"{folder} holds no {weights.CONFIG_FILE} of morphem, no folder 'encoder' and no file of weights "
            f"({', '.join(f'*{suffix}' for suffix in _SUFFIXES)})."
        )
    shown = ", ".join(str(path.relative_to(folder)) for path in chosen[:4])
    raise WeightsError(f"{folder} holds {len(chosen)} checkpoints ({shown}{', ...' * (len(chosen) > 4)}); name one.")


def _is_ours(config: Mapping[str, Any]) -> bool:
    return "format_version" in config


def _from_file(path: Path, how: _How) -> Encoder:
    """Load a training checkpoint of ours, or the file of a family."""
    checkpoint = Checkpoint.read(path, how.inert)
    if isinstance(checkpoint.content.get("morphem"), Mapping):
        _no_facts(str(path), how)
        return _from_content(checkpoint.content, str(path))
    if path.name == weights.WEIGHTS_FILE and _is_ours(checkpoint.sidecars.get(weights.CONFIG_FILE, {})):
        _no_facts(str(path), how)
        return Encoder.from_pretrained(path.parent)
    if how.record is not None:
        return _of_record(checkpoint, how)
    name, cls = catalogue.recognise(checkpoint, how.family)
    encoder = _converted(catalogue.build(name, cls, how.facts), checkpoint)
    encoder.origin = {"model": str(path)}
    encoder.card = {**_family_card(name, cls), **encoder.card}
    return encoder


def _of_record(checkpoint: Checkpoint, how: _How) -> Encoder:
    """Load a file as a record's, wherever it lies."""
    entry = catalogue.entries().get(str(how.record))
    if entry is None:
        raise WeightsError(unknown_name("record", str(how.record), catalogue.list_models()))
    if how.family not in (None, entry.family):
        raise ConfigError(f"the record '{how.record}' is of the family '{entry.family}', not '{how.family}'.")
    encoder = _converted(catalogue.build(entry.family, entry.cls, {**entry.record.facts, **how.facts}), checkpoint)
    encoder.origin = {"model": str(checkpoint.path)}
    encoder.card = {**_card(entry), **encoder.card}
    return encoder


def _family_card(name: str, cls: type[Pretrained]) -> dict[str, Any]:
    """Return what is known of a file of which only the family is: the licence where all records of it agree.

    Where they do not, and one of them restricts use, the file is taken for one that does; `record=` tells.
    """
    licenses = list(dict.fromkeys(record.license for record in cls.records))
    card: dict[str, Any] = {"family": name, "source": cls.records[0].source}
    card["restricted"] = any(record.restricted for record in cls.records)
    return {**card, **({"license": licenses[0]} if len(licenses) == 1 else {"possible_licenses": licenses})}


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
    with torch.random.fork_rng():
        encoder = from_spec(spec)
    prefix = ours["exported"]
    tensors = {
        name.removeprefix(prefix): tensor for name, tensor in content["state_dict"].items() if name.startswith(prefix)
    }
    weights.load_strictly(encoder, tensors, f"{source} ({prefix}*)")
    encoder.origin = {"model": source}
    encoder.card = dict(ours.get("card", {}))
    return encoder.eval()  # type: ignore[no-any-return]
