"""`morphem profile`: a feature table to profiles, by a recipe of steps (aggregate, normalise, select, correct)."""

import argparse
import inspect
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EPILOG = """\
examples:
  morphem profile features.parquet --recipe profile_jump.yaml --output profiles.parquet
  morphem profile plates/ --recipe profile_kim.yaml --output wells.parquet --set sphere.epsilon=1.0e-4
  morphem profile --steps            the steps that a recipe may have, and their settings

The recipe is looked for in the working directory, then among those that the package ships (profile_*.yaml). Features
of CellProfiler and of others are read as well: CSV, TSV (also .gz), Parquet and AnnData with Metadata_ columns.
"""


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    result = argparse.ArgumentParser(
        prog="morphem profile", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = result.add_argument
    add("tables", nargs="*", type=Path, help="tables of features, or folders of them")
    add("--recipe", help="YAML file with the steps, for example profile_jump.yaml")
    add("--output", type=Path, help="profiles.parquet, .h5ad (needs morphem[anndata]), .csv or .csv.gz")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a key of the recipe, or STEP.SETTING of a step that it has once; may be repeated",
    )
    add("--overwrite", action="store_true", help="replace an output that exists")
    add("--steps", action="store_true", help="list the steps and their settings, and stop")
    return result


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: Words after `profile`.

    Returns:
        0.

    Raises:
        MorphemError: For what the user can put right; the caller prints it.
    """
    options = parser().parse_args(list(argv))
    # pandas and scikit-learn take seconds to import; --help and mistyped options answer at once
    from morphem.cli.config_files import find_config
    from morphem.errors import ConfigError
    from morphem.profiles import Recipe, apply_to_files, check_rows_are_kept, write_table
    from morphem.profiles.tables import WRITABLE, list_tables, suffix

    if options.steps:
        print(list_steps())
        return 0
    for name in ("recipe", "output"):
        if getattr(options, name) is None:
            raise ConfigError(f"--{name} is missing; see morphem profile --help.")
    if not options.tables:
        raise ConfigError("no table of features is given; see morphem profile --help.")
    if suffix(options.output) not in WRITABLE:
        raise ConfigError(f"--output '{options.output.name}' must end in one of {', '.join(WRITABLE)}.")
    if options.output.exists() and not options.overwrite:
        raise ConfigError(f"{options.output} exists; give --overwrite to replace it, or another --output.")
    recipe = Recipe.read(find_config(options.recipe), options.set)
    files = {file.resolve() for path in options.tables for file in list_tables(path, recipe.features)}
    if options.output.resolve() in files:
        raise ConfigError(f"{options.output} is one of the tables to read; choose another --output.")
    begin = time.perf_counter()
    table = apply_to_files(options.tables, recipe, _bar)
    check_rows_are_kept(table)
    write_table(table, options.output)
    print(_summary(table, options, time.perf_counter() - begin))
    return 0


def _bar(chunks: Any) -> Any:
    from tqdm import tqdm

    return tqdm(chunks, desc="plates", unit=" plates", delay=2, leave=False)


def list_steps() -> str:
    """Return every step with what it does and its settings."""
    from dataclasses import MISSING

    from morphem.profiles.recipe import STEPS, settings_of

    lines = []
    for name, step in STEPS.items():
        lines.append(f"{name}: {(inspect.getdoc(step) or '').partition(chr(10))[0]}")
        for field in settings_of(step):
            default = "(needed)" if field.default is MISSING else _as_yaml(field.default)
            lines.append(f"    {field.name}: {default}")
    return "\n".join(lines)


def _as_yaml(value: Any) -> str:
    import yaml

    plain = list(value) if isinstance(value, tuple) else value
    return str(yaml.safe_dump(plain, default_flow_style=True)).splitlines()[0]


def _summary(table: Any, options: argparse.Namespace, seconds: float) -> str:
    from morphem.profiles import records
    from morphem.profiles.record import describe

    lines = []
    for source in table.provenance.get("tables", []):
        lines.append(f"read       {source['file']}")
    if len(lines) > 4:
        lines = [*lines[:3], f"           and {len(lines) - 3} more tables"]
    left_out = table.provenance.get("columns_left_out", [])
    if left_out:
        lines.append(f"left out   {len(left_out)} columns that are neither features nor Metadata_: {left_out[0]}, ...")
    lines += [f"note       {note}" for note in table.provenance.get("notes", [])]
    for number, record in enumerate(records(table), 1):
        first, *others = describe(record)
        lines.append(f"{number:<10} {first}")
        lines += [f"           {other}" for other in others]
    lines.append(
        f"wrote      {options.output}: {len(table)} rows x {len(table.columns)} features in {seconds:.1f} s; the steps "
        "and what each was fitted on are in its provenance"
    )
    return "\n".join(lines)
