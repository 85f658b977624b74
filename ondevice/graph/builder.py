"""GraphBuilder: appends nodes while a family's `forward` runs; types come from the OPS table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from ondevice.errors import GraphError, nearest
from ondevice.graph.graph import Attr, Graph, Node, TensorType, Value
from ondevice.graph.ops import op_named


@dataclass
class GraphBuilder:
    """A graph in the making.

    `weight_types` is what the model may refer to; a weight enters the graph when it is first used.
    Nodes get readable unique names, `scope.op` unless told otherwise, and `scope` as their source.
    """

    name: str
    weight_types: Mapping[str, TensorType] = field(default_factory=dict)
    inputs: list[Value] = field(default_factory=list)
    weights: dict[str, Value] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    _scopes: list[str] = field(default_factory=list)
    _names: set[str] = field(default_factory=set)

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Within it, names, sources and weights start with `name.`; scopes nest."""
        self._scopes.append(name)
        try:
            yield
        finally:
            self._scopes.pop()

    @property
    def source(self) -> str:
        """Where the model is being traced, such as "layers.3.mlp"."""
        return ".".join(self._scopes)

    def input(self, name: str, type_: TensorType) -> Value:
        """Declare an input of the step."""
        value = Value(self._unique(name), type_)
        self.inputs.append(value)
        return value

    def weight(self, name: str) -> Value:
        """The weight of this name within the current scope; GraphError where there is none."""
        return self.global_weight(self._qualified(name))

    def global_weight(self, name: str) -> Value:
        """The weight of this full name, whatever the scope (a tied head reads the embedding)."""
        if name not in self.weights:
            if name not in self.weight_types:
                hint = nearest(name, self.weight_types)
                raise GraphError(f"{self.name} has no weight {name!r}{hint}")
            self.weights[name] = Value(self._unique(name), self.weight_types[name])
        return self.weights[name]

    def node(self, op: str, *inputs: Value, name: str = "", **attrs: Attr) -> Value:
        """Append `op(*inputs)` and return its value, named `name` (or the op) within the scope.

        Raises GraphError where the inputs or attributes do not fit the op.
        """
        row = op_named(op)
        qualified = self._qualified(name or op)
        ordered = tuple((a, attrs[a]) for a in row.attrs if a in attrs)
        unknown = tuple((a, v) for a, v in attrs.items() if a not in row.attrs)
        try:
            type_ = row.infer_type([v.type for v in inputs], ordered + unknown)
        except GraphError as error:
            raise GraphError(f"{qualified}: {error}") from None
        output = Value(self._unique(qualified), type_)
        names = tuple(v.name for v in inputs)
        self.nodes.append(Node(op, names, output, ordered, source=self.source))
        return output

    def finish(self, *outputs: Value) -> Graph:
        """The graph that returns these values."""
        return Graph(
            self.name,
            tuple(self.inputs),
            tuple(self.weights.values()),
            tuple(self.nodes),
            tuple(v.name for v in outputs),
        )

    def _qualified(self, name: str) -> str:
        return ".".join((*self._scopes, name))

    def _unique(self, name: str) -> str:
        unique, count = name, 1
        while unique in self._names:
            count += 1
            unique = f"{name}.{count}"
        self._names.add(unique)
        return unique
