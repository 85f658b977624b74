"""From a Python function to a checked syntax tree: the closed world of the kernel language.

Nothing is executed. Constructs outside the language are refused here, also where a compile-time
condition would prune them, with the line of the source and a caret under the place.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ondevice.errors import KernelError

CONSTANT_KINDS = ("int", "float", "bool", "DType", "Inline")


@dataclass(frozen=True)
class Parameter:
    """One parameter. `kind` is "buffer", "index", "value" (an inline's) or a CONSTANT_KINDS name.

    A buffer has `dtype` (an element type's name, or a DType constant's) and `dims`: names, or
    numbers.
    """

    name: str
    kind: str
    dtype: str = ""
    dims: tuple[int | str, ...] = ()


@dataclass(frozen=True, eq=False)
class Source:
    """A parsed @kernel or @inline function.

    `reassigned` holds the declaring statements (or parameter names) of variables that change later;
    all others keep the value of their only assignment.
    """

    name: str
    file: str
    lines: tuple[str, ...]
    first_line: int
    indent: int
    parameters: tuple[Parameter, ...]
    body: tuple[ast.stmt, ...]
    docstring: str
    globals: Mapping[str, Any]
    reassigned: frozenset[ast.AST | str]

    @cached_property
    def positional(self) -> tuple[Parameter, ...]:
        return tuple(p for p in self.parameters if p.kind not in CONSTANT_KINDS)

    @cached_property
    def constants(self) -> tuple[Parameter, ...]:
        return tuple(p for p in self.parameters if p.kind in CONSTANT_KINDS)

    @cached_property
    def buffers(self) -> tuple[Parameter, ...]:
        return tuple(p for p in self.parameters if p.kind == "buffer")

    @cached_property
    def dims(self) -> tuple[str, ...]:
        """Named dimensions by first appearance."""
        names = (d for p in self.buffers for d in p.dims if isinstance(d, str))
        return tuple(dict.fromkeys(names))

    def error(self, node: ast.AST, message: str) -> KernelError:
        """`file:line: message`, the source line and a caret under `node`."""
        line = getattr(node, "lineno", 1)
        column = getattr(node, "col_offset", 0)
        text = self.lines[line - 1] if line <= len(self.lines) else ""
        caret = " " * (column + self.indent) + "^"
        return KernelError(f"{self.file}:{self.first_line + line - 1}: {message}\n{text}\n{caret}")


def parse_function(
    function: types.FunctionType, is_kernel: bool, enclosing: Mapping[str, Any]
) -> Source:
    """Read, check and describe a function; KernelError for anything outside the language.

    `enclosing` are the values of its free variables.
    """
    try:
        lines, first_line = inspect.getsourcelines(function)
    except (OSError, TypeError) as error:
        raise KernelError(f"the source of {function.__name__} cannot be read: {error}") from None
    lines = [line.rstrip("\n") for line in lines]
    tree = ast.parse(textwrap.dedent("\n".join(lines)))
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)
    indent = len(lines[0]) - len(lines[0].lstrip())
    body, docstring = list(definition.body), ast.get_docstring(definition) or ""
    if docstring:
        body = body[1:]
    file = inspect.getsourcefile(function) or "<unknown>"

    def source(parameters: tuple[Parameter, ...]) -> Source:
        changed = reassigned_variables(parameters, body)
        return Source(
            function.__name__, file, tuple(lines), first_line, indent, parameters, tuple(body),
            docstring, ChainMap(dict(enclosing), function.__globals__), changed,
        )  # fmt: skip

    blank = source(())
    for statement in body:
        check_supported(blank, statement)
    return source(parse_parameters(blank, definition.args, is_kernel))


# --- parameters ----------------------------------------------------------------------------------


def parse_parameters(source: Source, args: ast.arguments, is_kernel: bool) -> tuple[Parameter, ...]:
    for extra in (args.vararg, args.kwarg, *args.defaults):
        if extra is not None:
            raise source.error(extra, "only plain parameters; defaults only after '*'")
    positional = [
        positional_parameter(source, a, is_kernel) for a in (*args.posonlyargs, *args.args)
    ]
    return (*positional, *(constant_parameter(source, a) for a in args.kwonlyargs))


def positional_parameter(source: Source, arg: ast.arg, is_kernel: bool) -> Parameter:
    note = arg.annotation
    if isinstance(note, ast.Subscript) and isinstance(note.value, ast.Name):
        dims = note.slice.elts if isinstance(note.slice, ast.Tuple) else [note.slice]
        return Parameter(
            arg.arg, "buffer", note.value.id, tuple(parse_dim(source, d) for d in dims)
        )
    if isinstance(note, ast.Name) and note.id == "index" and is_kernel:
        return Parameter(arg.arg, "index")
    if note is None and not is_kernel:
        return Parameter(arg.arg, "value")
    wanted = "dtype[dims...] or index" if is_kernel else "dtype[dims...], or no annotation"
    raise source.error(note or arg, f"parameter {arg.arg} needs {wanted}")


def parse_dim(source: Source, node: ast.expr) -> int | str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Constant) and isinstance(node.value, int) and node.value > 0:
        return node.value
    raise source.error(node, "a dimension is a name or a positive number")


def constant_parameter(source: Source, arg: ast.arg) -> Parameter:
    note = arg.annotation
    if isinstance(note, ast.Name) and note.id in CONSTANT_KINDS:
        return Parameter(arg.arg, note.id)
    kinds = ", ".join(CONSTANT_KINDS)
    raise source.error(note or arg, f"compile-time parameter {arg.arg} must be one of {kinds}")


# --- the closed world ----------------------------------------------------------------------------

_STATEMENTS = (ast.Assign, ast.AugAssign, ast.For, ast.If, ast.Expr, ast.Return, ast.Pass)
_EXPRESSIONS = (
    ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Call, ast.Name, ast.Constant,
    ast.Subscript, ast.Tuple, ast.keyword,
)  # fmt: skip
_MARKS = (
    ast.expr_context, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.BitAnd,
    ast.BitOr, ast.BitXor, ast.LShift, ast.RShift, ast.USub, ast.Not, ast.And, ast.Or, ast.Lt,
    ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq,
)  # fmt: skip
_PLAIN_NAMES = {
    "FunctionDef": "nested def", "ClassDef": "class", "AsyncFor": "async for",
    "AnnAssign": "annotated assignment", "ListComp": "list comprehension", "List": "list",
    "DictComp": "dict comprehension", "SetComp": "set comprehension", "Dict": "dict", "Set": "set",
    "GeneratorExp": "generator expression", "JoinedStr": "f-string", "NamedExpr": ":=",
    "Attribute": "attribute access; import the name instead", "Starred": "*unpacking",
    "Slice": "slice; use load(..., lanes=n)", "Is": "is", "IsNot": "is not", "In": "in",
    "NotIn": "not in", "Pow": "**", "MatMult": "@", "Invert": "~", "UAdd": "unary +",
    "ImportFrom": "import", "TryStar": "try",
}  # fmt: skip


def check_supported(source: Source, root: ast.AST) -> None:
    """Refuse any node outside the language under `root`."""

    def visit(node: ast.AST, place: ast.AST) -> None:
        place = node if hasattr(node, "lineno") else place
        if not isinstance(node, _STATEMENTS + _EXPRESSIONS + _MARKS):
            kind = type(node).__name__
            name = _PLAIN_NAMES.get(kind, kind.lower())
            raise source.error(place, f"this construct is not supported in kernels: {name}")
        if isinstance(node, ast.For) and node.orelse:
            raise source.error(node, "this construct is not supported in kernels: for ... else")
        if isinstance(node, ast.Constant) and not isinstance(node.value, (bool, int, float)):
            literal = type(node.value).__name__
            raise source.error(
                node, f"this construct is not supported in kernels: {literal} literal"
            )
        for child in ast.iter_child_nodes(node):
            visit(child, place)

    visit(root, root)


def reassigned_variables(
    parameters: tuple[Parameter, ...], body: list[ast.stmt]
) -> frozenset[ast.AST | str]:
    """The declaring statements (or parameter names) of variables that a later statement changes."""
    changed: set[ast.AST | str] = set()

    def declare(name: str, statement: ast.stmt, declared: dict[str, list[ast.AST | str]]) -> None:
        if name in declared:
            changed.update(declared[name])
        else:
            declared[name] = [statement]

    def scan(statements: list[ast.stmt], declared: dict[str, list[ast.AST | str]]) -> None:
        for statement in statements:
            if isinstance(statement, ast.Assign):
                for target in statement.targets:
                    if isinstance(target, ast.Name):
                        declare(target.id, statement, declared)
            elif isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
                declare(statement.target.id, statement, declared)
            elif isinstance(statement, ast.For):
                scan(statement.body, dict(declared))
            elif isinstance(statement, ast.If):
                # A compile-time `if` declares into this block, from either branch.
                branches = [dict(declared), dict(declared)]
                scan(statement.body, branches[0])
                scan(statement.orelse, branches[1])
                for branch in branches:
                    for name, places in branch.items():
                        known = declared.setdefault(name, [])
                        known.extend(p for p in places if p not in known)

    scan(body, {p.name: [p.name] for p in parameters})
    return frozenset(changed)
