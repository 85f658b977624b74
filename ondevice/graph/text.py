"""The text form of graphs: what `--dump` writes, goldens hold, and `parse_graph` reads back.

    graph "llama"
    input tokens: i32[S]
    weight embed.weight: f32[512, 64]
    embed: f32[S, 64] = embed(tokens, embed.weight)
    layers.0.mlp.up.matmul: f32[S, 172] = matmul(embed, w) from "layers.0.mlp.up"
      before normalize(_, scale, norm.weight)
      after mul(_, gate)
      on "cpu"
      choose gemv {rows=4} for 1..1
    store embed in 0
    return (logits, kv)

One node a line; what passes have added to it follows, indented. Lines starting with # are comments.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ondevice.bundle.program import ALL_SPANS
from ondevice.dims import Extent
from ondevice.dtypes import DTYPES
from ondevice.errors import GraphError
from ondevice.graph.graph import (
    Applied,
    Attr,
    Attrs,
    Choice,
    Graph,
    Node,
    Special,
    TensorType,
    Value,
)

# --- printing ---------------------------------------------------------------------------------


def print_graph(graph: Graph) -> str:
    """The graph as text; `parse_graph` of it equals the graph."""
    return "".join(f"{line}\n" for line in _lines(graph))


def _lines(graph: Graph) -> Iterator[str]:
    yield f"graph {json.dumps(graph.name)}"
    yield from (f"input {value.name}: {value.type}" for value in graph.inputs)
    yield from (f"weight {value.name}: {value.type}" for value in graph.weights)
    for node in graph.nodes:
        yield from _node_lines(node)
    yield from (f"store {name} in {slot}" for name, slot in graph.storage)
    yield f"return ({', '.join(graph.outputs)})"


def _node_lines(node: Node) -> Iterator[str]:
    call = _print_call(node.op, node.inputs, node.attrs)
    source = f" from {json.dumps(node.source)}" if node.source else ""
    yield f"{node.output.name}: {node.output.type} = {call}{source}"
    for keyword, fused in (("before", node.prologue), ("after", node.epilogue)):
        for applied in fused:
            yield f"  {keyword} {_print_call(applied.op, applied.inputs, applied.attrs)}"
    if node.device:
        yield f"  on {json.dumps(node.device)}"
    for choice in node.choices:
        schedule = _print_attrs(choice.schedule)
        spans = (choice.min_spans, choice.max_spans)
        limits = "" if spans == (0, ALL_SPANS) else f" spans {spans[0]}..{spans[1]}"
        yield f"  choose {choice.kernel}{schedule} for {choice.min_rows}..{choice.max_rows}{limits}"
        for special in choice.specials:
            yield f"  but {special.kernel}{_print_attrs(special.schedule)} on {special.variant}"


def _print_call(op: str, inputs: tuple[str, ...], attrs: Attrs) -> str:
    return f"{op}({', '.join(inputs)}){_print_attrs(attrs)}"


def _print_attrs(attrs: Attrs) -> str:
    if not attrs:
        return ""
    return " {" + ", ".join(f"{name}={_print_attr(value)}" for name, value in attrs) + "}"


def _print_attr(value: Attr) -> str:
    if isinstance(value, float):
        return repr(value)  # the shortest text that reads back as the same float; JSON has no inf
    return json.dumps(value)


# --- parsing ----------------------------------------------------------------------------------

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
INTEGER = re.compile(r"-?\d+")
STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
TYPE = re.compile(r"(\w+)\[([^\]]*)\](?::(\w+))?")
# Longest first: a float's text starts like an integer's.
ATTR = re.compile(r"true|false|nan|-?inf|-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def parse_graph(text: str) -> Graph:
    """The inverse of `print_graph`. Raises GraphError with the line's number and text.

    Only the form is checked here; `verify` checks what it says.
    """
    graph: Graph | None = None
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip() and not line.startswith("#"):
            cursor = _Cursor(line, number)
            if graph is None:
                cursor.expect("graph ")
                graph = Graph(cursor.string(), (), (), (), ())
            else:
                graph = _parse_line(graph, cursor)
            cursor.finish()
    if graph is None:
        raise GraphError("line 1: an empty text is not a graph")
    return graph


@dataclass
class _Cursor:
    """A position in one line of text."""

    line: str
    number: int
    position: int = 0

    def accept(self, literal: str) -> bool:
        """Step over `literal` if it comes next."""
        found = self.line.startswith(literal, self.position)
        self.position += len(literal) if found else 0
        return found

    def expect(self, literal: str) -> None:
        if not self.accept(literal):
            raise self.error(f"expected {literal.strip()!r}")

    def take(self, pattern: re.Pattern[str], what: str) -> re.Match[str]:
        match = pattern.match(self.line, self.position)
        if not match:
            raise self.error(f"expected {what}")
        self.position = match.end()
        return match

    def name(self) -> str:
        return self.take(NAME, "a name")[0]

    def integer(self) -> int:
        return int(self.take(INTEGER, "an integer")[0])

    def string(self) -> str:
        token = self.take(STRING, "a string in double quotes")[0]
        try:
            text: str = json.loads(token)
        except ValueError:
            raise self.error(f"{token} is not a string") from None
        return text

    def names(self, end: str) -> tuple[str, ...]:
        """Names separated by commas up to `end`, which is stepped over."""
        names: list[str] = []
        while not self.accept(end):
            if names:
                self.expect(", ")
            names.append(self.name())
        return tuple(names)

    def finish(self) -> None:
        if self.position != len(self.line):
            raise self.error("expected nothing more")

    def error(self, message: str) -> GraphError:
        caret = " " * self.position + "^"
        return GraphError(f"line {self.number}: {message}\n{self.line}\n{caret}")


def _parse_line(graph: Graph, cursor: _Cursor) -> Graph:
    if cursor.accept("  "):
        if not graph.nodes:
            raise cursor.error("an indented line must follow a node")
        *earlier, node = graph.nodes
        return graph.with_nodes((*earlier, _parse_detail(node, cursor)))
    if cursor.accept("input "):
        return replace(graph, inputs=(*graph.inputs, _parse_value(cursor)))
    if cursor.accept("weight "):
        return replace(graph, weights=(*graph.weights, _parse_value(cursor)))
    if cursor.accept("store "):
        name = cursor.name()
        cursor.expect(" in ")
        return replace(graph, storage=(*graph.storage, (name, cursor.integer())))
    if cursor.accept("return ("):
        return replace(graph, outputs=cursor.names(")"))
    return graph.with_nodes((*graph.nodes, _parse_node(cursor)))


def _parse_node(cursor: _Cursor) -> Node:
    output = _parse_value(cursor)
    cursor.expect(" = ")
    op, inputs, attrs = _parse_call(cursor)
    source = cursor.string() if cursor.accept(" from ") else ""
    return Node(op, inputs, output, attrs, source)


def _parse_detail(node: Node, cursor: _Cursor) -> Node:
    """`node` with what one indented line says of it."""
    if cursor.accept("before "):
        return replace(node, prologue=(*node.prologue, Applied(*_parse_call(cursor))))
    if cursor.accept("after "):
        return replace(node, epilogue=(*node.epilogue, Applied(*_parse_call(cursor))))
    if cursor.accept("on "):
        return replace(node, device=cursor.string())
    if cursor.accept("but "):
        return _parse_special(node, cursor)
    cursor.expect("choose ")
    kernel, schedule = cursor.name(), _parse_attrs(cursor)
    cursor.expect(" for ")
    min_rows = cursor.integer()
    cursor.expect("..")
    choice = Choice(kernel, schedule, min_rows, cursor.integer())
    if cursor.accept(" spans "):
        min_spans = cursor.integer()
        cursor.expect("..")
        choice = replace(choice, min_spans=min_spans, max_spans=cursor.integer())
    return replace(node, choices=(*node.choices, choice))


def _parse_special(node: Node, cursor: _Cursor) -> Node:
    kernel, schedule = cursor.name(), _parse_attrs(cursor)
    cursor.expect(" on ")
    special = Special(cursor.name(), kernel, schedule)
    if not node.choices:
        raise cursor.error("this stands behind no choice")
    *others, last = node.choices
    last = replace(last, specials=(*last.specials, special))
    return replace(node, choices=(*others, last))


def _parse_value(cursor: _Cursor) -> Value:
    name = cursor.name()
    cursor.expect(": ")
    match = cursor.take(TYPE, "a type such as f32[S, 64]")
    dtype, dims, scheme = match[1], match[2], match[3] or ""
    if dtype not in DTYPES:
        raise cursor.error(f"unknown element type {dtype!r}")
    try:
        shape = tuple(Extent.parse(d) for d in dims.split(", ")) if dims else ()
    except ValueError as error:
        raise cursor.error(str(error)) from None
    if any(dim.div == 0 for dim in shape):
        raise cursor.error(f"the shape [{dims}] divides by zero")
    return Value(name, TensorType(DTYPES[dtype], shape, scheme))


def _parse_call(cursor: _Cursor) -> tuple[str, tuple[str, ...], Attrs]:
    op = cursor.name()
    cursor.expect("(")
    return op, cursor.names(")"), _parse_attrs(cursor)


def _parse_attrs(cursor: _Cursor) -> Attrs:
    attrs: list[tuple[str, Attr]] = []
    if not cursor.accept(" {"):
        return ()
    while not cursor.accept("}"):
        if attrs:
            cursor.expect(", ")
        name = cursor.name()
        cursor.expect("=")
        attrs.append((name, _parse_attr(cursor)))
    return tuple(attrs)


def _parse_attr(cursor: _Cursor) -> Attr:
    if cursor.line.startswith('"', cursor.position):
        return cursor.string()
    text = cursor.take(ATTR, "a number, true, false or a string")[0]
    if text in ("true", "false"):
        return text == "true"
    return int(text) if INTEGER.fullmatch(text) else float(text)
