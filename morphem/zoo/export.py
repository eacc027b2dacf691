"""`morphem models export` and `convert`: an encoder as a folder that anybody can load, verify, cite and use."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from morphem import weights
from morphem.encoder import Encoder
from morphem.errors import ConfigError, WeightsError
from morphem.zoo import card, licences, own_record, portable

RECIPE_FILE = "recipe.yaml"
_OURS = (
    own_record.RECORD_FILE,
    own_record.TENSORS_FILE,
    portable.PROGRAM_FILE,
    portable.ONNX_FILE,
    f"{portable.ONNX_FILE}.data",
    portable.NOTES_FILE,
    RECIPE_FILE,
)


@dataclass(frozen=True)
class Portable:
    """Forms for programs without morphem.

    Attributes:
        torch_export: Whether to write `encoder.pt2`.
        onnx: Whether to write `encoder.onnx`.
        channels: Names of the planes that they take; the encoder's own, or the first that it takes, where not given.
        size_px: Height and width that they take; the encoder's native size where not given.
        n_images: Images per call.
    """

    torch_export: bool = False
    onnx: bool = False
    channels: tuple[str, ...] = ()
    size_px: tuple[int, int] | None = None
    n_images: int = 1

    def __post_init__(self) -> None:
        """Check that no setting is without effect."""
        if not (self.torch_export or self.onnx) and (self.channels or self.size_px or self.n_images != 1):
            raise ConfigError("channels, size and images per call belong to --torch-export and --onnx; ask for one.")


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: Where.
        cases: Names of the cases of the golden record.
        portable: Largest difference from the encoder, by file.
    """

    folder: Path
    cases: tuple[str, ...]
    portable: dict[str, float] = field(default_factory=dict)


def export(
    encoder: Encoder,
    folder: str | Path,
    *,
    name: str | None = None,
    license: str | None = None,  # noqa: A002
    run: str | Path | None = None,
    scores: Sequence[str | Path] = (),
    forms: Portable | None = None,
) -> Exported:
    """Write `config.json`, `model.safetensors`, a model card and a golden record, and what else is asked for.

    Args:
        encoder: Any, as `morphem.load` gives it.
        folder: Made where it does not exist; what an earlier export left there is replaced.
        name: What the model is called; the name of the folder where not given.
        license: Of the weights, as the hub spells it (`mit`, `cc-by-nc-4.0`); what the encoder's card says where not
            given.
        run: Folder of the run that made it, for the recipe (its `config.yaml`).
        scores: JSON files that `morphem benchmark` wrote.
        forms: Portable forms.

    Raises:
        ConfigError: If a licence of one's own is put on weights whose licence restricts use.
        WeightsError: If the folder cannot be written, or a form gives other features than the encoder.
    """
    folder, forms = Path(folder), forms or Portable()
    if forms.onnx:
        portable.require_onnx()
    name = name or folder.resolve().name
    facts = _with_license(encoder.card, license)
    recipe = _recipe_of(run)
    results = [_scores(Path(path)) for path in scores]
    for file in _OURS:
        (folder / file).unlink(missing_ok=True)
    encoder.save_pretrained(folder, card={**facts, "name": name})
    if recipe is not None:
        shutil.copyfile(recipe, folder / RECIPE_FILE)
    saved = Encoder.from_pretrained(folder)
    cases = own_record.write(saved, folder, name)
    files = _write_forms(saved, folder, forms)
    text = card.model_card(saved, name, facts, recipe=recipe, scores=results, cases=cases, files=files)
    (folder / "README.md").write_text(text, encoding="utf-8")
    return Exported(folder, tuple(cases), files)


def _with_license(facts: dict[str, Any], license: str | None) -> dict[str, Any]:  # noqa: A002
    if license is None:
        return dict(facts)
    if facts.get("restricted") and str(facts.get("license")).lower() != license.lower():
        tell = "" if facts.get("license") else ", or say with --record what the file is"
        raise ConfigError(
            f"these weights come from '{facts.get('record') or facts.get('family')}' under the licence "
            f"{licences.stated(facts)}, which restricts their use; '{license}' cannot take its place: leave --license "
            f"out{tell}."
        )
    return {**{key: value for key, value in facts.items() if key != "possible_licenses"}, "license": license}


def _recipe_of(run: str | Path | None) -> Path | None:
    if run is None:
        return None
    places = [Path(run) / "config.yaml", Path(run).parent / "config.yaml"]
    return next((place for place in places if place.is_file()), None)


def _scores(path: Path) -> dict[str, Any]:
    """Read the scores of a benchmark."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise WeightsError(f"{path} holds no scores ({fault}); give a JSON file of `morphem benchmark`.") from fault
    if not isinstance(content, dict) or not isinstance(content.get("scores"), dict):
        raise WeightsError(f"{path} holds no scores (it has no object 'scores').")
    return content


def _write_forms(encoder: Encoder, folder: Path, forms: Portable) -> dict[str, float]:
    """Write the portable forms that are asked for, each compared with the encoder."""
    if not (forms.torch_export or forms.onnx):
        return {}
    channels = list(forms.channels) or own_record.channel_sets(encoder)[-1]
    side = encoder.input_size_px or 224
    shape = (forms.n_images, len(channels), *(forms.size_px or (side, side)))
    form = portable.TensorForm(encoder, channels, forms.n_images)
    example = own_record.draw(shape, encoder.input_domain, seed=0)
    program = portable.trace(form, example)
    files: dict[str, float] = {}
    if forms.torch_export:
        files[portable.PROGRAM_FILE] = portable.write_program(program, form, example, folder)
    if forms.onnx:
        files[portable.ONNX_FILE] = portable.write_onnx(program, form, example, folder)
    portable.write_notes(form, example, folder, files)
    return files


def push_to_hub(folder: str | Path, hub_id: str, *, private: bool = False) -> str:
    """Upload an exported folder to the Hugging Face hub.

    Args:
        folder: What `export` wrote.
        hub_id: `owner/name`; made where it does not exist.
        private: Whether a new repository is private.

    Returns:
        Address of the commit.

    Raises:
        WeightsError: If it has no licence, or one that restricts use (weights of others are never mirrored), or the
            hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    folder = Path(folder)
    config = weights.read_config(folder)
    check_may_be_published(config, str(folder))
    if not weights.is_hub_id(hub_id):
        raise WeightsError(f"'{hub_id}' is no hub id; it has the form owner/name.")
    if weights.is_offline():
        raise WeightsError(f"'{hub_id}' cannot be written to offline; unset HF_HUB_OFFLINE.")
    files = [weights.CONFIG_FILE, weights.WEIGHTS_FILE, "README.md", *_OURS]
    try:
        api = HfApi(library_name="morphem")
        api.create_repo(hub_id, private=private, exist_ok=True)
        message = f"{config.get('name', folder.name)}, exported by morphem {config.get('morphem_version')}"
        done = api.upload_folder(repo_id=hub_id, folder_path=str(folder), allow_patterns=files, commit_message=message)
    except (HfHubHTTPError, HFValidationError, OSError) as fault:
        reason = str(fault).strip().splitlines()[0] if str(fault).strip() else type(fault).__name__
        raise WeightsError(f"'{hub_id}' cannot be written ({reason}); log in with `hf auth login`.") from fault
    return str(getattr(done, "commit_url", done))


def check_may_be_published(config: dict[str, Any], what: str) -> None:
    """Refuse to publish weights without a licence, or of others under one that restricts use.

    Args:
        config: Content of `config.json`, or the card of an encoder.
        what: What they are, for the message.

    Raises:
        WeightsError: If so.
    """
    if config.get("restricted"):
        raise WeightsError(
            f"{what} holds weights of others under {licences.stated(config)} ({config.get('source')}), which restricts "
            "their use; morphem never mirrors such weights."
        )
    if not config.get("license"):
        raise WeightsError(f"{what} states no licence, so nobody could use it; export it again with --license.")
