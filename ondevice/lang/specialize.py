"""`specialize`: a kernel's source, with its sizes and compile-time constants, becomes a Kernel.

One walk does it all: names are bound, holes and @inline calls expanded, compile-time branches
pruned, `unroll` and `registers` expanded to plain variables, and every expression type-checked.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Mapping

from ondevice.dtypes import DTYPES, DType, f32
from ondevice.errors import KernelError, nearest
from ondevice.lang import check
from ondevice.lang import kernel_ir as ir
from ondevice.lang.check import Mismatch, adapt, static_int, typed
from ondevice.lang.dsl import Chain, KernelFunction, hole_buffers
from ondevice.lang.expressions import BoundHole, BoundStep, Frame, RegisterArray, Value, symbol_of
from ondevice.lang.inlining import Inlining, dim_expr
from ondevice.lang.intrinsics import Intrinsic, dtype_of, operand
from ondevice.lang.parse import Parameter

Constant = int | float | bool | DType | Chain

_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,), "float": (int, float), "bool": (bool,), "DType": (DType,), "Inline": (Chain,),
}  # fmt: skip


def specialize(
    function: KernelFunction, dims: Mapping[str, int | str], constants: Mapping[str, Constant]
) -> ir.Kernel:
    """The Kernel of `function` for these sizes and compile-time constants.

    A dim is bound to a number, to the name of another dim of the kernel, or, where `dims` does not
    name it, is passed at run time. Raises KernelError, with a caret where source is to blame.
    """
    return Specializer(function, dims, constants).kernel()


class Specializer(Inlining):
    """Expands statements; one instance makes one Kernel."""

    def __init__(
        self,
        function: KernelFunction,
        dims: Mapping[str, int | str],
        constants: Mapping[str, Constant],
    ) -> None:
        super().__init__()
        self.name = function.name
        self.source = function.source
        self.frame = Frame(self.source)
        self.constants = self.check_constants(function, constants)
        self.tasks: tuple[str, ...] = ()
        self.extents: tuple[ir.Expr, ...] = ()
        self.scalars: list[str] = []
        self.buffers: list[ir.Buffer] = []
        self.bind_parameters(dims)

    # --- the signature ---------------------------------------------------------------------------

    def check_constants(
        self, function: KernelFunction, given: Mapping[str, Constant]
    ) -> dict[str, Constant]:
        values = function.constant_values(given)
        kinds = {p.name: p.kind for p in self.source.constants}
        for name, value in [*given.items(), *values.items()]:
            if name not in kinds:
                raise KernelError(f"{self.name}: unknown constant {name!r}" + nearest(name, kinds))
            kind = kinds[name]
            wrong_bool = isinstance(value, bool) and kind != "bool"
            if not isinstance(value, _KINDS[kind]) or wrong_bool:
                raise KernelError(f"{self.name}: {name} must be {kind}, not {value!r}")
        return values

    def bind_parameters(self, given: Mapping[str, int | str]) -> None:
        """Buffers, dims, scalars and constants, in the order of the kernel's ABI."""
        chains = {k: v for k, v in self.constants.items() if isinstance(v, Chain)}
        extra = [
            (i, hole, name, p)
            for hole, chain in ((p.name, chains[p.name]) for p in self.source.constants
                                if p.name in chains)
            for i, name, p in hole_buffers(hole, chain)
        ]  # fmt: skip
        parameters = [*self.source.buffers, *(p for *_, p in extra)]
        names = {d for p in parameters for d in p.dims if isinstance(d, str)}
        for name in given:
            if name not in names:
                raise KernelError(f"{self.name}: unknown dim {name!r}" + nearest(name, names))
        for p in self.source.positional:
            self.fresh(p.name)
        for p in self.source.buffers:
            self.add_buffer(p.name, p, given, self.constants)
        steps: dict[str, list[dict[str, ir.Buffer]]] = {
            hole: [{} for _ in chain.steps] for hole, chain in chains.items()
        }
        for i, hole, name, p in extra:
            self.fresh(name)
            own = dict(chains[hole].steps[i].constants)
            steps[hole][i][p.name] = self.add_buffer(name, p, given, own)
        scope = self.frame.scopes[0]
        for buffer in self.buffers[: len(self.source.buffers)]:
            scope[buffer.name] = buffer
        for name in self.source.dims:
            if name not in self.constants:
                scope[name] = dim_expr(self.resolve(name, given, self.constants))
        for p in self.source.positional:
            if p.kind == "index":
                self.scalars.append(p.name)
                scope[p.name] = ir.Var(ir.INDEX, p.name)
        for name, value in self.constants.items():
            scope[name] = value if not isinstance(value, Chain) else BoundHole(
                tuple(map(BoundStep, value.steps, steps[name]))
            )  # fmt: skip
        self.fixed.update(self.scalars)

    def add_buffer(
        self,
        name: str,
        parameter: Parameter,
        given: Mapping[str, int | str],
        constants: Mapping[str, object],
    ) -> ir.Buffer:
        dtype = constants.get(parameter.dtype, DTYPES.get(parameter.dtype))
        if not isinstance(dtype, DType):
            raise KernelError(f"{self.name}: {name} has unknown dtype {parameter.dtype!r}")
        dims = tuple(self.resolve(d, given, constants) for d in parameter.dims)
        buffer = ir.Buffer(name, DTYPES[dtype.name], dims)
        for dim in dims:
            if isinstance(dim, str) and dim not in self.scalars:
                self.scalars.append(self.fresh(dim))
        self.buffers.append(buffer)
        return buffer

    def resolve(
        self, dim: int | str, given: Mapping[str, int | str], constants: Mapping[str, object]
    ) -> int | str:
        """A number, or the name of a run-time dim, following aliases."""
        for _ in range(8):
            if isinstance(dim, int):
                break
            fixed = constants.get(dim)
            if isinstance(fixed, int):
                dim = fixed
            elif dim in given:
                dim = given[dim]
            else:
                return dim
        if isinstance(dim, str) or dim < 1:
            raise KernelError(f"{self.name}: dimension {dim} is not a positive size")
        return dim

    # --- statements ------------------------------------------------------------------------------

    def kernel(self) -> ir.Kernel:
        """Expand the body: declarations, then the one parallel loop."""
        body = self.source.body
        if not body or not is_loop(body[-1], "parallel"):
            place = body[-1] if body else ast.Pass()
            raise self.error(place, "a kernel ends with its one parallel loop")
        for statement in body[:-1]:
            self.run((statement,))
            if self.block:
                raise self.error(statement, "before the parallel loop only scratch and sizes")
        loop = body[-1]
        assert isinstance(loop, ast.For)
        self.run_parallel(loop)
        return ir.Kernel(
            self.name, tuple(self.buffers), tuple(self.scratch), tuple(self.scalars),
            self.tasks, self.extents, tuple(self.block),
        )  # fmt: skip

    def run_parallel(self, loop: ast.For) -> None:
        assert isinstance(loop.iter, ast.Call)
        targets = loop.target.elts if isinstance(loop.target, ast.Tuple) else [loop.target]
        extents = [self.operand(a) for a in loop.iter.args]
        if len(targets) != len(extents) or not 1 <= len(extents) <= 3 or loop.iter.keywords:
            raise self.error(loop, "parallel takes 1 to 3 extents and as many loop variables")
        try:
            self.extents = tuple(adapt(e, ir.INDEX) for e in extents)
        except Mismatch as error:
            raise self.error(loop.iter, str(error)) from None
        self.frame.scopes.append({})
        self.tasks = tuple(self.loop_variable(t).name for t in targets)
        self.run(tuple(loop.body))

    def run(self, statements: tuple[ast.stmt, ...]) -> None:
        for statement in statements:
            self.pending_loads = 0
            try:
                self.run_statement(statement)
            except Mismatch as error:
                raise self.error(statement, str(error)) from None

    def run_statement(self, statement: ast.stmt) -> None:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                self.assign(name, statement, self.assigned_value(name, value))
            case ast.Assign(targets=[ast.Subscript() as place], value=value):
                new = self.operand(value)
                self.write_place(*self.subscript(place), new)
            case ast.AugAssign(target=ast.Name(id=name) as target, op=op, value=value):
                old = self.operand(target)
                self.assign(name, statement, check.binary(symbol_of(op), old, self.operand(value)))
            case ast.AugAssign(target=ast.Subscript() as place, op=op, value=value):
                array, indices = self.subscript(place)
                old, new = self.read_place(array, indices), self.operand(value)
                self.write_place(array, indices, check.binary(symbol_of(op), old, new))
            case ast.For():
                self.run_for(statement)
            case ast.If():
                self.run_if(statement)
            case ast.Expr(value=ast.Call() as call):
                self.run_call(call)
            case ast.Pass():
                pass
            case ast.Return():
                raise Mismatch("return is only the last statement of an @inline function")
            case _:
                raise Mismatch("this construct is not supported in kernels")

    def run_call(self, call: ast.Call) -> None:
        function = self.evaluate(call.func)
        if isinstance(function, Intrinsic) and function.name == "store":
            self.store(call)
        elif isinstance(function, Intrinsic) and function.name == "prefetch":
            self.prefetch(call)
        elif isinstance(function, Intrinsic) and function.name == "dot_tile":
            self.dot_tile(call)
        elif isinstance(function, Intrinsic):
            raise Mismatch(f"the result of {function.name} is not used")
        else:
            self.call(call)

    def assigned_value(self, name: str, node: ast.expr) -> Value:
        """Evaluate a right-hand side; `scratch` and `registers` take the variable's name."""
        if isinstance(node, ast.Call):
            function = self.evaluate(node.func)
            if isinstance(function, Intrinsic) and function.name == "scratch":
                return self.declare_scratch(name, node)
            if isinstance(function, Intrinsic) and function.name == "registers":
                return self.declare_registers(name, node)
        value = self.evaluate(node)
        if value is None:
            raise Mismatch("this call returns nothing")
        return value

    def declare_scratch(self, name: str, node: ast.Call) -> ir.Buffer:
        dtype, *dims = (self.evaluate(a) for a in node.args)
        sizes = tuple(static_int(d, "a dimension of scratch") for d in dims)
        if not sizes or min(sizes) < 1:
            raise Mismatch("scratch needs positive dims")
        element = dtype_of(dtype)
        if element.name in ("index", "bool"):
            raise Mismatch(f"scratch of {element} does not exist")
        self.scratch.append(ir.Buffer(self.fresh(name), element, sizes))
        return self.scratch[-1]

    def declare_registers(self, name: str, node: ast.Call) -> RegisterArray:
        first, *dims = (self.evaluate(a) for a in node.args)
        init = typed(operand(self.settle(name, first)))
        sizes = [static_int(d, "a dimension of registers") for d in dims]
        places = list(itertools.product(*map(range, sizes)))
        names = {p: self.declare("_".join([name, *map(str, p)]), init).name for p in places}
        return RegisterArray(init.type, names)

    def assign(self, name: str, statement: ast.stmt, value: Value) -> None:
        """Bind a new name, or change a variable; its type never changes."""
        scope = self.frame.find(name)
        if scope is not None:
            var = scope[name]
            if not isinstance(var, ir.Var) or var.name in self.fixed:
                raise Mismatch(f"{name} cannot be assigned")
            self.block.append(ir.Assign(var.name, adapt(operand(value), var.type)))
            return
        changes = statement in self.frame.source.reassigned
        scope = self.frame.scopes[-1]
        if isinstance(value, (bool, int, float, ir.Expr)):
            if (
                changes
                and isinstance(value, float)
                and check.constant(ir.Type(f32), value).value != value
            ):
                # the plain-Python run would carry the unrounded number on
                raise Mismatch(f"a variable that changes needs a typed start: cast(f32, {value})")
            size = not self.tasks and isinstance(value, ir.Expr) and value.type == ir.INDEX
            if changes or not (size or isinstance(value, (bool, int, float, ir.Const))):
                value = self.declare(name, typed(value))
        elif changes:
            raise Mismatch(f"{name} cannot be assigned again")
        scope[name] = value

    # --- loops and branches ----------------------------------------------------------------------

    def loop_variable(self, target: ast.expr) -> ir.Var:
        if not isinstance(target, ast.Name):
            raise self.error(target, "a loop variable is a name")
        if self.frame.find(target.id) is not None:
            raise self.error(target, f"loop variable {target.id} hides another name")
        var = ir.Var(ir.INDEX, self.fresh(target.id))
        self.fixed.add(var.name)
        self.frame.scopes[-1][target.id] = var
        return var

    def run_for(self, loop: ast.For) -> None:
        if is_loop(loop, "unroll"):
            self.run_unrolled(loop)
        elif is_loop(loop, "range"):
            self.run_range(loop)
        elif is_loop(loop, "parallel"):
            raise Mismatch("parallel is the kernel's outermost loop, exactly once")
        else:
            raise self.error(loop.iter, "a loop runs over range, unroll or parallel")

    def run_unrolled(self, loop: ast.For) -> None:
        assert isinstance(loop.iter, ast.Call)
        if len(loop.iter.args) != 1 or not isinstance(loop.target, ast.Name):
            raise Mismatch("unroll takes one count and one loop variable")
        for i in range(static_int(self.evaluate(loop.iter.args[0]), "the count of unroll")):
            with_variable: dict[str, Value] = {loop.target.id: i}
            self.frame.scopes.append(with_variable)
            self.run(tuple(loop.body))
            self.frame.scopes.pop()

    def run_range(self, loop: ast.For) -> None:
        assert isinstance(loop.iter, ast.Call)
        bounds = [adapt(self.operand(a), ir.INDEX) for a in loop.iter.args]
        if not 1 <= len(bounds) <= 3 or loop.iter.keywords:
            raise Mismatch("range takes 1 to 3 numbers")
        start, stop = (ir.Const(ir.INDEX, 0), bounds[0]) if len(bounds) == 1 else bounds[:2]
        step = static_int(bounds[2], "the step of range") if len(bounds) == 3 else 1
        if step < 1:
            raise Mismatch("the step of range must be positive")
        self.frame.scopes.append({})
        var = self.loop_variable(loop.target)
        body = self.nested(tuple(loop.body))
        self.frame.scopes.pop()
        self.block.append(ir.For(var.name, start, stop, step, body))

    def run_if(self, statement: ast.If) -> None:
        test = self.operand(statement.test)
        known = check.static_number(test)
        if known is not None:  # decided here: the branch belongs to the block around it
            self.run(tuple(statement.body if known else statement.orelse))
            return
        condition = check.condition(test)
        branches = []
        for side in (statement.body, statement.orelse):
            self.frame.scopes.append({})
            branches.append(self.nested(tuple(side)))
            self.frame.scopes.pop()
        self.block.append(ir.If(condition, *branches))

    def nested(self, statements: tuple[ast.stmt, ...]) -> tuple[ir.Stmt, ...]:
        """The statements expanded into a block of their own."""
        outer, self.block = self.block, []
        self.run(statements)
        inner, self.block = self.block, outer
        return tuple(inner)


def is_loop(statement: ast.stmt, name: str) -> bool:
    """Whether a statement is `for ... in name(...)`."""
    return (
        isinstance(statement, ast.For)
        and isinstance(statement.iter, ast.Call)
        and isinstance(statement.iter.func, ast.Name)
        and statement.iter.func.id == name
    )
