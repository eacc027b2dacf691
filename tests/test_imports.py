"""Who may import whom, read from the import statements; and what `import morphem` costs."""

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import morphem

ROOT = Path(morphem.__file__).parent

# What a part of the package must not import, at module level or inside a function. A part is a module or a folder of
# them; the longest entry that fits a module decides.
FORBIDDEN = {
    "morphem": ["morphem.cli"],
    "morphem.cli": [],
    "morphem.__main__": [],
    "morphem.testing": ["morphem.cli"],
    "morphem.callbacks": ["morphem.cli"],
    "morphem.types": ["morphem."],
    "morphem.rng": ["morphem."],
    "morphem.errors": ["morphem."],
    "morphem.backbones": ["morphem.cli", "morphem.callbacks", "morphem.methods", "morphem.channels", "morphem.encoder",
                          "morphem.embed", "morphem.zoo", "morphem.data", "morphem.sources"],
    "morphem.channels": ["morphem.cli", "morphem.callbacks", "morphem.methods", "morphem.encoder", "morphem.embed",
                         "morphem.zoo", "morphem.data", "morphem.sources"],
    "morphem.encoder": ["morphem.cli", "morphem.callbacks", "morphem.methods", "morphem.zoo"],
    "morphem.embed": ["morphem.cli", "morphem.callbacks", "morphem.methods"],
    "morphem.methods": ["morphem.cli", "morphem.callbacks"],
    "morphem.zoo": ["morphem.cli", "morphem.callbacks"],
    "morphem.data": ["morphem.cli", "morphem.callbacks", "morphem.methods", "morphem.channels", "morphem.backbones",
                     "morphem.encoder", "morphem.embed", "morphem.zoo"],
    "morphem.sources": ["morphem.cli", "morphem.callbacks", "morphem.methods", "morphem.channels", "morphem.backbones",
                        "morphem.encoder", "morphem.embed", "morphem.zoo"],
    "morphem.readers": ["morphem.cli", "morphem.callbacks", "morphem.methods", "morphem.channels", "morphem.backbones",
                        "morphem.encoder", "morphem.embed", "morphem.zoo", "morphem.data", "morphem.sources"],
    "morphem.cells": ["morphem.cli", "morphem.callbacks", "morphem.methods", "morphem.channels", "morphem.backbones",
                      "morphem.encoder", "morphem.embed", "morphem.zoo", "morphem.sources", "morphem.ingest"],
    "morphem.curation": ["morphem.cli", "morphem.callbacks", "morphem.methods", "morphem.sources", "morphem.ingest"],
    "morphem.ingest": ["morphem.cli", "morphem.callbacks", "morphem.methods", "morphem.channels", "morphem.backbones",
                       "morphem.encoder", "morphem.embed", "morphem.zoo"],
    "morphem.report": ["morphem.cli", "morphem.callbacks", "morphem.methods", "morphem.channels", "morphem.backbones",
                       "morphem.encoder", "morphem.embed", "morphem.zoo", "morphem.sources"],
    "morphem.losses": ["morphem.cli", "morphem.callbacks", "morphem.methods", "morphem.data", "lightning"],
    "morphem.heads": ["morphem.cli", "morphem.callbacks", "morphem.methods", "morphem.data", "lightning"],
    "morphem.schedules": ["morphem.cli", "morphem.callbacks", "morphem.methods", "morphem.data", "lightning"],
    "morphem.profiles": ["morphem.cli", "morphem.callbacks", "morphem.methods", "morphem.encoder"],
    "morphem.benchmarks": ["morphem.cli", "morphem.callbacks", "morphem.methods"],
}  # fmt: skip

# Modules that work without torch: scoring a table and filling shards need no training stack.
TORCH_FREE = [
    "morphem",
    "morphem.cellprofiler",
    "morphem.errors",
    "morphem.registry",
    "morphem.spec",
    "morphem.features",
    "morphem.data",
    "morphem.data.schema",
    "morphem.data.png",
    "morphem.data.shards",
    "morphem.data.query",
    "morphem.data.order",
    "morphem.data.index",
    "morphem.readers",
    "morphem.sources",
    "morphem.sources.sheet",
    "morphem.cli",
    "morphem.cli.ingest",
    "morphem.cli.models",
    "morphem.cells",
    "morphem.curation",
    "morphem.report",
    "morphem.benchmarks",
    "morphem.benchmarks.runner",
    "morphem.benchmarks.extract",
    "morphem.benchmarks.leaderboard",
    "morphem.benchmarks.pages",
    "morphem.benchmarks.jumpcp1",
    "morphem.benchmarks.generic",
    "morphem.benchmarks.batch_biology",
    "morphem.benchmarks.bioactivity",
    "morphem.benchmarks.campfire",
    "morphem.cli.benchmark",
    "morphem.ingest",
    "morphem.ingest.engine",
    "morphem.ingest.choose",
    "morphem.profiles",
    "morphem.cli.profile",
]
HEAVY = ("torch", "lightning", "torchvision", "timm", "lightly", "torchmetrics", "webdataset")


@dataclass(frozen=True)
class Import:
    """One import statement: who, where, what, and whether it runs when the module is imported."""

    module: str
    file: Path
    line: int
    target: str
    at_import: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT.parent)}:{self.line} imports {self.target}"


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def statements(node: ast.AST, at_import: bool = True):
    """Every import under a node, with whether it runs at import; blocks for type checkers never run."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, at_import
        elif is_type_checking(child):
            for statement in child.body:
                yield from ((inner, False) for inner, _ in statements(ast.Module([statement], [])))
        else:
            yield from statements(child, at_import and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))


def targets(node: ast.Import | ast.ImportFrom, file: Path) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if node.level:
        package = name_of(file).split(".")
        keep = len(package) - node.level + (file.name == "__init__.py")
        base = ".".join([*package[:keep], *([node.module] if node.module else [])])
    else:
        base = node.module or ""
    return [f"{base}.{alias.name}" for alias in node.names]


def imports_of(file: Path) -> list[Import]:
    tree = ast.parse(file.read_text(), str(file))
    return [
        Import(name_of(file), file, node.lineno, target, at_import)
        for node, at_import in statements(tree)
        for target in targets(node, file)
    ]


def files() -> list[Path]:
    return sorted(file for file in ROOT.rglob("*.py") if "configs" not in file.relative_to(ROOT).parts)


def inside(target: str, part: str) -> bool:
    return target == part or target.startswith(part if part.endswith(".") else part + ".")


def rule_for(module: str) -> list[str]:
    parts = [part for part in FORBIDDEN if inside(module, part)]
    return FORBIDDEN[max(parts, key=len)]


ALL = [found for file in files() for found in imports_of(file)]


def test_nothing_imports_against_the_direction():
    wrong = [str(found) for found in ALL if any(inside(found.target, part) for part in rule_for(found.module))]
    assert not wrong, "\n".join(wrong)


def test_only_backbones_import_timm():
    wrong = [
        str(found) for found in ALL if inside(found.target, "timm") and not inside(found.module, "morphem.backbones")
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_imports_the_other_lightning():
    wrong = [str(found) for found in ALL if inside(found.target, "pytorch_lightning")]
    assert not wrong, "\n".join(wrong)


def test_nothing_imports_the_tests():
    wrong = [str(found) for found in ALL if inside(found.target, "tests")]
    assert not wrong, "\n".join(wrong)


def test_every_module_named_in_the_rules_has_a_rule_that_can_fail():
    assert rule_for("morphem.data.stream") is FORBIDDEN["morphem.data"]
    assert rule_for("morphem.types") is FORBIDDEN["morphem.types"]
    assert rule_for("morphem.a_new_module") is FORBIDDEN["morphem"]


def test_the_reader_of_imports_sees_what_runs_and_what_does_not(tmp_path, monkeypatch):
    file = ROOT / "data" / "example.py"
    source = (
        "import torch\nfrom . import png\nfrom ..encoder import Encoder\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import timm\ntry:\n    import isal\nexcept ImportError:\n    isal = None\n"
        "class A:\n    import lightly\n    def f(self):\n        import lightning\n"
    )
    monkeypatch.setattr(Path, "read_text", lambda self: source)
    found = {(item.target, item.line, item.at_import) for item in imports_of(file)}
    assert {
        ("torch", 1, True),
        ("morphem.data.png", 2, True),
        ("morphem.encoder.Encoder", 3, True),
        ("timm", 6, False),
        ("isal", 8, True),
        ("lightly", 12, True),
        ("lightning", 14, False),
    } < found


@pytest.mark.parametrize("module", TORCH_FREE)
def test_a_module_that_needs_no_torch_imports_none_even_through_others(module: str):
    by_module = {name_of(file): [found for found in ALL if found.file == file] for file in files()}
    if module not in by_module:
        pytest.fail(f"{module} is in the list of modules without torch, but does not exist")
    seen: set[str] = set()
    waiting: list[tuple[str, str]] = [(module, module)]
    while waiting:
        name, trail = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for found in by_module[name]:
            if found.at_import:
                assert found.target.partition(".")[0] not in HEAVY, f"{trail}: {found}"
                prefixes = [found.target.rsplit(".", cut)[0] for cut in range(found.target.count(".") + 1)]
                waiting += [(part, f"{trail} -> {part}") for part in prefixes if part in by_module]


BLOCKED = """
import socket, sys, threading
def refuse(*args, **kwargs):
    raise SystemExit("a socket was opened")
class Refused(socket.socket):
    __init__ = refuse
socket.socket, socket.create_connection, socket.getaddrinfo = Refused, refuse, refuse
{code}
heavy = sorted(set(sys.modules) & {heavy})
assert not heavy, heavy
assert threading.active_count() == 1, threading.enumerate()
"""


def run(code: str, heavy: tuple[str, ...] = HEAVY) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", BLOCKED.format(code=code, heavy=set(heavy) or "set()")],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    "code", ["import morphem", "import morphem.registry, morphem.spec, morphem.errors, morphem.cli"]
)
def test_importing_morphem_loads_no_torch_and_opens_no_socket(code: str):
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_opening_a_socket_would_be_seen():
    assert "a socket was opened" in run("import socket; socket.socket()").stderr


@pytest.mark.parametrize("name", morphem.__all__)
def test_every_public_name_can_be_imported(name: str):
    assert getattr(morphem, name) is not None
    assert name in dir(morphem)


def test_a_name_that_does_not_exist_is_an_ordinary_error():
    with pytest.raises(AttributeError, match="module 'morphem' has no attribute 'nothing'"):
        _ = morphem.nothing


def test_listing_plugins_loads_no_torch():
    done = run("from morphem import registry\n[registry.plugins(group) for group in registry.GROUPS]")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_importing_every_module_opens_no_socket():
    modules = [name_of(file) for file in files() if file.name != "__main__.py"]
    done = run("import importlib\nfor name in " + repr(modules) + ":\n    importlib.import_module(name)", heavy=())
    assert done.returncode == 0, done.stderr
