"""`dot4` on every CPU: acc[i] += sum_j u[4i+j] * s[4i+j], exact on all of them.

Chosen by feature, best first. The widths in names are bits of the registers used.
"""

from __future__ import annotations

from collections.abc import Callable

from ondevice.codegen.writer import Writer
from ondevice.lang.kernel_ir import Op

BYTES = "<64 x i8>"
SUMS = "<16 x i32>"
Part = Callable[[Writer, str, str, str], str]


def lower_dot4(out: Writer, op: Op, args: list[str]) -> str:
    """`op.name` is dot4 or dot4_u7 (every u <= 127)."""
    acc, u, s = args
    small = op.name == "dot4_u7"
    has = out.features.__contains__
    if has("avx512vnni"):
        return out.pure(
            f"call {SUMS} @llvm.x86.avx512.vpdpbusd.512({SUMS} {acc}, {BYTES} {u}, {BYTES} {s})"
        )
    if has("avxvnni"):
        return by_parts(out, 2, vnni_256, acc, u, s)
    if has("avx2"):
        return by_parts(out, 2, maddubs_u7 if small else maddubs, acc, u, s)
    if has("i8mm") and not small:
        return by_parts(out, 4, usdot, acc, u, s)
    if has("dotprod"):
        return by_parts(out, 4, sdot if small else sdot_centered, acc, u, s)
    if has("neon"):
        return by_parts(out, 4, neon_pairs if small else neon, acc, u, s)
    return by_parts(out, 4, widened, acc, u, s)


def lower_dot4_i8(out: Writer, op: Op, args: list[str]) -> str:
    """Both operands signed; the second is never -128."""
    has = out.features.__contains__
    if has("avx2"):
        return by_parts(out, 2, maddubs_i8, *args)
    if has("dotprod"):
        return by_parts(out, 4, sdot, *args)
    if has("neon"):
        return by_parts(out, 4, neon_pairs, *args)
    return by_parts(out, 4, widened_i8, *args)


def by_parts(out: Writer, parts: int, one: Part, acc: str, u: str, s: str) -> str:
    """Split the operands into `parts` registers, apply `one` to each, join the results."""
    lanes, results = 16 // parts, []
    for i in range(parts):
        sums = list(range(i * lanes, (i + 1) * lanes))
        places = list(range(4 * i * lanes, 4 * (i + 1) * lanes))
        results.append(
            one(
                out,
                out.shuffle(SUMS, acc, "poison", sums),
                out.shuffle(BYTES, u, "poison", places),
                out.shuffle(BYTES, s, "poison", places),
            )
        )
    while len(results) > 1:
        type = f"<{lanes} x i32>"
        pairs = zip(results[::2], results[1::2], strict=True)
        lanes *= 2
        results = [out.shuffle(type, a, b, list(range(lanes))) for a, b in pairs]
    return results[0]


# --- x86 -----------------------------------------------------------------------------------------


def vnni_256(out: Writer, acc: str, u: str, s: str) -> str:
    return out.pure(
        "call <8 x i32> @llvm.x86.avx512.vpdpbusd.256"
        f"(<8 x i32> {acc}, <32 x i8> {u}, <32 x i8> {s})"
    )


def pair_sums(out: Writer, u: str, s: str, weight: int) -> str:
    """`weight * sum of four`, where no pair of products leaves i16."""
    pairs = out.pure(f"call <16 x i16> @llvm.x86.avx2.pmadd.ub.sw(<32 x i8> {u}, <32 x i8> {s})")
    return out.pure(
        "call <8 x i32> @llvm.x86.avx2.pmadd.wd"
        f"(<16 x i16> {pairs}, <16 x i16> splat (i16 {weight}))"
    )


def maddubs_u7(out: Writer, acc: str, u: str, s: str) -> str:
    """Two products of u <= 127 sum to at most 2 * 127 * 128 < 2^15: no saturation."""
    return out.pure(f"add <8 x i32> {acc}, {pair_sums(out, u, s, 1)}")


def maddubs(out: Writer, acc: str, u: str, s: str) -> str:
    """u = (u & 127) + 128 * (u >> 7): two exact halves where one pmaddubsw would saturate."""
    low = out.pure(f"and <32 x i8> {u}, splat (i8 127)")
    top = out.pure(f"lshr <32 x i8> {u}, splat (i8 7)")
    total = out.pure(f"add <8 x i32> {acc}, {pair_sums(out, low, s, 1)}")
    return out.pure(f"add <8 x i32> {total}, {pair_sums(out, top, s, 128)}")


def maddubs_i8(out: Writer, acc: str, a: str, b: str) -> str:
    """|a| * (b with the sign of a): two products sum to at most 2 * 128 * 127 < 2^15."""
    size = out.pure(f"call <32 x i8> @llvm.abs.v32i8(<32 x i8> {a}, i1 false)")
    turned = out.pure(f"call <32 x i8> @llvm.x86.avx2.psign.b(<32 x i8> {b}, <32 x i8> {a})")
    return out.pure(f"add <8 x i32> {acc}, {pair_sums(out, size, turned, 1)}")


# --- arm64 ---------------------------------------------------------------------------------------


def arm_dot(name: str) -> Part:
    def part(out: Writer, acc: str, u: str, s: str) -> str:
        return out.pure(
            f"call <4 x i32> @llvm.aarch64.neon.{name}.v4i32.v16i8"
            f"(<4 x i32> {acc}, <16 x i8> {u}, <16 x i8> {s})"
        )

    return part


usdot = arm_dot("usdot")
sdot = arm_dot("sdot")


def sdot_centered(out: Writer, acc: str, u: str, s: str) -> str:
    """u * s = (u - 128) * s + 128 * s. All rows of weights share the second term."""
    rest = sdot(out, sdot(out, "zeroinitializer", "splat (i8 64)", s), "splat (i8 64)", s)
    total = sdot(out, acc, out.pure(f"xor <16 x i8> {u}, splat (i8 -128)"), s)
    return out.pure(f"add <4 x i32> {total}, {rest}")


def add_pairs(out: Writer, type: str, a: str, b: str) -> str:
    """Sums of neighbours, first of `a`, then of `b`."""
    suffix = type.strip("<>").replace(" x ", "")
    return out.pure(f"call {type} @llvm.aarch64.neon.addp.v{suffix}({type} {a}, {type} {b})")


def widen_pairs(out: Writer, x: str) -> str:
    """Sums of neighbouring i16 as i32; added to something this is one instruction."""
    return out.pure(f"call <4 x i32> @llvm.aarch64.neon.saddlp.v4i32.v8i16(<8 x i16> {x})")


def neon_pairs(out: Writer, acc: str, u: str, s: str) -> str:
    """As int8: two products sum to at most 2 * 127 * 128 < 2^15, for one side is within 127."""
    halves = []
    for first in (0, 8):
        lanes = list(range(first, first + 8))
        x, y = (out.shuffle("<16 x i8>", v, "poison", lanes) for v in (u, s))
        halves.append(
            out.pure(f"call <8 x i16> @llvm.aarch64.neon.smull.v8i16(<8 x i8> {x}, <8 x i8> {y})")
        )
    pairs = widen_pairs(out, add_pairs(out, "<8 x i16>", *halves))
    return out.pure(f"add <4 x i32> {acc}, {pairs}")


def neon(out: Writer, acc: str, u: str, s: str) -> str:
    """Two products may leave i16, so they are widened first."""
    product, halves = products(out, u, s), []
    for first in (0, 8):
        half = out.shuffle("<16 x i16>", product, "poison", list(range(first, first + 8)))
        halves.append(widen_pairs(out, half))
    return out.pure(f"add <4 x i32> {acc}, {add_pairs(out, '<4 x i32>', *halves)}")


def products(out: Writer, u: str, s: str, extend: str = "zext") -> str:
    """Sixteen products; 255 * -128 still fits i16."""
    wide_u = out.pure(f"{extend} <16 x i8> {u} to <16 x i16>")
    wide_s = out.pure(f"sext <16 x i8> {s} to <16 x i16>")
    return out.pure(f"mul <16 x i16> {wide_u}, {wide_s}")


# --- any target ----------------------------------------------------------------------------------


def widened_i8(out: Writer, acc: str, a: str, b: str) -> str:
    return widened(out, acc, a, b, "sext")


def widened(out: Writer, acc: str, u: str, s: str, extend: str = "zext") -> str:
    """Every fourth product, four times."""
    product, total = products(out, u, s, extend), acc
    for j in range(4):
        part = out.shuffle("<16 x i16>", product, "poison", list(range(j, 16, 4)))
        wide = out.pure(f"sext <4 x i16> {part} to <4 x i32>")
        total = out.pure(f"add <4 x i32> {total}, {wide}")
    return total
