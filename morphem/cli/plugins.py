"""`morphem plugins`: what is registered, from which package, whether it keeps the contracts, what goes together."""

import argparse
import sys

from morphem import registry
from morphem.errors import PluginError


def main(argv: list[str]) -> int:
    """List all plug-ins, check some, or print which methods train which channel strategies.

    Args:
        argv: Words after `plugins`.

    Returns:
        0, or 1 if a plug-in is broken, claimed twice, or fails a check.
    """
    parser = argparse.ArgumentParser(
        prog="morphem plugins",
        description="List what is registered and from which package.",
        epilog="example: morphem plugins --check dino",
    )
    parser.add_argument("group", nargs="?", choices=list(registry.GROUPS), help="one group only")
    parser.add_argument(
        "--check", metavar="NAME", nargs="*", help="run the conformance checks on these plug-ins, or on all"
    )
    parser.add_argument(
        "--matrix", action="store_true", help="print, in Markdown, which methods train which channel strategies"
    )
    options = parser.parse_args(argv)
    if options.matrix:
        if options.group or options.check is not None:
            parser.error("--matrix looks at all methods and channel strategies; leave out the group and --check")
        return show_matrix()
    groups = [options.group] if options.group else list(registry.GROUPS)
    if options.check is not None:
        return check(groups, options.check)
    return show(groups)


def show(groups: list[str]) -> int:
    """Print the plug-ins of some groups; return 1 if one is broken."""
    broken = 0
    rows: list[tuple[str, ...]] = []
    for group in groups:
        for plugin in registry.plugins(group):
            try:
                registry.find(group, plugin.name).load()
                state = "ok"
            except PluginError as fault:
                state = str(fault)
                broken += 1
            rows.append((group, plugin.name, f"{plugin.package} {plugin.version}", plugin.target, state))
    for damaged in registry.faults():
        print(f"left out: {damaged.package}, {damaged.reason}", file=sys.stderr)
        broken += 1
    if not rows:
        print(f"nothing is registered in {', '.join(groups)}")
        return 0
    heads = ("group", "name", "package", "class", "state")
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(4)]
    for row in [heads, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip())
    return 1 if broken else 0


def show_matrix() -> int:
    """Print which methods train which channel strategies; return 1 if a pair neither trains nor is refused."""
    from morphem.testing.contract import ContractError
    from morphem.testing.pairs import matrix, matrix_table

    try:
        print(matrix_table(matrix()))
    except (ContractError, PluginError) as fault:
        print(fault, file=sys.stderr)
        return 1
    return 0


def check(groups: list[str], wanted: list[str]) -> int:
    """Run the conformance checks; return 1 if one fails."""
    from morphem.testing import check_plugin

    known = [(group, name) for group in groups for name in registry.names(group)]
    for name in wanted:
        if name not in {plugin for _, plugin in known}:
            registry.find(groups[0] if len(groups) == 1 else "methods", name)
    failures = 0
    for group, name in known:
        if wanted and name not in wanted:
            continue
        try:
            check_plugin(group, name)
            print(f"ok      {group}/{name}")
        except Exception as fault:  # a stranger's plug-in may fail in any way; all failures are listed
            failures += 1
            print(f"FAILED  {group}/{name}: {type(fault).__name__}: {fault}", file=sys.stderr)
    return 1 if failures else 0
