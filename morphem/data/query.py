"""Select channel planes by a line of text such as `microscopy.type != 'fluorescence' and geometry.channels > 1`.

The text is Python's expression syntax, read with `ast` and never run: column names, comparisons, `in`, `and`, `or`,
`not`, numbers, texts and `None`.
"""

import ast
import operator
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from morphem.errors import ConfigError, nearest

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ALLOWED = "column names, ==, !=, <, <=, >, >=, in, not in, and, or, not, numbers, 'texts' and None"


def compile_query(text: str, schema: pa.Schema) -> pc.Expression:
    """Turn a query into an expression that pyarrow filters rows with.

    A query selects channel planes: an image keeps the planes that match, and vanishes when none is left. A row whose
    label is missing matches no comparison with that label except `label == None`.

    Args:
        text: The query.
        schema: Columns of the table and their types.

    Raises:
        ConfigError: If the text is malformed (with the place), a column is unknown (with the nearest), or a column is
            compared with a value of another type.
    """
    expression, kind = _Compiler(text, schema).visit(_parse(text).body)
    if kind != "truth":
        raise ConfigError(f"query '{text}' compares nothing; write for example: experiment.study == 'a'.")
    return expression


def columns_of(text: str, schema: pa.Schema) -> list[str]:
    """Return the columns that a query uses, in order of appearance.

    Args:
        text: The query.
        schema: Columns of the table.

    Raises:
        ConfigError: As `compile_query`.
    """
    compiler = _Compiler(text, schema)
    compiler.visit(_parse(text).body)
    return list(dict.fromkeys(compiler.columns))


def explain_empty(text: str, table: pa.Table, where: str) -> str:
    """Return the sentence for a query that selects nothing, with the values that its columns have.

    Args:
        text: The query.
        table: All rows.
        where: What to call the table.
    """
    present = []
    for column in columns_of(text, table.schema):
        values = sorted(map(str, pc.unique(table[column]).to_pylist()))
        shown = ", ".join(values[:12]) + (f" and {len(values) - 12} more" if len(values) > 12 else "")
        present.append(f"{column} has {shown}")
    return f"The query '{text}' selects no channel plane of '{where}': {'; '.join(present)}."


def _parse(text: str) -> ast.Expression:
    try:
        return ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as fault:
        place = f" at character {fault.offset}" if isinstance(fault, SyntaxError) and fault.offset else " at its end"
        raise ConfigError(f"query '{text}' is malformed{place}; allowed: {_ALLOWED}.") from fault


class _Compiler:
    """Visits the tree of one query. A result is an expression (or value) and its kind: truth, text, number or none."""

    def __init__(self, text: str, schema: pa.Schema) -> None:
        self.text = text
        self.schema = schema
        self.columns: list[str] = []

    def visit(self, node: ast.expr) -> tuple[Any, str]:
        match node:
            case ast.BoolOp(op, values):
                parts = [self._truth(value) for value in values]
                join = operator.and_ if isinstance(op, ast.And) else operator.or_
                result = parts[0]
                for part in parts[1:]:
                    result = join(result, part)
                return result, "truth"
            case ast.UnaryOp(ast.Not(), operand):
                return ~self._truth(operand), "truth"
            case ast.Compare():
                return self._compare(node), "truth"
            case ast.Name() | ast.Attribute():
                return self._column(node)
            case ast.Constant() | ast.UnaryOp():
                return self._literal(node)
        raise self._refused(node)

    def _truth(self, node: ast.expr) -> Any:
        value, kind = self.visit(node)
        if kind != "truth":
            raise ConfigError(f"query '{self.text}': '{ast.unparse(node)}' is not a comparison.")
        return value

    def _compare(self, node: ast.Compare) -> Any:
        left, result = node.left, None
        for op, right in zip(node.ops, node.comparators, strict=True):
            part = self._compare_two(left, op, right)
            result = part if result is None else result & part
            left = right
        return result

    def _compare_two(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Any:
        value, kind = self.visit(left)
        if isinstance(op, ast.In | ast.NotIn):
            if not isinstance(right, ast.List | ast.Tuple | ast.Set) or not isinstance(value, pc.Expression):
                raise ConfigError(f"query '{self.text}': write COLUMN in ['a', 'b'].")
            items = [self._item(item, kind, left) for item in right.elts]
            found = value.isin(pa.array(items, pa.string() if kind == "text" else pa.float64()))
            known = pc.if_else(value.is_valid(), found, pa.scalar(None, pa.bool_()))  # null, as for other comparisons
            return known if isinstance(op, ast.In) else ~known
        other, other_kind = self.visit(right)
        if "none" in (kind, other_kind):
            return self._compare_none(value, op, other, kind)
        if kind != other_kind:
            raise ConfigError(
                f"query '{self.text}': '{ast.unparse(left)}' is a {kind} and '{ast.unparse(right)}' is a {other_kind}; "
                "compare a text with a 'text' in quotes and a number with a number."
            )
        if type(op) not in _COMPARISONS or not any(isinstance(side, pc.Expression) for side in (value, other)):
            raise self._refused(left)
        return _COMPARISONS[type(op)](value, other)

    def _compare_none(self, value: Any, op: ast.cmpop, other: Any, kind: str) -> Any:
        column = other if kind == "none" else value
        if not isinstance(column, pc.Expression) or not isinstance(op, ast.Eq | ast.NotEq | ast.Is | ast.IsNot):
            raise ConfigError(f"query '{self.text}': write COLUMN == None or COLUMN != None.")
        return column.is_null() if isinstance(op, ast.Eq | ast.Is) else column.is_valid()

    def _item(self, node: ast.expr, kind: str, left: ast.expr) -> Any:
        value, item_kind = self._literal(node)
        if item_kind != kind:
            raise ConfigError(
                f"query '{self.text}': '{ast.unparse(left)}' is a {kind} and {ast.unparse(node)} is a {item_kind}."
            )
        return value

    def _literal(self, node: ast.expr) -> tuple[Any, str]:
        sign = 1
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            sign, node = -1, node.operand
        match node:
            case ast.Constant(str(text)) if sign == 1:
                return text, "text"
            case ast.Constant(None) if sign == 1:
                return None, "none"
            case ast.Constant(int() | float() as number) if not isinstance(number, bool):
                return sign * number, "number"
        raise self._refused(node)

    def _column(self, node: ast.expr) -> tuple[pc.Expression, str]:
        name = ast.unparse(node)
        if name not in self.schema.names:
            close = nearest(name, self.schema.names)
            hint = f"nearest: {', '.join(close)}" if close else f"known: {', '.join(self.schema.names)}"
            quotes = " (a text needs quotes)" if isinstance(node, ast.Name) else ""
            raise ConfigError(f"query '{self.text}': there is no column '{name}'{quotes}; {hint}.")
        self.columns.append(name)
        return pc.field(name), "text" if pa.types.is_string(self.schema.field(name).type) else "number"

    def _refused(self, node: ast.AST) -> ConfigError:
        place = getattr(node, "col_offset", 0) + 1
        return ConfigError(
            f"query '{self.text}': '{ast.unparse(node)}' at character {place} is not allowed; {_ALLOWED}."
        )
