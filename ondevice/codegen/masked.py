"""Loads and stores of the first `count` lanes: nothing outside them is touched."""

from __future__ import annotations

from typing import Protocol

from ondevice.codegen.writer import Writer, constant_text, element_type, intrinsic_suffix, llvm_type
from ondevice.dtypes import f16, u16
from ondevice.lang.check import zero
from ondevice.lang.kernel_ir import Const, Type


class Mask(Protocol):
    """`count` is an i32 operand in 0..lanes; lanes >= count load as 0 and are not stored."""

    def load(self, out: Writer, type: Type, pointer: str, align: int, count: str) -> str: ...

    def store(
        self, out: Writer, type: Type, value: str, pointer: str, align: int, count: str
    ) -> None: ...


def zeros(type: Type) -> str:
    return constant_text(Const(type, zero(type.dtype)))


class NativeMask:
    """The CPU has masked memory instructions for this element size."""

    def lanes(self, out: Writer, type: Type, count: str) -> str:
        """`lane < count`, compared in the width of the data, as the instructions want it."""
        bits = type.dtype.bits if type.lanes < 128 else max(16, type.dtype.bits)
        element = f"i{min(bits, 32)}"
        wide = f"<{type.lanes} x {element}>"
        limit = count if element == "i32" else out.pure(f"trunc i32 {count} to {element}")
        first = out.pure(f"insertelement {wide} poison, {element} {limit}, i64 0")
        limits = out.shuffle(wide, first, "poison", [0] * type.lanes)
        numbers = ", ".join(f"{element} {i}" for i in range(type.lanes))
        return out.pure(f"icmp slt {wide} <{numbers}>, {limits}")

    def load(self, out: Writer, type: Type, pointer: str, align: int, count: str) -> str:
        mask = self.lanes(out, type, count)
        if type.dtype == f16:  # masked moves know bits, not halves
            bits = self.load(out, Type(u16, type.lanes), pointer, align, count)
            return out.fresh(
                f"bitcast {llvm_type(Type(u16, type.lanes))} {bits} to {llvm_type(type)}"
            )
        wide = llvm_type(type)
        return out.fresh(
            f"call {wide} @llvm.masked.load.{intrinsic_suffix(type)}.p0(ptr align {align} {pointer}"
            f", <{type.lanes} x i1> {mask}, {wide} {zeros(type)})"
        )

    def store(
        self, out: Writer, type: Type, value: str, pointer: str, align: int, count: str
    ) -> None:
        mask = self.lanes(out, type, count)
        if type.dtype == f16:
            wide = llvm_type(Type(u16, type.lanes))
            value = out.fresh(f"bitcast {llvm_type(type)} {value} to {wide}")
            type = Type(u16, type.lanes)
        out.line(
            f"call void @llvm.masked.store.{intrinsic_suffix(type)}.p0({llvm_type(type)} {value}"
            f", ptr align {align} {pointer}, <{type.lanes} x i1> {mask})"
        )


class BranchingMask:
    """Whole vectors go the straight way; the rare rest is copied lane by lane through the stack."""

    def load(self, out: Writer, type: Type, pointer: str, align: int, count: str) -> str:
        wide = llvm_type(type)
        whole, rest, done = self.branch(out, type, count)
        out.enter(whole)
        direct = out.fresh(f"load {wide}, ptr {pointer}, align {align}")
        out.line(f"br label %{done}")
        out.enter(rest)
        slot = out.slot(wide)
        out.line(f"store {wide} {zeros(type)}, ptr {slot}, align 4")
        self.copy(out, type, pointer, slot, count)
        partial = out.fresh(f"load {wide}, ptr {slot}, align 4")
        last = out.block
        out.line(f"br label %{done}")
        out.enter(done)
        return out.fresh(f"phi {wide} [ {direct}, %{whole} ], [ {partial}, %{last} ]")

    def store(
        self, out: Writer, type: Type, value: str, pointer: str, align: int, count: str
    ) -> None:
        wide = llvm_type(type)
        whole, rest, done = self.branch(out, type, count)
        out.enter(whole)
        out.line(f"store {wide} {value}, ptr {pointer}, align {align}")
        out.line(f"br label %{done}")
        out.enter(rest)
        slot = out.slot(wide)
        out.line(f"store {wide} {value}, ptr {slot}, align 4")
        self.copy(out, type, slot, pointer, count)
        out.line(f"br label %{done}")
        out.enter(done)

    def branch(self, out: Writer, type: Type, count: str) -> tuple[str, str, str]:
        """Labels: all lanes, some lanes, after both."""
        whole, rest, done = out.label(), out.label(), out.label()
        test = out.pure(f"icmp eq i32 {count}, {type.lanes}")
        out.line(f"br i1 {test}, label %{whole}, label %{rest}")
        return whole, rest, done

    def copy(self, out: Writer, type: Type, source: str, target: str, count: str) -> None:
        """Copy the first `count` elements in a loop."""
        element = element_type(type.dtype)
        head, body, end = out.label(), out.label(), out.label()
        before = out.block
        out.line(f"br label %{head}")
        out.enter(head)
        lane, following = out.name(), out.name()
        out.line(f"{lane} = phi i32 [ 0, %{before} ], [ {following}, %{body} ]")
        more = out.fresh(f"icmp slt i32 {lane}, {count}")
        out.line(f"br i1 {more}, label %{body}, label %{end}")
        out.enter(body)
        from_ = out.fresh(f"getelementptr {element}, ptr {source}, i32 {lane}")
        value = out.fresh(f"load {element}, ptr {from_}, align 1")
        to = out.fresh(f"getelementptr {element}, ptr {target}, i32 {lane}")
        out.line(f"store {element} {value}, ptr {to}, align 1")
        out.line(f"{following} = add i32 {lane}, 1")
        out.line(f"br label %{head}")
        out.enter(end)
