"""Prints a Kernel as an LLVM function: text, in SSA form, vectors spelled out.

The kernel language is structured, so SSA needs no analysis: a loop or branch gets one phi for each
variable that it changes. Equal pure instructions of enclosing blocks are reused by their text,
which leaves nothing for LLVM's middle end; kernels go straight to code generation.

Compiled ABI, see docs/architecture.md: tasks [begin, end) of the flattened parallel loop.

    void symbol(void *const buffers[], const int32_t scalars[], int32_t begin, int32_t end,
                void *scratch)
"""

from __future__ import annotations

from collections.abc import Iterable

from ondevice.codegen.operators import LOWERINGS, mask_of
from ondevice.codegen.tile import Tiles
from ondevice.codegen.writer import Writer, constant_text, llvm_type
from ondevice.lang import kernel_ir as ir


def print_function(
    kernel: ir.Kernel, symbol: str, features: frozenset[str], section: str = ""
) -> str:
    """The definition of `kernel` as `symbol` for a CPU with these LLVM features.

    In a section of its own a linker can find it to be the same as another and keep one.
    """
    return FunctionPrinter(kernel, features).definition(symbol, section)


def print_module(functions: Iterable[str], triple: str, extra: str = "") -> str:
    """A module of function definitions; `extra` is any further text, such as constants."""
    return f'target triple = "{triple}"\n\n' + "\n".join([*functions, extra])


def function_attributes(features: frozenset[str]) -> str:
    """Attributes that let several CPU variants share one object."""
    text = "nounwind"
    if features:
        text += f' "target-features"="{",".join("+" + f for f in sorted(features))}"'
    if "avx512f" in features:
        text += ' "prefer-vector-width"="512" "min-legal-vector-width"="512"'
    return text


class FunctionPrinter:
    """One function; `names` maps the kernel's variables to their current SSA values."""

    def __init__(self, kernel: ir.Kernel, features: frozenset[str]) -> None:
        self.kernel = kernel
        self.features = features
        self.out = Writer(features)
        self.tiles = Tiles(self.out)
        self.names: dict[str, str] = {}
        self.pointers: dict[str, str] = {}
        self.buffers = {b.name: b for b in (*kernel.buffers, *kernel.scratch)}

    def definition(self, symbol: str, section: str) -> str:
        out = self.out
        self.prologue()
        extents = [self.value(e) for e in self.kernel.extents]
        extents = [out.pure(f"trunc i64 {e} to i32") for e in extents]
        body, latch, done = out.label(), out.label(), out.label()
        guard = out.pure("icmp slt i32 %begin, %end")
        out.line(f"br i1 {guard}, label %{body}, label %{done}")
        entry = out.block
        out.enter(body)
        task, following = out.name(), out.name()
        out.line(f"{task} = phi i32 [ %begin, %{entry} ], [ {following}, %{latch} ]")
        self.split_task(task, extents)
        self.statements(self.kernel.body)
        out.line(f"br label %{latch}")
        out.enter(latch)
        out.line(f"{following} = add i32 {task}, 1")
        more = out.pure(f"icmp slt i32 {following}, %end")
        out.line(f"br i1 {more}, label %{body}, label %{done}")
        out.enter(done)
        self.tiles.release()
        out.line("ret void")
        self.tiles.configure()
        head = "ptr %buffers, ptr %scalars, i32 %begin, i32 %end, ptr noalias %scratch"
        attributes = function_attributes(self.features)
        if section:
            attributes += f' section "{section}"'
        # Slots of masked memory live in the entry block: an alloca in a loop would eat the stack.
        text = "\n".join(["entry:", *out.slots, *out.lines])
        return f"define void @{symbol}({head}) {attributes} {{\n{text}\n}}\n"

    def prologue(self) -> None:
        """Pointers of buffers and scratch, values of the scalars."""
        out = self.out
        for i, buffer in enumerate(self.kernel.buffers):
            place = out.pure(f"getelementptr ptr, ptr %buffers, i64 {i}")
            self.pointers[buffer.name] = out.pure(f"load ptr, ptr {place}")
        for name, offset in self.kernel.scratch_offsets.items():
            self.pointers[name] = out.pure(f"getelementptr i8, ptr %scratch, i64 {offset}")
        for i, name in enumerate(self.kernel.scalars):
            place = out.pure(f"getelementptr i32, ptr %scalars, i64 {i}")
            self.names[name] = out.pure(f"sext i32 {out.pure(f'load i32, ptr {place}')} to i64")

    def split_task(self, task: str, extents: list[str]) -> None:
        """Task variables from the flattened task number, row-major, in 32-bit arithmetic."""
        out = self.out
        rest = task
        for name, extent in reversed(list(zip(self.kernel.tasks, extents, strict=True))[1:]):
            quotient = out.pure(f"udiv i32 {rest}, {extent}")
            whole = out.pure(f"mul i32 {quotient}, {extent}")
            place, rest = out.pure(f"sub i32 {rest}, {whole}"), quotient
            self.names[name] = out.pure(f"zext i32 {place} to i64")
        self.names[self.kernel.tasks[0]] = out.pure(f"zext i32 {rest} to i64")

    # --- statements ------------------------------------------------------------------------------

    def statements(self, body: tuple[ir.Stmt, ...]) -> None:
        for statement in body:
            match statement:
                case ir.Assign(name, value):
                    self.names[name] = self.value(value)
                case ir.Store():
                    self.store(statement)
                case ir.Prefetch(buffer, indices):
                    place = self.address(self.buffers[buffer], indices)
                    # read, into all levels, of data
                    self.out.line(f"call void @llvm.prefetch.p0(ptr {place}, i32 0, i32 2, i32 1)")
                case ir.DotTile():
                    self.dot_tile(statement)
                case ir.For():
                    self.loop(statement)
                case ir.If():
                    self.branch(statement)

    def changed(self, *bodies: tuple[ir.Stmt, ...]) -> dict[str, str]:
        """Variables of the enclosing blocks that the bodies assign, with their LLVM types."""
        return {
            s.name: llvm_type(s.value.type)
            for body in bodies
            for s in ir.walk_statements(body)
            if isinstance(s, ir.Assign) and s.name in self.names
        }

    def loop(self, loop: ir.For) -> None:
        """A guarded bottom-tested loop: one phi per changed variable at its head and its exit."""
        out = self.out
        start, stop = self.value(loop.start), self.value(loop.stop)
        changed = self.changed(loop.body)
        before = {name: self.names[name] for name in changed}
        body, latch, done = out.label(), out.label(), out.label()
        entry = out.block
        certain = is_certain(loop)
        if certain:
            out.line(f"br label %{body}")
        else:
            guard = out.pure(f"icmp slt i64 {start}, {stop}")
            out.line(f"br i1 {guard}, label %{body}, label %{done}")
        out.enter(body)
        counter, following = out.name(), out.name()
        out.line(f"{counter} = phi i64 [ {start}, %{entry} ], [ {following}, %{latch} ]")
        phis = {name: out.name() for name in changed}
        head = out.reserve(len(changed))
        visible = dict(self.names)
        self.names |= phis | {loop.name: counter}
        with out.scope():
            self.statements(loop.body)
            out.line(f"br label %{latch}")
            out.enter(latch)
            out.line(f"{following} = add nuw nsw i64 {counter}, {loop.step}")
            more = out.pure(f"icmp slt i64 {following}, {stop}")
            out.line(f"br i1 {more}, label %{body}, label %{done}")
        after = {name: self.names[name] for name in changed}
        for place, (name, type) in enumerate(changed.items(), head):
            edges = f"[ {before[name]}, %{entry} ], [ {after[name]}, %{latch} ]"
            out.lines[place] = f"  {phis[name]} = phi {type} {edges}"
        out.enter(done)
        self.names = visible
        for name, type in changed.items():
            edges = f"[ {after[name]}, %{latch} ]"
            if not certain:
                edges += f", [ {before[name]}, %{entry} ]"
            self.names[name] = out.fresh(f"phi {type} {edges}")

    def branch(self, statement: ir.If) -> None:
        """Both sides meet in phis of the variables that either changes."""
        out = self.out
        condition = self.value(statement.condition)
        changed = self.changed(statement.then, statement.orelse)
        sides = (statement.then, statement.orelse)
        labels, done = (out.label(), out.label()), out.label()
        out.line(f"br i1 {condition}, label %{labels[0]}, label %{labels[1]}")
        visible = dict(self.names)
        ends: list[tuple[str, dict[str, str]]] = []
        for label, side in zip(labels, sides, strict=True):
            out.enter(label)
            self.names = dict(visible)
            with out.scope():
                self.statements(side)
            ends.append((out.block, self.names))
            out.line(f"br label %{done}")
        out.enter(done)
        self.names = visible
        for name, type in changed.items():
            edges = ", ".join(f"[ {names[name]}, %{block} ]" for block, names in ends)
            self.names[name] = out.fresh(f"phi {type} {edges}")

    # --- expressions and memory ------------------------------------------------------------------

    def value(self, expr: ir.Expr) -> str:
        """The operand (without its type) that holds `expr`."""
        match expr:
            case ir.Const():
                return constant_text(expr)
            case ir.Var(_, name):
                return self.names[name]
            case ir.Load():
                return self.load(expr)
            case ir.Op(_, name, args):
                return LOWERINGS[name](self.out, expr, [self.value(a) for a in args])

    def address(self, buffer: ir.Buffer, indices: tuple[ir.Expr, ...]) -> str:
        """Pointer to an element, row-major (Horner's scheme over the dims)."""
        out, offset = self.out, self.value(indices[0])
        for dim, place in zip(buffer.dims[1:], indices[1:], strict=True):
            size = self.names[dim] if isinstance(dim, str) else str(dim)
            if offset != "0":
                offset = out.pure(f"mul i64 {offset}, {size}")
            step = self.value(place)
            if step != "0":
                offset = step if offset == "0" else out.pure(f"add i64 {offset}, {step}")
        element = llvm_type(ir.Type(buffer.dtype))
        return out.pure(f"getelementptr {element}, ptr {self.pointers[buffer.name]}, i64 {offset}")

    def alignment(self, buffer: ir.Buffer) -> int:
        """Weights lie at any multiple of 4 bytes, so no load may promise more."""
        return min(4, buffer.dtype.bytes)

    def load(self, load: ir.Load) -> str:
        buffer, type = self.buffers[load.buffer], llvm_type(load.type)
        if "neon" in self.features and is_word_of_four(load, buffer):
            return self.load_lane(load, buffer)
        pointer, align = self.address(buffer, load.indices), self.alignment(buffer)
        if load.count is None:
            return self.out.fresh(f"load {type}, ptr {pointer}, align {align}")
        count = self.clamped(load.count, load.type.lanes)
        return mask_of(self.out, load.type).load(self.out, load.type, pointer, align, count)

    def load_lane(self, load: ir.Load, buffer: ir.Buffer) -> str:
        """A word out of the 16 bytes around it: Arm multiplies by a lane, but loads a splat only
        from an address by itself."""
        *row, place = load.indices
        assert isinstance(place, ir.Const)
        lane, first = int(place.value) % 16 // 4, int(place.value) // 16 * 16
        pointer = self.address(buffer, (*row, ir.Const(ir.INDEX, first)))
        wide = llvm_type(ir.Type(load.type.dtype, 4))
        four = self.out.fresh(f"load {wide}, ptr {pointer}, align {self.alignment(buffer)}")
        return self.out.pure(f"extractelement {wide} {four}, i64 {lane}")

    def store(self, store: ir.Store) -> None:
        buffer, type = self.buffers[store.buffer], store.value.type
        value = self.value(store.value)
        pointer, align = self.address(buffer, store.indices), self.alignment(buffer)
        if store.count is None:
            self.out.line(f"store {llvm_type(type)} {value}, ptr {pointer}, align {align}")
            return
        count = self.clamped(store.count, type.lanes)
        mask_of(self.out, type).store(self.out, type, value, pointer, align, count)

    def dot_tile(self, tile: ir.DotTile) -> None:
        rows = self.address(self.buffers[tile.rows], tile.rows_at)
        columns = self.address(self.buffers[tile.columns], tile.columns_at)
        zero = ir.Const(ir.INDEX, 0)
        result = self.address(self.buffers[tile.out], (*tile.out_at, zero, zero))
        self.tiles.dot(result, rows, columns)

    def clamped(self, count: ir.Expr, lanes: int) -> str:
        """`count` limited to 0..lanes, as i32."""
        limit = ir.Op(
            ir.INDEX,
            "min",
            (ir.Op(ir.INDEX, "max", (count, ir.Const(ir.INDEX, 0))), ir.Const(ir.INDEX, lanes)),
        )
        return self.out.pure(f"trunc i64 {self.value(limit)} to i32")


def is_word_of_four(load: ir.Load, buffer: ir.Buffer) -> bool:
    """Whether bytes are read as one 32-bit word that lies in 16 bytes, 16-aligned in their row."""
    place, size = load.indices[-1], buffer.dims[-1]
    return (
        load.count is None
        and (load.type.lanes, load.type.dtype.bits, buffer.dtype.bits) == (1, 32, 8)
        and isinstance(place, ir.Const)
        and isinstance(size, int)
        and place.value % 4 == 0
        and place.value // 16 * 16 + 16 <= size
    )


def is_certain(loop: ir.For) -> bool:
    """Whether the loop is known to run at least once."""
    match loop.start, loop.stop:
        case ir.Const(_, start), ir.Const(_, stop):
            return start < stop
    return False
