"""The kernel language: what a kernel source imports.

    from ondevice.lang import kernel, inline, Inline, f32, parallel, unroll, vec, load, store, fma

`min`, `max`, `abs`, `round` and `range` are written as in Python and need no import.
"""

from ondevice.dtypes import DType, f16, f32, i8, i16, i32, u8, u16, u32
from ondevice.lang.dsl import Chain, InlineFunction, KernelFunction, inline, kernel
from ondevice.lang.reference import (
    bitcast,
    cast,
    ceildiv,
    dot4,
    dot4_i8,
    dot4_u7,
    dot_tile,
    floor,
    fma,
    high,
    index,
    iota,
    join,
    load,
    low,
    parallel,
    prefetch,
    reduce_add,
    reduce_max,
    reduce_min,
    registers,
    scratch,
    select,
    sqrt,
    store,
    unroll,
    vec,
)

Inline = Chain  # the annotation of a hole

__all__ = [
    "Chain", "DType", "Inline", "InlineFunction", "KernelFunction", "bitcast", "cast", "ceildiv",
    "dot4", "dot4_i8", "dot4_u7", "dot_tile", "f16", "f32", "floor", "fma", "high", "i8", "i16",
    "i32", "index", "inline", "iota", "join", "kernel", "load", "low", "parallel", "prefetch",
    "reduce_add", "reduce_max", "reduce_min", "registers", "scratch", "select", "sqrt", "store",
    "u8", "u16", "u32", "unroll", "vec",
]  # fmt: skip
