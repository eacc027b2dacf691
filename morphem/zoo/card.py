"""The model card of an export: what the weights are, what they take, how they were made, and what they may be used for.

What nobody said is said to be unknown; nothing is filled in.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from morphem.encoder import Encoder
from morphem.zoo import licences
from morphem.zoo.own_record import channel_sets, own_channels

_SPDX = {"mit", "apache-2.0", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-sa-4.0", "cc0-1.0"}
_DOMAINS = {
    "uint8": "8-bit pixels (0 to 255)",
    "uint16": "16-bit pixels (0 to 65535)",
    "unit": "floats from 0 to 1",
    "any": "pixels of any type",
}


def model_card(
    encoder: Encoder,
    name: str,
    facts: Mapping[str, Any],
    *,
    recipe: Path | None = None,
    scores: Sequence[Mapping[str, Any]] = (),
    cases: Sequence[str] = (),
    files: Mapping[str, float] | None = None,
) -> str:
    """Return `README.md` of an exported folder, with the front matter that the hub reads.

    Args:
        encoder: The exported encoder.
        name: What the model is called.
        facts: What its `config.json` says beyond the architecture.
        recipe: Config of the run that made it.
        scores: What `morphem benchmark` wrote.
        cases: Names of the cases of its golden record.
        files: Largest difference from the encoder, by portable file.
    """
    parts = [
        _front_matter(facts),
        f"# {name}",
        _summary(encoder),
        "## Use",
        _use(encoder),
        "## What it takes",
        _input(encoder),
        "## Where it comes from",
        _origin(facts),
        "## Training data",
        _data(facts, recipe),
        "## Recipe",
        _recipe(facts, recipe),
        "## Scores",
        _scores(facts, scores),
        "## Licence",
        _license(facts),
        "## Citation",
        str(facts.get("citation") or "Not stated."),
        "## Proof",
        _proof(cases, files or {}),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(facts: Mapping[str, Any]) -> str:
    lines = ["---", "library_name: morphem", "pipeline_tag: image-feature-extraction", "tags: [morphem, microscopy]"]
    license = str(facts.get("license") or "")  # noqa: A001
    if license.lower() in _SPDX:
        lines.append(f"license: {license.lower()}")
    elif license:
        lines += ["license: other", f"license_name: {license.lower().replace(' ', '-')}"]
    if facts.get("datasets"):
        lines.append(yaml.safe_dump({"datasets": facts["datasets"]}, default_flow_style=True).strip().strip("{}"))
    return "\n".join([*lines, "---"])


def _summary(encoder: Encoder) -> str:
    per = "channel" if encoder.per_channel else "image"
    n_weights = sum(tensor.numel() for tensor in encoder.parameters())
    return (
        f"An encoder for microscopy images: {encoder.embed_dim} features per {per}, {n_weights / 1e6:.1f} M weights, "
        f"channel strategy `{type(encoder.channels).__name__}`. `config.json` says how pixels are prepared; "
        "loading the folder does all of it."
    )


def _use(encoder: Encoder) -> str:
    channels = channel_sets(encoder)[-1][:3] if encoder.per_channel else channel_sets(encoder)[-1]
    names = ", ".join(f'"{channel}"' for channel in channels)
    return "\n".join(
        [
            "```python",
            "import morphem",
            "",
            'encoder = morphem.load("this folder or hub id")',
            f"table = encoder.embed(images, channels=[{names}])  # (N, {len(channels)}, H, W)",
            "```",
            "",
            "```",
            "morphem embed --model THIS_FOLDER --data shards/ --output features.parquet",
            "```",
        ]
    )


def _input(encoder: Encoder) -> str:
    side, recipe = encoder.input_size_px, encoder.recipe
    size = f"resized to {side} x {side} pixels ({encoder.interpolation})" if side else "not resized"
    lines = [
        f"* Pixels: {_DOMAINS.get(encoder.input_domain, encoder.input_domain)}.",
        f"* Normalised by `{type(encoder.normalizer).__name__}`, then {size}.",
        f"* Cut: {'whole images' if recipe.whole_image else recipe.crops}.",
        f"* Channels by name, in any order; {'every channel' if encoder.per_channel else 'every image'} gets features.",
    ]
    fixed, known = own_channels(encoder)
    if fixed or known:
        lines.append(f"* Channels: {'exactly' if fixed else 'any of'} {', '.join(fixed or known)}.")
    return "\n".join(lines)


def _origin(facts: Mapping[str, Any]) -> str:
    record = f"Converted by morphem from the record `{facts['record']}`" if facts.get("record") else ""
    family = f"Converted by morphem, family `{facts['family']}`" if facts.get("family") else ""
    source = f", source {facts['source']}" if facts.get("source") else ""
    steps = f", {facts['steps']} steps" if "steps" in facts else ""
    trained = f"Trained with morphem, method `{facts['method']}`{steps}" if "method" in facts else ""
    made = "; ".join(part for part in (trained, f"{record or family}{source}" if record or family else "") if part)
    return f"{made or 'Not stated'}. Network that was exported: {facts.get('exported', 'not stated')}."


def _data(facts: Mapping[str, Any], recipe: Path | None) -> str:
    lines = []
    if facts.get("datasets"):
        lines.append(f"* Data sets: {facts['datasets']}.")
    data = _section(recipe, "data")
    for key in ("root", "query", "val_query"):
        if data.get(key):
            lines.append(f"* `data.{key}`: `{data[key]}`")
    if facts.get("channel_types"):
        lines.append(f"* Channel types that training saw: {', '.join(facts['channel_types'])}.")
    return "\n".join(lines) or "Not stated."


def _recipe(facts: Mapping[str, Any], recipe: Path | None) -> str:
    if recipe is None:
        return "Not stated." if "method" in facts else "That of its authors; see the source above."
    return "The whole configuration of the run is in `recipe.yaml`: `morphem fit --config recipe.yaml`."


def _section(recipe: Path | None, name: str) -> Mapping[str, Any]:
    content = yaml.safe_load(recipe.read_text(encoding="utf-8")) if recipe is not None else {}
    section = content.get(name, {}) if isinstance(content, Mapping) else {}
    section = section.get("init_args", section) if isinstance(section, Mapping) else {}
    return section if isinstance(section, Mapping) else {}


def _scores(facts: Mapping[str, Any], scores: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (str(result.get("benchmark") or result.get("name") or "?"), str(key), f"{value:.4g}")
        for result in scores
        for key, value in result["scores"].items()
        if isinstance(value, int | float)
    ]
    rows += [("probe during training", str(key), f"{value:.4g}") for key, value in facts.get("probes", {}).items()]
    if not rows:
        return "None was measured."
    table = ["| benchmark | score | value |", "|---|---|---|", *("| " + " | ".join(row) + " |" for row in rows)]
    return "\n".join(table)


def _license(facts: Mapping[str, Any]) -> str:
    license = licences.stated(facts)  # noqa: A001
    if not license:
        return "No licence was stated. Until there is one, nobody but its owner may use these weights."
    if facts.get("restricted"):
        return f"{license}, which restricts what the weights may be used for, and what is made of them."
    return f"{license}."


def _proof(cases: Sequence[str], files: Mapping[str, float]) -> str:
    lines = [
        f"`golden.json` holds inputs and outputs of {len(cases)} cases. `morphem models verify THIS_FOLDER` compares "
        "them with what the encoder gives on your machine."
    ]
    if files:
        differences = " and ".join(f"`{file}` ({difference:.1e})" for file, difference in files.items())
        lines.append(
            f"For programs without morphem: {differences}; in brackets the largest difference from the encoder when it "
            "was written. `portable.json` says what goes in and comes out."
        )
    return "\n\n".join(lines)
