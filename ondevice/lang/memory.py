"""The type rules of loads and stores, shared by the front end and the text parser."""

from __future__ import annotations

from collections.abc import Sequence

from ondevice.dtypes import DType, i32, index, u8
from ondevice.lang import kernel_ir as ir
from ondevice.lang.check import Mismatch, Operand, adapt, typed


def build_load(
    buffer: ir.Buffer,
    indices: Sequence[Operand],
    lanes: int,
    count: Operand | None = None,
    as_: DType | None = None,
) -> ir.Load:
    """A checked Load; a constant `count` that covers all lanes disappears."""
    dtype = as_ or buffer.dtype
    if dtype == index:
        raise Mismatch("memory holds no index; load i32 and convert it")
    type = ir.Type(dtype, lanes)
    places = check_indices(buffer, indices, type, whole=count is None)
    return ir.Load(type, buffer.name, places, check_count(count, lanes))


def build_store(
    buffer: ir.Buffer, indices: Sequence[Operand], value: Operand, count: Operand | None = None
) -> ir.Store:
    """A checked Store; bytes of any dtype may be stored into a u8 buffer."""
    expr = adapt(value, ir.Type(buffer.dtype)) if not isinstance(value, ir.Expr) else typed(value)
    if expr.type.dtype not in (buffer.dtype,) and (buffer.dtype != u8 or expr.type == ir.INDEX):
        raise Mismatch(f"a store of {expr.type} into {buffer.name}: {buffer}")
    places = check_indices(buffer, indices, expr.type, whole=count is None)
    return ir.Store(buffer.name, places, expr, check_count(count, expr.type.lanes))


def build_prefetch(buffer: ir.Buffer, indices: Sequence[Operand]) -> ir.Prefetch:
    """A checked Prefetch."""
    places = check_indices(buffer, indices, ir.Type(buffer.dtype), whole=True)
    return ir.Prefetch(buffer.name, places)


def build_dot_tile(
    out: tuple[ir.Buffer, Sequence[Operand]],
    rows: tuple[ir.Buffer, Sequence[Operand]],
    columns: tuple[ir.Buffer, Sequence[Operand]],
) -> ir.DotTile:
    """A checked DotTile."""
    if (out[0].dtype, out[0].dims[-2:]) != (i32, (16, 16)):
        raise Mismatch(f"{out[0].name}: {out[0]} is no i32[..., 16, 16]")
    for buffer, _ in (rows, columns):
        if buffer.dtype != u8:
            raise Mismatch(f"{buffer.name}: {buffer} where bytes are wanted")
    places = [check_indices(buffer, at, ir.Type(u8), whole=True) for buffer, at in (rows, columns)]
    out_at = check_indices(out[0], [*out[1], 0, 0], ir.Type(i32), whole=True)[:-2]
    return ir.DotTile(out[0].name, out_at, rows[0].name, places[0], columns[0].name, places[1])


def check_count(count: Operand | None, lanes: int) -> ir.Expr | None:
    if count is None:
        return None
    expr = adapt(count, ir.INDEX)
    return None if isinstance(expr, ir.Const) and expr.value >= lanes else expr


def check_indices(
    buffer: ir.Buffer, indices: Sequence[Operand], type: ir.Type, whole: bool
) -> tuple[ir.Expr, ...]:
    """Indices as index expressions; constants are checked against constant dims."""
    if len(indices) != len(buffer.dims):
        raise Mismatch(f"{buffer.name}: {buffer} has {len(buffer.dims)} dims, not {len(indices)}")
    places = tuple(adapt(i, ir.INDEX) for i in indices)
    last = len(places) - 1
    for axis, (place, dim) in enumerate(zip(places, buffer.dims, strict=True)):
        if not isinstance(place, ir.Const) or not whole:
            continue
        width = -(-type.bits // buffer.dtype.bits) if axis == last else 1
        if place.value < 0 or (isinstance(dim, int) and place.value + width > dim):
            raise Mismatch(f"index {axis} of {buffer.name} is {place.value}, outside 0:{dim}")
    return places
