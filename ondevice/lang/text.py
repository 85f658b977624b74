"""A Kernel as text that parses back: `parse_kernel(print_kernel(k)) == k`.

The text reads like the kernel language with every type made plain: constants carry their dtype
(`f32(0.5)`; a bare number is an index), sizes are numbers or names of the run-time scalars.

    def scale(x: f32[S, 64], y: f32[S, 64], *, S: index):
        for s in parallel(S):
            for k in range(0, 64, 16):
                store(y, s, k, load(x, s, k, lanes=16) * vec(f32(0.5), 16))
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from ondevice.dtypes import DTYPES
from ondevice.errors import KernelError
from ondevice.lang import check
from ondevice.lang import kernel_ir as ir
from ondevice.lang.check import Mismatch
from ondevice.lang.expressions import symbol_of
from ondevice.lang.intrinsics import INTRINSICS
from ondevice.lang.memory import build_dot_tile, build_load, build_prefetch, build_store

_SYMBOLS = {
    name: symbol for symbol, (name, _) in (*check.ARITHMETIC.items(), *check.COMPARISON.items())
}


# --- printing ------------------------------------------------------------------------------------


def print_kernel(kernel: ir.Kernel) -> str:
    """The kernel's text, one statement a line."""
    parameters = [f"{b.name}: {b}" for b in kernel.buffers]
    if kernel.scalars:
        parameters += ["*", *(f"{s}: index" for s in kernel.scalars)]
    lines = [f"def {kernel.name}({', '.join(parameters)}):"]
    for s in kernel.scratch:
        lines.append(f"    {s.name} = scratch({s.dtype}, {', '.join(map(str, s.dims))})")
    extents = ", ".join(map(print_expr, kernel.extents))
    lines.append(f"    for {', '.join(kernel.tasks)} in parallel({extents}):")
    printer = _Printer(kernel)
    lines += printer.block(kernel.body, 8)
    return "\n".join(lines) + "\n"


def print_expr(expr: ir.Expr) -> str:
    """An index expression, as in messages and extents."""
    return _Printer(None).expr(expr)


class _Printer:
    def __init__(self, kernel: ir.Kernel | None) -> None:
        buffers = (*kernel.buffers, *kernel.scratch) if kernel else ()
        self.dtypes = {b.name: b.dtype for b in buffers}

    def block(self, body: tuple[ir.Stmt, ...], indent: int) -> Iterator[str]:
        pad = " " * indent
        if not body:
            yield pad + "pass"
        for statement in body:
            match statement:
                case ir.Assign(name, value):
                    yield f"{pad}{name} = {self.expr(value)}"
                case ir.Store():
                    yield pad + self.store(statement)
                case ir.Prefetch(buffer, indices):
                    yield f"{pad}prefetch({', '.join([buffer, *map(self.expr, indices)])})"
                case ir.DotTile():
                    yield pad + self.dot_tile(statement)
                case ir.For(name, start, stop, step, inner):
                    bounds = f"{self.expr(start)}, {self.expr(stop)}, {step}"
                    yield f"{pad}for {name} in range({bounds}):"
                    yield from self.block(inner, indent + 4)
                case ir.If(condition, then, orelse):
                    yield f"{pad}if {self.expr(condition)}:"
                    yield from self.block(then, indent + 4)
                    if orelse:
                        yield f"{pad}else:"
                        yield from self.block(orelse, indent + 4)

    def store(self, store: ir.Store) -> str:
        place, value = ", ".join(map(self.expr, store.indices)), self.expr(store.value)
        if store.count is None and store.value.type == ir.Type(self.dtypes[store.buffer]):
            return f"{store.buffer}[{place}] = {value}"
        count = "" if store.count is None else f", count={self.expr(store.count)}"
        return f"store({store.buffer}, {place}, {value}{count})"

    def dot_tile(self, tile: ir.DotTile) -> str:
        places = (
            ", ".join([name, *map(self.expr, at)])
            for name, at in (
                (tile.out, tile.out_at),
                (tile.rows, tile.rows_at),
                (tile.columns, tile.columns_at),
            )
        )
        return f"dot_tile({', '.join(places)})"

    def expr(self, expr: ir.Expr) -> str:
        match expr:
            case ir.Const(type, value):
                text = str(value)
                if type.dtype not in (ir.INDEX.dtype, ir.BOOL.dtype):
                    text = f"{type.dtype}({text})"
                return text if type.lanes == 1 else f"vec({text}, {type.lanes})"
            case ir.Var(_, name):
                return name
            case ir.Load():
                return self.load(expr)
            case ir.Op(type, name, args):
                return self.op(type, name, args)

    def operand(self, expr: ir.Expr) -> str:
        """An argument; operators in it are put in parentheses."""
        text = self.expr(expr)
        nested = isinstance(expr, ir.Op) and (expr.name in _SYMBOLS or expr.name in ("neg", "not"))
        return f"({text})" if nested else text

    def op(self, type: ir.Type, name: str, args: Sequence[ir.Expr]) -> str:
        if name in _SYMBOLS:
            return f"{self.operand(args[0])} {_SYMBOLS[name]} {self.operand(args[1])}"
        if name == "neg":
            return f"-{self.operand(args[0])}"
        if name == "not":
            return f"not {self.operand(args[0])}"
        plain = [self.expr(a) for a in args]
        if name in ("vec", "iota"):
            plain.append(str(type.lanes))
        elif name in ("cast", "bitcast"):
            plain.insert(0, type.dtype.name)
        return f"{name}({', '.join(plain)})"

    def load(self, load: ir.Load) -> str:
        place = ", ".join(map(self.expr, load.indices))
        own = self.dtypes[load.buffer]
        if load.count is None and load.type == ir.Type(own):
            return f"{load.buffer}[{place}]"
        text = f"load({load.buffer}, {place}, lanes={load.type.lanes}"
        if load.count is not None:
            text += f", count={self.expr(load.count)}"
        if load.type.dtype != own:
            text += f", as_={load.type.dtype}"
        return text + ")"


# --- parsing -------------------------------------------------------------------------------------


def parse_kernel(text: str) -> ir.Kernel:
    """The inverse of `print_kernel`; KernelError with the line of the text otherwise."""
    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", 1)
        raise KernelError(f"kernel text, line {line}: {getattr(error, 'msg', error)}") from None
    if len(module.body) != 1 or not isinstance(module.body[0], ast.FunctionDef):
        raise KernelError("kernel text, line 1: one function is wanted")
    try:
        return _Parser().kernel(module.body[0])
    except MALFORMED as error:
        raise KernelError(f"kernel text, line 1: {error}") from None


# What comes of rebuilding a tree of other shapes than those that are printed.
MALFORMED = (
    *(Mismatch, LookupError, TypeError, ValueError, ArithmeticError, AssertionError),
    *(AttributeError, RecursionError),
)


class _Parser:
    """Rebuilds typed nodes with the very type rules of the front end."""

    def __init__(self) -> None:
        self.buffers: dict[str, ir.Buffer] = {}
        self.variables: dict[str, ir.Type] = {}

    def fail(self, node: ast.AST, message: str) -> KernelError:
        return KernelError(f"kernel text, line {getattr(node, 'lineno', 1)}: {message}")

    def kernel(self, function: ast.FunctionDef) -> ir.Kernel:
        buffers = tuple(self.buffer(a) for a in function.args.args)
        scalars = tuple(a.arg for a in function.args.kwonlyargs)
        self.variables = dict.fromkeys(scalars, ir.INDEX)
        *declarations, loop = function.body
        scratch = tuple(self.scratch(d) for d in declarations)
        match loop:
            case ast.For(target=target, iter=ast.Call(func=ast.Name("parallel"), args=args)):
                extents = tuple(self.expr(a) for a in args)
            case _:
                raise self.fail(loop, "the last statement is the parallel loop")
        targets = target.elts if isinstance(target, ast.Tuple) else [target]
        tasks = tuple(t.id for t in targets if isinstance(t, ast.Name))
        self.variables |= dict.fromkeys(tasks, ir.INDEX)
        body = self.block(loop.body)
        return ir.Kernel(function.name, buffers, scratch, scalars, tasks, extents, body)

    def buffer(self, arg: ast.arg) -> ir.Buffer:
        match arg.annotation:
            case ast.Subscript(value=ast.Name(id=dtype), slice=dims) if dtype in DTYPES:
                places = dims.elts if isinstance(dims, ast.Tuple) else [dims]
            case _:
                raise self.fail(arg, f"{arg.arg} needs dtype[dims...]")
        sizes = tuple(self.dim(p) for p in places)
        return self.buffers.setdefault(arg.arg, ir.Buffer(arg.arg, DTYPES[dtype], sizes))

    def dim(self, node: ast.expr) -> int | str:
        match node:
            case ast.Constant(value=int() as size):
                return size
            case ast.Name(id=name):
                return name
        raise self.fail(node, "a dimension is a number or a scalar's name")

    def scratch(self, statement: ast.stmt) -> ir.Buffer:
        match statement:
            case ast.Assign(
                targets=[ast.Name(id=name)],
                value=ast.Call(func=ast.Name("scratch"), args=[ast.Name(id=dtype), *dims]),
            ) if dtype in DTYPES:
                sizes = tuple(self.dim(d) for d in dims)
                return self.buffers.setdefault(name, ir.Buffer(name, DTYPES[dtype], sizes))
        raise self.fail(statement, "only scratch stands before the parallel loop")

    def block(self, statements: list[ast.stmt]) -> tuple[ir.Stmt, ...]:
        visible = dict(self.variables)
        body = tuple(self.statement(s) for s in statements if not isinstance(s, ast.Pass))
        self.variables = visible
        return body

    def statement(self, node: ast.stmt) -> ir.Stmt:
        try:
            match node:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    expr = self.expr(value)
                    if self.variables.setdefault(name, expr.type) != expr.type:
                        raise Mismatch(f"{name} is {self.variables[name]}, not {expr.type}")
                    return ir.Assign(name, expr)
                case ast.Assign(
                    targets=[ast.Subscript(value=ast.Name(id=name)) as place], value=value
                ):
                    return build_store(self.buffers[name], self.places(place), self.expr(value))
                case ast.Expr(value=ast.Call(func=ast.Name("store")) as call):
                    return self.store(call)
                case ast.Expr(
                    value=ast.Call(func=ast.Name("prefetch"), args=[ast.Name(id=name), *indices])
                ):
                    return build_prefetch(self.buffers[name], [self.expr(i) for i in indices])
                case ast.Expr(value=ast.Call(func=ast.Name("dot_tile")) as call):
                    return self.dot_tile(call)
                case ast.For(target=ast.Name(id=name), iter=ast.Call(args=[start, stop, step])):
                    bounds = self.expr(start), self.expr(stop)
                    self.variables[name] = ir.INDEX
                    size = check.static_int(self.expr(step), "the step of range")
                    return ir.For(name, *bounds, size, self.block(node.body))
                case ast.If(test=test, body=then, orelse=orelse):
                    condition = check.condition(self.expr(test))
                    return ir.If(condition, self.block(then), self.block(orelse))
        except MALFORMED as error:
            raise self.fail(node, str(error)) from None
        raise self.fail(node, "this is no statement of a printed kernel")

    def store(self, call: ast.Call) -> ir.Store:
        buffer, *rest = call.args
        *places, stored = (self.expr(r) for r in rest)
        count = {k.arg: self.expr(k.value) for k in call.keywords}.get("count")
        assert isinstance(buffer, ast.Name)
        return build_store(self.buffers[buffer.id], places, stored, count)

    def dot_tile(self, call: ast.Call) -> ir.DotTile:
        places: list[tuple[ir.Buffer, list[ir.Expr]]] = []
        for argument in call.args:
            if isinstance(argument, ast.Name) and argument.id in self.buffers:
                places.append((self.buffers[argument.id], []))
            else:
                places[-1][1].append(self.expr(argument))
        out, rows, columns = places
        return build_dot_tile(out, rows, columns)

    def places(self, node: ast.Subscript) -> list[ir.Expr]:
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return [self.expr(p) for p in parts]

    def expr(self, node: ast.expr) -> ir.Expr:
        """Like `number`, but a bare number becomes a Const."""
        match node:
            case ast.Constant(value=bool() | int() as value):
                return check.typed(value)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() as value)):
                return check.typed(-value)
            case ast.Name(id=name) if name in self.variables:
                return ir.Var(self.variables[name], name)
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                return check.typed(check.negate(self.expr(inner)))
            case ast.UnaryOp(op=ast.Not(), operand=inner):
                return check.typed(check.logical_not(self.expr(inner)))
            case ast.BinOp(left=left, op=op, right=right):
                a, b = self.expr(left), self.expr(right)
                return check.typed(check.binary(symbol_of(op), a, b))
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                a, b = self.expr(left), self.expr(right)
                return check.typed(check.compare(symbol_of(op), a, b))
            case ast.Subscript(value=ast.Name(id=name)):
                return build_load(self.buffers[name], self.places(node), 1)
            case ast.Call(func=ast.Name(id=name)):
                return self.call(name, node)
        raise self.fail(node, "this is no expression of a printed kernel")

    def call(self, name: str, node: ast.Call) -> ir.Expr:
        if name == "load":
            return self.load(node)
        if name in DTYPES:
            return check.constant(ir.Type(DTYPES[name]), self.number(node.args[0]))
        row = INTRINSICS.get(name)
        if row is None or row.build is None:
            raise Mismatch(f"unknown intrinsic {name}")
        arguments = [
            DTYPES[a.id] if isinstance(a, ast.Name) and a.id in DTYPES else self.expr(a)
            for a in node.args
        ]
        return check.typed(row.build(*arguments))

    def load(self, node: ast.Call) -> ir.Load:
        buffer, *places = node.args
        options = {k.arg: k.value for k in node.keywords}
        lanes = check.static_int(self.expr(options["lanes"]), "lanes")
        count = self.expr(options["count"]) if "count" in options else None
        as_ = options.get("as_")
        dtype = DTYPES[as_.id] if isinstance(as_, ast.Name) else None
        assert isinstance(buffer, ast.Name)
        indices = [self.expr(p) for p in places]
        return build_load(self.buffers[buffer.id], indices, lanes, count, dtype)

    def number(self, node: ast.expr) -> int | float:
        """The number in `f32(...)`, with inf and nan."""
        match node:
            case ast.Constant(value=int() | float() as value):
                return value
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                return -self.number(inner)
            case ast.Name(id="inf" | "nan" as name):
                return float(name)
        raise self.fail(node, "a number is wanted here")
