"""The arguments of classes, read from their source without importing it.

Importing torch and Lightning takes seconds; parsing one file takes milliseconds. So a wrong key can be named at once.
What cannot be read statically (a class built at run time, `**kwargs` into the unknown) is left to the full parser.
"""

import ast
import importlib.util
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Argument:
    """One argument of a class.

    Attributes:
        name: As a config spells it.
        annotation: Its type as written, or None.
        module: Module in which the annotation was written.
        required: Whether it has no default.
    """

    name: str
    annotation: ast.expr | None
    module: str
    required: bool


@cache
def module_file(module: str) -> Path | None:
    """Return the source file of a module without importing it or its parents, or None."""
    head, *rest = module.split(".")
    loaded = sys.modules.get(head)
    spec = loaded.__spec__ if loaded is not None and loaded.__spec__ is not None else None
    if spec is None:
        try:
            spec = importlib.util.find_spec(head)
        except (ImportError, ValueError):
            return None
    if spec is None or spec.origin is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin.endswith(".py") else None
    for root in spec.submodule_search_locations or []:
        base = Path(root).joinpath(*rest)
        for candidate in (base.with_suffix(".py"), base / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None


@cache
def _tree(module: str) -> ast.Module | None:
    path = module_file(module)
    if path is None:
        return None
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, OSError):
        return None


@cache
def find_class(class_path: str) -> tuple[str, ast.ClassDef | ast.FunctionDef] | None:
    """Return the module in which a class (or function) is written and its syntax tree, following re-exports, or None.

    Args:
        class_path: Import path with dots.
    """
    module, _, name = class_path.rpartition(".")
    for _ in range(8):  # a chain of re-exports is short
        tree = _tree(module) if module else None
        if tree is None:
            return None
        for node in _statements(tree):
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
                return module, node
        target = _imported_from(tree, module, name)
        if target is None:
            return None
        module, name = target
    return None


def _statements(tree: ast.Module) -> list[ast.stmt]:
    """The statements of a module, with those inside its top-level `if` and `try`."""
    flat: list[ast.stmt] = []
    for node in tree.body:
        flat.append(node)
        if isinstance(node, ast.If | ast.Try):
            flat += [*node.body, *node.orelse]
    return flat


def _imported_from(tree: ast.Module, module: str, name: str) -> tuple[str, str] | None:
    path = module_file(module)
    package = module if path is not None and path.name == "__init__.py" else module.rpartition(".")[0]
    for node in _statements(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    above = package.split(".")[: len(package.split(".")) - (node.level - 1)] if node.level else []
                    return ".".join([*above, *([node.module] if node.module else [])]), alias.name
    return None


def resolve(name: ast.expr, module: str) -> str | None:
    """Return the import path that a name or attribute in a module's annotation stands for, or None."""
    if isinstance(name, ast.Constant) and isinstance(name.value, str):
        return resolve(ast.parse(name.value, mode="eval").body, module)
    tree = _tree(module)
    if tree is None:
        return None
    if isinstance(name, ast.Name):
        if any(isinstance(node, ast.ClassDef) and node.name == name.id for node in _statements(tree)):
            return f"{module}.{name.id}"
        source = _imported_from(tree, module, name.id)
        return ".".join(source) if source else None
    if isinstance(name, ast.Attribute) and isinstance(name.value, ast.Name):
        for node in _statements(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if (alias.asname or alias.name) == name.value.id:
                        return f"{alias.name}.{name.attr}"
        source = _imported_from(tree, module, name.value.id)
        return ".".join([*source, name.attr]) if source else None
    return None


@cache
def arguments(class_path: str) -> dict[str, Argument] | None:
    """Return the arguments that a class takes, or None where they cannot be known without importing it.

    Args:
        class_path: Import path with dots.
    """
    found = find_class(class_path)
    if found is None:
        return None
    module, node = found
    if isinstance(node, ast.FunctionDef):
        return _signature(node, module, skip_first=False)[0]
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return {
            item.target.id: Argument(item.target.id, item.annotation, module, item.value is None)
            for item in node.body
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
        }
    init = next((item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"), None)
    if init is None:
        return _inherited(node, module)
    own, open_ended = _signature(init, module, skip_first=True)
    if not open_ended:
        return own
    above = _inherited(node, module)
    return None if above is None else {**above, **own}


def _inherited(node: ast.ClassDef, module: str) -> dict[str, Argument] | None:
    for base in node.bases:
        target = resolve(base.value if isinstance(base, ast.Subscript) else base, module)
        if target and find_class(target):
            return arguments(target)
    return None


def _signature(node: ast.FunctionDef, module: str, *, skip_first: bool) -> tuple[dict[str, Argument], bool]:
    spec = node.args
    positional = [*spec.posonlyargs, *spec.args]
    missing = [None] * (len(positional) - len(spec.defaults))
    pairs = [*zip(positional, [*missing, *spec.defaults], strict=True)][1 if skip_first else 0 :]
    pairs += zip(spec.kwonlyargs, spec.kw_defaults, strict=True)
    found = {arg.arg: Argument(arg.arg, arg.annotation, module, default is None) for arg, default in pairs}
    return found, spec.kwarg is not None


_SCALARS: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}


def mismatch(value: Any, annotation: ast.expr | None) -> str | None:
    """Return what was expected where a value surely does not fit a type as written, else None.

    Args:
        value: Plain data from a config.
        annotation: The type; anything but numbers, text, booleans, None, literals and lists of them is taken to fit.
    """
    if annotation is None:
        return None
    verdicts = [_fits(value, option) for option in options(annotation)]
    return None if any(verdict is not False for verdict in verdicts) else ast.unparse(annotation)


def options(annotation: ast.expr) -> list[ast.expr]:
    """Return the members of a union, or the annotation itself.

    Args:
        annotation: Of an argument.
    """
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return options(ast.parse(annotation.value, mode="eval").body)
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return [*options(annotation.left), *options(annotation.right)]
    if isinstance(annotation, ast.Subscript) and isinstance(annotation.value, ast.Name):
        inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        if annotation.value.id == "Union":
            return [option for item in inner for option in options(item)]
        if annotation.value.id == "Optional":
            return [*options(inner[0]), ast.Constant(None)]
    return [annotation]


def _fits(value: Any, option: ast.expr) -> bool | None:
    """True or False where certain, None where only the full parser can tell."""
    if isinstance(option, ast.Constant) and option.value is None:
        return value is None
    if isinstance(option, ast.Name) and option.id in _SCALARS:
        kinds = _SCALARS[option.id]
        return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
    if isinstance(option, ast.Subscript) and isinstance(option.value, ast.Name):
        inner = option.slice.elts if isinstance(option.slice, ast.Tuple) else [option.slice]
        if option.value.id == "Literal" and all(isinstance(item, ast.Constant) for item in inner):
            return value in [item.value for item in inner if isinstance(item, ast.Constant)]
        if option.value.id in {"list", "List", "Sequence"}:
            if not isinstance(value, list):
                return False if value is None or isinstance(value, bool | int | float | str) else None
            return False if any(mismatch(item, inner[0]) for item in value) else None
        if option.value.id in {"dict", "Dict", "Mapping"} and isinstance(value, bool | int | float | list):
            return False
    return None
