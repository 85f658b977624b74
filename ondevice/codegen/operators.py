"""LOWERINGS: how each operator and intrinsic of the kernel language is written in LLVM."""

from __future__ import annotations

from collections.abc import Callable

from ondevice.codegen.dot import lower_dot4, lower_dot4_i8
from ondevice.codegen.masked import BranchingMask, Mask, NativeMask
from ondevice.codegen.writer import Writer, constant_text, intrinsic_suffix, llvm_type
from ondevice.dtypes import boolean
from ondevice.lang.kernel_ir import Const, Op, Type

Lowering = Callable[[Writer, Op, list[str]], str]


def mask_of(out: Writer, type: Type) -> Mask:
    """How memory is masked on this CPU: by an instruction, or by a branch and a short loop."""
    f = out.features
    wide = type.dtype.bits >= 32 and type.dtype.kind != "index"
    if type.lanes > 1 and ("avx512bw" in f or ("avx2" in f and wide)):
        return NativeMask()
    return BranchingMask()


def simple(integer: str, floating: str = "", unsigned: str = "") -> Lowering:
    """A two-operand instruction chosen by the kind of its operands."""

    def lower(out: Writer, op: Op, args: list[str]) -> str:
        type = op.args[0].type
        kind = type.dtype.kind
        name = floating if kind == "float" else unsigned if kind == "uint" and unsigned else integer
        return out.pure(f"{name} {llvm_type(type)} {args[0]}, {args[1]}")

    return lower


def comparison(name: str, ordered: str) -> Lowering:
    """icmp or fcmp; eq and ne know no sign."""
    signless = name in ("eq", "ne")
    return simple(
        f"icmp {name if signless else 's' + name}",
        f"fcmp {ordered}",
        f"icmp {name if signless else 'u' + name}",
    )


def choice(name: str) -> Lowering:
    """min and max exactly as `a if a < b else b`: the form that x86 has as one instruction."""
    compare = comparison(name, f"o{name}")

    def lower(out: Writer, op: Op, args: list[str]) -> str:
        type, test = llvm_type(op.type), llvm_type(Type(boolean, op.type.lanes))
        condition = compare(out, op, args)
        return out.pure(f"select {test} {condition}, {type} {args[0]}, {type} {args[1]}")

    return lower


def function(name: str) -> Lowering:
    """A call of an `llvm.*` intrinsic overloaded on its one type."""

    def lower(out: Writer, op: Op, args: list[str]) -> str:
        type = llvm_type(op.type)
        list_ = ", ".join(f"{type} {a}" for a in args)
        return out.pure(f"call {type} @llvm.{name}.{intrinsic_suffix(op.type)}({list_})")

    return lower


def lower_neg(out: Writer, op: Op, args: list[str]) -> str:
    type = llvm_type(op.type)
    if op.type.dtype.kind == "float":
        return out.pure(f"fneg {type} {args[0]}")
    return out.pure(f"sub {type} {constant_text(Const(op.type, 0))}, {args[0]}")


def lower_not(out: Writer, op: Op, args: list[str]) -> str:
    return out.pure(f"xor i1 {args[0]}, true")


def lower_abs(out: Writer, op: Op, args: list[str]) -> str:
    if op.type.dtype.kind == "float":
        return function("fabs")(out, op, args)
    type, suffix = llvm_type(op.type), intrinsic_suffix(op.type)
    return out.pure(f"call {type} @llvm.abs.{suffix}({type} {args[0]}, i1 false)")


def lower_select(out: Writer, op: Op, args: list[str]) -> str:
    type = llvm_type(op.type)
    test = llvm_type(op.args[0].type)
    return out.pure(f"select {test} {args[0]}, {type} {args[1]}, {type} {args[2]}")


def lower_vec(out: Writer, op: Op, args: list[str]) -> str:
    type, element = llvm_type(op.type), llvm_type(op.args[0].type)
    first = out.pure(f"insertelement {type} poison, {element} {args[0]}, i64 0")
    return out.shuffle(type, first, "poison", [0] * op.type.lanes)


def lower_iota(out: Writer, op: Op, args: list[str]) -> str:
    lanes = ", ".join(f"i32 {i}" for i in range(op.type.lanes))
    return f"<{lanes}>" if op.type.lanes > 1 else "0"


def lower_cast(out: Writer, op: Op, args: list[str]) -> str:
    source, target = op.args[0].type, op.type
    a, b = llvm_type(source), llvm_type(target)
    kinds = (source.dtype.kind == "float", target.dtype.kind == "float")
    narrower = target.dtype.bits < source.dtype.bits
    unsigned = source.dtype.kind == "uint"
    if kinds == (True, True):
        name = "fptrunc" if narrower else "fpext"
    elif kinds == (False, True):
        name = "uitofp" if unsigned else "sitofp"
    elif kinds == (True, False):
        name = "fptoui" if target.dtype.kind == "uint" else "fptosi"
    elif target.dtype.bits == source.dtype.bits:
        return args[0]
    else:
        name = "trunc" if narrower else "zext" if unsigned else "sext"
    return out.pure(f"{name} {a} {args[0]} to {b}")


def lower_bitcast(out: Writer, op: Op, args: list[str]) -> str:
    a, b = llvm_type(op.args[0].type), llvm_type(op.type)
    return args[0] if a == b else out.pure(f"bitcast {a} {args[0]} to {b}")


def half(upper: bool) -> Lowering:
    def lower(out: Writer, op: Op, args: list[str]) -> str:
        lanes, type = op.type.lanes, llvm_type(op.args[0].type)
        first = lanes if upper else 0
        if lanes == 1:
            return out.pure(f"extractelement {type} {args[0]}, i64 {first}")
        return out.shuffle(type, args[0], "poison", list(range(first, first + lanes)))

    return lower


def lower_join(out: Writer, op: Op, args: list[str]) -> str:
    part, whole = llvm_type(op.args[0].type), llvm_type(op.type)
    if op.type.lanes == 2:
        first = out.pure(f"insertelement {whole} poison, {part} {args[0]}, i64 0")
        return out.pure(f"insertelement {whole} {first}, {part} {args[1]}, i64 1")
    return out.shuffle(part, args[0], args[1], list(range(op.type.lanes)))


def reduction(name: str) -> Lowering:
    """The halving tree: lanes i and i + n/2, until one is left."""

    def lower(out: Writer, op: Op, args: list[str]) -> str:
        type, value = op.args[0].type, args[0]
        while type.lanes > 1:
            part = Type(type.dtype, type.lanes // 2)
            sides = [half(upper)(out, _typed(part, type), [value]) for upper in (False, True)]
            value = LOWERINGS[name](out, _typed(part, part), sides)
            type = part
        return value

    return lower


def _typed(result: Type, argument: Type) -> Op:
    """An Op that only carries types to a lowering."""
    return Op(result, "", (Const(argument, 0),))


LOWERINGS: dict[str, Lowering] = {
    "add": simple("add", "fadd"),
    "sub": simple("sub", "fsub"),
    "mul": simple("mul", "fmul"),
    "div": simple("", "fdiv"),
    "floordiv": simple("udiv"),
    "mod": simple("urem"),
    "and": simple("and"),
    "or": simple("or"),
    "xor": simple("xor"),
    "shl": simple("shl"),
    "shr": simple("ashr", unsigned="lshr"),
    "lt": comparison("lt", "olt"),
    "le": comparison("le", "ole"),
    "gt": comparison("gt", "ogt"),
    "ge": comparison("ge", "oge"),
    "eq": comparison("eq", "oeq"),
    "ne": comparison("ne", "une"),
    "min": choice("lt"),
    "max": choice("gt"),
    "neg": lower_neg,
    "not": lower_not,
    "abs": lower_abs,
    "select": lower_select,
    "vec": lower_vec,
    "iota": lower_iota,
    "cast": lower_cast,
    "bitcast": lower_bitcast,
    "low": half(False),
    "high": half(True),
    "join": lower_join,
    "fma": function("fma"),
    "sqrt": function("sqrt"),
    "floor": function("floor"),
    "round": function("roundeven"),
    "reduce_add": reduction("add"),
    "reduce_max": reduction("max"),
    "reduce_min": reduction("min"),
    "dot4": lower_dot4,
    "dot4_u7": lower_dot4,
    "dot4_i8": lower_dot4_i8,
}
