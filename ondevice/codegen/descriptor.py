"""Print a Program as the LLVM constants of libmodel: one exported `od_model`, the rest private.

The structs' layout is the table of `bundle/descriptor.py`; this file only fills the fields in.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

from ondevice.bundle.descriptor import (
    BY_NAME,
    array_type,
    feature_mask,
    llvm_type,
    model_symbol,
    size_bytes,
)
from ondevice.bundle.program import FORMAT_VERSION, Argument, Launch, Program, Space
from ondevice.dims import SYMBOLS, Extent
from ondevice.errors import ToolchainError

INT32 = range(-(2**31), 2**31)

# Name of a CPU variant, its LLVM features, and the symbol of each kernel in it.
Variant = tuple[str, frozenset[str], Mapping[str, str]]
T = TypeVar("T")


@dataclasses.dataclass
class Runs(Generic[T]):
    """A table that holds equal runs of rows once: layers differ in few of them."""

    rows: list[T] = dataclasses.field(default_factory=list)
    _known: dict[tuple[T, ...], int] = dataclasses.field(default_factory=dict)

    def place(self, *run: T) -> int:
        """Index of the run's first row, appended where it is new."""
        if run not in self._known:
            self._known[run] = len(self.rows)
            self.rows += run
        return self._known[run]


def emit_descriptor(program: Program, variants: Sequence[Variant]) -> str:
    """A module (without target lines) that declares every kernel and defines `od_model_<abi>`.

    `variants` are best first. Raises ToolchainError on a kernel that a variant lacks and on a
    number that does not fit its field.
    """
    check(program, variants)
    arguments, extents = Runs[Argument](), Runs[Extent]()
    launches = _launches(program.launches, arguments, extents)
    inv_freq = [f for rope in program.ropes for f in rope.inv_freq]
    symbols = sorted({v[k.symbol] for _, _, v in variants for k in program.kernels})
    lines = [f"declare hidden void @{s}(ptr, ptr, i32, i32, ptr)" for s in symbols]
    lines.append(_string("od_name", program.name))
    for i, (name, _, table) in enumerate(variants):
        lines.append(_string(f"od_variant_name_{i}", name))
        kernels = [f"@{table[k.symbol]}" for k in program.kernels]
        lines.append(_array(f"od_kernels_{i}", "ptr", kernels))
    lines += [
        _array("od_variants", "od_variant", [_variant(i, v) for i, v in enumerate(variants)]),
        _array("od_launches", "od_launch", launches),
        _array(
            "od_arguments",
            "od_argument",
            [
                _value(
                    "od_argument",
                    space=int(a.space),
                    index=int(a.index),
                    offset=_offset(program, a),
                )
                for a in arguments.rows
            ],
        ),
        _array("od_extents", "od_extent", [_extent(e) for e in extents.rows]),
        _array("od_slots", "od_extent", [_extent(s.size_bytes) for s in program.slots]),
        _array("od_ropes", "od_rope", _ropes(program)),
        _array("od_inv_freq", "f32", [_float(f) for f in inv_freq]),
    ]
    model = _model(program, variants, len(arguments.rows), len(extents.rows))
    lines.append(
        f"@{model_symbol(program.abi_hash)} = constant {llvm_type('od_model')} {model}, align 8"
    )
    return "\n".join(lines) + "\n"


def check(program: Program, variants: Sequence[Variant]) -> None:
    """Everything the executor takes for granted. Raises ToolchainError."""
    for name, _, table in variants:
        for kernel in program.kernels:
            if kernel.symbol not in table:
                raise ToolchainError(f"CPU variant {name} has no kernel {kernel.symbol}")
    for launch in program.launches:
        if not 0 <= launch.kernel < len(program.kernels) or launch.chunk < 1:
            raise ToolchainError(f"launch {launch.source!r}: kernel or chunk out of range")
        for a in launch.arguments:
            if a.space == Space.ARENA and not 0 <= a.index < len(program.slots):
                raise ToolchainError(f"launch {launch.source!r}: no arena slot {a.index}")
            if a.space == Space.WEIGHTS and not 0 <= a.offset < program.weights_bytes:
                raise ToolchainError(f"launch {launch.source!r}: weights offset {a.offset}")
            if a.space == Space.WORKER and not 0 <= a.offset < program.worker_bytes:
                raise ToolchainError(f"launch {launch.source!r}: own memory offset {a.offset}")


def _model(
    program: Program, variants: Sequence[Variant], argument_count: int, extent_count: int
) -> str:
    return _value(
        "od_model",
        format_version=FORMAT_VERSION,
        struct_bytes=size_bytes("od_model"),
        abi_hash=bytes.fromhex(program.abi_hash),
        name="@od_name",
        vocab_size=program.vocab_size,
        context_tokens=program.context_tokens,
        prefill_chunk_tokens=program.prefill_chunk_tokens,
        logit_rows=program.logit_rows,
        block_table_width=program.block_table_width,
        kernel_count=len(program.kernels),
        variant_count=len(variants),
        launch_count=len(program.launches),
        argument_count=argument_count,
        extent_count=extent_count,
        slot_count=len(program.slots),
        rope_count=len(program.ropes),
        kv_block_bytes=program.kv.block_bytes,
        scratch_bytes=program.scratch_bytes + program.worker_bytes,
        weights_bytes=program.weights_bytes,
        variants="@od_variants",
        launches="@od_launches",
        arguments="@od_arguments",
        extents="@od_extents",
        slots="@od_slots",
        ropes="@od_ropes",
        inv_freq="@od_inv_freq",
    )


def _offset(program: Program, argument: Argument) -> int:
    own = argument.space == Space.WORKER
    return argument.offset + (program.scratch_bytes if own else 0)


def _variant(number: int, variant: Variant) -> str:
    return _value(
        "od_variant",
        features=feature_mask(variant[1]),
        name=f"@od_variant_name_{number}",
        kernels=f"@od_kernels_{number}",
    )


def _launches(
    launches: Sequence[Launch], arguments: Runs[Argument], extents: Runs[Extent]
) -> list[str]:
    """The rows of the launch table; what they refer to is placed in the other two tables."""
    return [
        _value(
            "od_launch",
            kernel=launch.kernel,
            first_argument=arguments.place(*launch.arguments),
            argument_count=len(launch.arguments),
            first_scalar=extents.place(*launch.scalars),
            scalar_count=len(launch.scalars),
            chunk=launch.chunk,
            min_rows=launch.min_rows,
            max_rows=min(launch.max_rows, INT32[-1]),
            min_spans=launch.min_spans,
            max_spans=launch.max_spans,
            barrier=int(launch.barrier),
            tasks=extents.place(launch.tasks),
            rows=extents.place(launch.rows),
            chained=int(launch.chained),
            each=int(launch.each),
        )
        for launch in launches
    ]


def _ropes(program: Program) -> list[str]:
    values = []
    first = 0
    for rope in program.ropes:
        half = len(rope.inv_freq)
        values.append(
            _value("od_rope", half_dim=half, first_inv_freq=first, scale=_float(rope.scale))
        )
        first += half
    return values


def _extent(extent: Extent) -> str:
    terms = {symbol.lower(): coefficient for symbol, coefficient in extent.terms}
    return _value(
        "od_extent",
        **{name: terms.get(name, 0) for name in map(str.lower, SYMBOLS)},
        constant=extent.const,
        div=extent.div,
        mul=extent.mul,
    )


def _value(struct_name: str, **values: int | str | bytes) -> str:
    """A constant of a struct; `values` are its fields by name, strings printed as they are."""
    fields = BY_NAME[struct_name].fields
    if set(values) != {f.name for f in fields}:
        raise ToolchainError(f"{struct_name} has other fields than {sorted(values)}")
    parts = []
    for field in fields:
        value = values[field.name]
        if isinstance(value, int) and field.type == "i32" and value not in INT32:
            raise ToolchainError(f"{struct_name}.{field.name} = {value} does not fit 32 bits")
        if isinstance(value, bytes):
            assert array_type(field.type) == ("u8", len(value))
            value = _bytes(value)
        parts.append(f"{llvm_type(field.type)} {value}")
    return f"{{ {', '.join(parts)} }}"


def _array(symbol: str, element: str, values: Sequence[str]) -> str:
    llvm = element if element == "ptr" else llvm_type(element)
    body = f"[{', '.join(f'{llvm} {v}' for v in values)}]" if values else "zeroinitializer"
    return f"@{symbol} = internal constant [{len(values)} x {llvm}] {body}, align 8"


def _string(symbol: str, text: str) -> str:
    data = text.encode() + b"\0"
    return f"@{symbol} = internal constant [{len(data)} x i8] {_bytes(data)}"


def _bytes(data: bytes) -> str:
    return 'c"' + "".join(f"\\{b:02X}" for b in data) + '"'


def _float(value: float) -> str:
    """LLVM spells a float as the 64 bits of the double of the same value."""
    (rounded,) = struct.unpack("<f", struct.pack("<f", value))
    return f"0x{struct.pack('>d', rounded).hex().upper()}"
