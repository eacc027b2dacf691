"""The docs page of a benchmark, written from its own record, so that it says what the code does.

python -m morphem.benchmarks.pages docs/benchmarks
"""

import inspect
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from morphem import registry
from morphem.benchmarks.base import Benchmark, Part
from morphem.benchmarks.preparations import PREPARATIONS
from morphem.benchmarks.runner import build

MARK = "<!-- Written by `python -m morphem.benchmarks.pages`; change the benchmark's class instead of this page. -->"


def page(name: str) -> str:
    """Return the page of a benchmark in Markdown.

    Args:
        name: Registered name.
    """
    benchmark = build(name)
    cls = type(benchmark)
    told = _arguments(cls)
    settings = {
        key: f"`{value!r}` | {_cell(told.get(key, ''))}".rstrip() for key, value in benchmark.settings().items()
    }
    sections = [
        f"# {cls.title}\n\n{MARK}",
        f"## What it measures\n\n{_wrap(cls.measures)}",
        f"## What a good and a bad value look like\n\n{_wrap(cls.reading)}",
        f"## Run it\n\n{_commands(name, cls)}",
        f"## Scores\n\n{_table(('score', 'what it is'), cls.score_names)}\n\n{_intervals(cls)}",
        f"## Variants\n\n{_table(('variant', 'what it does'), cls.variants)}\n\n{_models(cls)}",
        f"## Data\n\n{_data(cls)}",
        f"## Settings\n\n{_settings(settings)}",
        f"## Published results\n\n{_published(cls)}",
        f"## Sources, and what differs from them\n\n{_told(cls)}\n\nProtocol version {cls.protocol_version}.",
    ]
    return "\n\n".join(sections) + "\n"


def _wrap(text: str) -> str:
    return textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _table(head: Sequence[str], rows: Mapping[str, str]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| `{key}` | {_cell(text)} |" for key, text in rows.items())])


def _settings(rows: Mapping[str, str]) -> str:
    lines = ["| setting | default | what it does |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| `{key}` | {text} |" for key, text in rows.items())])


def _arguments(cls: type[Benchmark]) -> dict[str, str]:
    """Return what the class's docstring says about each argument."""
    found: dict[str, str] = {}
    name = ""
    for line in (inspect.getdoc(cls) or "").partition("Args:")[2].splitlines()[1:]:
        start = re.match(r" {4}(\w+): (.*)", line)
        if start:
            name = start[1]
            found[name] = start[2]
        elif name and line.startswith(" " * 8):
            found[name] += f" {line.strip()}"
        elif line.strip():
            break
    return found


def _told(cls: type[Benchmark]) -> str:
    """Return what the module says after its first line: sources, and where paper, code and this protocol differ."""
    text = (inspect.getdoc(sys.modules[cls.__module__]) or "").partition("\n")[2].strip()
    paragraphs = re.split(r"\n\s*\n|\n(?=Differs from|Paper and code)", text)
    return "\n\n".join(_wrap(" ".join(paragraph.split())) for paragraph in paragraphs if paragraph) or _wrap(cls.source)


def _commands(name: str, cls: type[Benchmark]) -> str:
    several = len(cls.parts) > 1
    tables = f"a folder with {', '.join(f'`{part.name}.parquet`' for part in cls.parts)}" if several else "the table"
    return (
        f"```bash\nmorphem benchmark {name} --features FEATURES --output out.json         # {tables.replace('`', '')}\n"
        f"morphem benchmark {name} --model MODEL --data SHARDS --output out.json   # from images\n```"
    )


def _intervals(cls: type[Benchmark]) -> str:
    if cls.interval_unit:
        return f"The first is the headline. Intervals draw {cls.interval_unit}s with replacement."
    return f"The first is the headline. There is no interval: {cls.no_interval}."


def _models(cls: type[Benchmark]) -> str:
    default = next(iter(cls.variants))
    if cls.model_variant is None:
        return f"The default is `{default}`."
    return f"The default is `{default}` for tables and `{cls.model_variant}` for encoders (`--model`, callbacks)."


def _data(cls: type[Benchmark]) -> str:
    parts = [_part(part, len(cls.parts) > 1) for part in cls.parts]
    for side in cls.side_tables:
        names = " or ".join(f"`{pattern}`" for pattern in side.patterns)
        need = "needed" if side.required else "if there is one"
        parts.append(_wrap(f"Beside features or shards, {need}: {names}, {side.what} (`--side {side.name}=PATH`)."))
    return "\n\n".join(parts)


def _part(part: Part, named: bool) -> str:
    recipe = part.recipe
    made = [f"unit `{recipe.unit}`", f"combine `{recipe.combine}`"]
    made += [f"{key.replace('_px', '')} {value} px" for key, value in _sizes(part).items()]
    made += [f"outside of a cell `{recipe.mask}`"] if recipe.mask != "none" else []
    made += [f"averaged to `{recipe.aggregate}`"] if recipe.aggregate else []
    made += _preparation(part)
    what = f"**{part.name}**: {part.what}." if named else f"{part.what[0].upper()}{part.what[1:]}."
    lines = [_wrap(what)]
    source = (
        f" Images are ingested with `morphem ingest IMAGES --source {part.source} "
        f"{'--clip none ' if recipe.as_stored else ''}--output SHARDS`."
        if part.source
        else ""
    )
    lines.append(_wrap(f"From images: {', '.join(made)}.{source}"))
    lines += [_wrap(f"Differs from the published features: {text}.") for text in recipe.differs]
    columns = {
        column.name: column.what
        + ("" if column.required else "; if known")
        + (f"; also found as {', '.join(f'`{alias}`' for alias in column.aliases)}" if column.aliases else "")
        for column in part.columns
    }
    lines.append(_table(("column", "what it says"), columns))
    return "\n\n".join(lines)


def _preparation(part: Part) -> list[str]:
    """Return what is done to pixels in place of an encoder's own preparation."""
    name = part.recipe.prepare
    return [] if name == "own" else [f"pixels `{name}` ({PREPARATIONS[name]})"]


def _sizes(part: Part) -> dict[str, int]:
    sizes = {"tile_size_px": part.recipe.tile_size_px, "crop_size_px": part.recipe.crop_size_px}
    return {key: value for key, value in sizes.items() if value is not None}


def _published(cls: type[Benchmark]) -> str:
    if not cls.published:
        return "None."
    names = [name for name in cls.score_names if any(name in row.scores for row in cls.published)]
    lines = [f"| model | {' | '.join(names)} | source |", f"|---|{'---:|' * len(names)}---|"]
    for row in cls.published:
        numbers = [f"{row.scores[name]:.4g}" if name in row.scores else "" for name in names]
        note = f" ({row.note})" if row.note else ""
        lines.append(f"| {_cell(row.model)} | {' | '.join(numbers)} | {_cell(row.table + note)} |")
    return "\n".join(lines)


def main(folder: str) -> None:
    """Write the pages that are not written by hand.

    Args:
        folder: Where they lie.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    for name in registry.names("benchmarks"):
        path = place / f"{name}.md"
        if not path.exists() or MARK in path.read_text():
            path.write_text(page(name))


if __name__ == "__main__":
    main(sys.argv[1])
