"""`morphem benchmark`: score an encoder or a feature table with one or all benchmarks."""

import argparse
import resource
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from morphem import registry
from morphem.benchmarks.base import Benchmark
from morphem.benchmarks.leaderboard import leaderboard, summary
from morphem.benchmarks.record import Record, write_json
from morphem.benchmarks.runner import build, score_features, score_model
from morphem.errors import ConfigError, MorphemError, PluginError, unknown_name

EPILOG = """\
examples:
  morphem benchmark --list
  morphem benchmark jumpcp1                                          (what it measures, and which data it needs)
  morphem benchmark jumpcp1 --features profiles/ --output out.json
  morphem benchmark rbc_mc --model CaicedoLab/MorphEm --data shards/rbc_mc --output out.json
  morphem benchmark generic --features wells.parquet --set label=treatment --set k=10
  morphem benchmark all --model runs/dino_boc --data shards/         (shards/NAME for every benchmark)

Features of a model are kept by the hash of weights, data and recipe: scoring again costs nothing. The JSON holds all
sub-scores, seeds, p-value rules, intervals, leak probes, versions, and hashes of features, data, weights and code.
"""


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    result = argparse.ArgumentParser(
        prog="morphem benchmark",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("name", nargs="?", help="a benchmark, or all; alone, it is described")
    add("--list", action="store_true", help="list the benchmarks")
    add("--features", type=Path, help="feature table, or a folder of tables (.parquet, .csv, .csv.gz, .h5ad)")
    add("--model", help="run, folder, checkpoint, name of the zoo, or owner/name on the hub")
    add("--data", help="shards for --model: a folder or an address; NAME/ or PART/ below it where there are several")
    add("--output", type=Path, help="JSON with everything")
    add("--variant", help="variant of the protocol")
    add("--seed", type=int, help="of everything random in the protocol (default: 0)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the protocol; may be repeated")
    add("--metadata", type=Path, help="table (.csv, .tsv, .parquet) whose columns are joined to the rows")
    add("--on", default="Metadata_Plate,Metadata_Well", help="columns by which it is joined (default: %(default)s)")
    add(
        "--column",
        action="append",
        default=[],
        metavar="NAME=COLUMN",
        help="what a column of the protocol is called here",
    )
    add("--side", action="append", default=[], metavar="NAME=PATH", help="a file that the protocol reads besides")
    add("--feature-columns", default="infer", help="names or patterns of the features, with commas (default: inferred)")
    add("--query", help="which channel planes, with --model")
    add("--recipe", action="append", default=[], metavar="KEY=VALUE", help="change how features are made, with --model")
    add("--cache", type=Path, help="folder for the features of models (default: morphem's cache)")
    add("--batch-size", type=int, default=64, help="planes at once; no influence on the result (default: %(default)s)")
    add("--num-workers", type=int, default=0, help="processes that read (default: %(default)s)")
    add("--device", help="where to compute features, for example cuda (default: cpu, or a GPU if there is one)")
    add("--no-leak-probes", action="store_true", help="leave out the leak probes")
    return result


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: Words after `benchmark`.

    Returns:
        0, or 1 if one of several benchmarks failed or none could be run.

    Raises:
        MorphemError: For what the user can put right; the caller prints it.
    """
    words = parser()
    options = words.parse_args(list(argv))
    if options.list:
        return _list()
    if options.name is None:
        words.error("name a benchmark, or all, or use --list")
    if options.name != "all" and not options.features and not options.model and not options.data:
        return _describe(options.name)
    _check(options)
    if options.name == "all":
        return _run_all(options)
    record = _run(options.name, options, options.features, options.data)
    _show(record, options)
    if options.output:
        write_json(record.to_json(), options.output)
        print(f"wrote {options.output}")
    return 0


def _check(options: argparse.Namespace) -> None:
    if options.features and (options.model or options.data):
        raise ConfigError("--features scores a table and --model with --data an encoder; give one of the two.")
    if not options.features and not (options.model and options.data):
        raise ConfigError("give --features TABLE, or --model MODEL together with --data SHARDS.")
    if options.features:
        for name, value in (("--query", options.query), ("--recipe", options.recipe), ("--cache", options.cache)):
            if value:
                raise ConfigError(f"{name} has no effect with --features, which are made already; leave it out.")
    elif options.feature_columns != "infer":
        raise ConfigError("--feature-columns has no effect with --model, whose features are known; leave it out.")


def _pairs(words: Sequence[str], option: str) -> dict[str, str]:
    """Split `KEY=VALUE`.

    Raises:
        ConfigError: If a word has no `=`, or a key is given twice.
    """
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"{option} takes KEY=VALUE, not '{word}'.")
        if key in found:
            raise ConfigError(f"{option} {key} is given twice.")
        found[key] = value
    return found


def _typed(words: Sequence[str], option: str) -> dict[str, Any]:
    """Split `KEY=VALUE` with values as YAML reads them: numbers, lists, texts."""
    found = {}
    for key, value in _pairs(words, option).items():
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError as fault:
            raise ConfigError(f"{option} {key}: '{value}' cannot be read as YAML; quote it.") from fault
    return found


def _run(name: str, options: argparse.Namespace, features: Path | None, data: str | None) -> Record:
    settings = _typed(options.set, "--set")
    for key in ("variant", "seed"):
        if getattr(options, key) is not None:
            if key in settings:
                raise ConfigError(f"{key} is given twice, by --{key} and by --set.")
            settings[key] = getattr(options, key)
    shared: dict[str, Any] = {
        "metadata": options.metadata,
        "on": [column.strip() for column in options.on.split(",")],
        "columns": _pairs(options.column, "--column"),
        "side": {side: Path(path) for side, path in _pairs(options.side, "--side").items()},
        "leaks": not options.no_leak_probes,
    }
    if features is not None:
        patterns = options.feature_columns
        chosen: Any = "infer" if patterns == "infer" else [word.strip() for word in patterns.split(",")]
        return score_features(name, features, settings, features=chosen, **shared)
    assert data is not None
    return score_model(
        name, options.model, data, settings, cache=options.cache, batch_size=options.batch_size,
        num_workers=options.num_workers, device=options.device, query=options.query,
        recipe=_typed(options.recipe, "--recipe"), progress=True, **shared,
    )  # fmt: skip


def _run_all(options: argparse.Namespace) -> int:
    """Run every benchmark whose data lie in a folder of its name."""
    root = Path(options.features or options.data)
    records: dict[str, Any] = {}
    failed: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for name in registry.names("benchmarks"):
        places = [root / name, *root.glob(f"{name}.*")]
        place = next((place for place in places if place.exists()), None)
        if place is None:
            skipped[name] = f"nothing in {root / name}"
            continue
        try:
            record = _run(name, options, place if options.features else None, None if options.features else str(place))
        except MorphemError as fault:
            failed[name] = str(fault)
            print(f"{name}: FAILED: {fault}\n", file=sys.stderr)
            continue
        _show(record, options)
        print()
        records[name] = record.to_json()
    if options.output:
        write_json({"benchmarks": records, "failed": failed, "skipped": skipped}, options.output)
        print(f"wrote {options.output}")
    print(f"{len(records)} benchmarks scored, {len(failed)} failed, {len(skipped)} without data: {', '.join(skipped)}")
    if not records:
        raise ConfigError(f"no benchmark has data in '{root}'; put each into a folder of its name (see --list).")
    return 1 if failed else 0


def _show(record: Record, options: argparse.Namespace) -> None:
    name = str(options.model or options.features)
    print(summary(record))
    print()
    print(leaderboard(record, name))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"\nscored in {record.seconds:.1f} s, peak memory {peak / 2**30:.1f} GiB")


def _list() -> int:
    broken = 0
    rows = [("name", "what", "package")]
    for plugin in registry.plugins("benchmarks"):
        try:
            title = registry.get("benchmarks", plugin.name).title
        except PluginError as fault:
            title, broken = f"cannot be used: {fault}", broken + 1
        rows.append((plugin.name, title, plugin.package))
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    for row in rows:
        print(f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}")
    return 1 if broken else 0


def _describe(name: str) -> int:
    """Print what a benchmark measures, what it needs, and what has been published."""
    if name not in registry.names("benchmarks"):
        raise ConfigError(unknown_name("benchmark", name, [*registry.names("benchmarks"), "all"]))
    print(description(name, build(name)))
    return 0


def description(name: str, benchmark: Benchmark) -> str:
    """Return the page of a benchmark for a terminal.

    Args:
        name: Registered name.
        benchmark: With its default settings.
    """
    cls = type(benchmark)
    lines = [
        f"{name}: {cls.title}",
        "",
        "What it measures",
        _wrap(cls.measures),
        "",
        "How to read it",
        _wrap(cls.reading),
    ]
    lines += ["", "Scores", *_items(cls.score_names), "", "Variants", *_items(cls.variants), "", "Data"]
    for part in cls.parts:
        clip = " --clip none" if part.recipe.as_stored else ""
        lines.append(
            _wrap(
                f"{part.name}: {part.what}" + (f" (morphem ingest --source {part.source}{clip})" if part.source else "")
            )
        )
        lines += _items(
            {column.name: column.what + ("" if column.required else " (if known)") for column in part.columns}, 4
        )
    lines += [_wrap(f"side table {side.name}: {side.what} ({' or '.join(side.patterns)})") for side in cls.side_tables]
    lines += [
        "",
        "Settings (--set KEY=VALUE)",
        *_items({key: repr(value) for key, value in benchmark.settings().items()}),
    ]
    lines += ["", f"Source  {cls.source}", f"Run     morphem benchmark {name} --features TABLE --output out.json"]
    return "\n".join(lines)


def _wrap(text: str) -> str:
    return textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


def _items(texts: Mapping[str, str], indent: int = 2) -> list[str]:
    width = max(map(len, texts), default=0)
    then = " " * (indent + width + 2)
    return [
        textwrap.fill(text, 110, initial_indent=f"{' ' * indent}{key:{width}}  ", subsequent_indent=then)
        for key, text in texts.items()
    ]
