"""Layout of the structs that libmodel exports and of the weights header: defined here, once.

`native/model.h` is printed from this table (`python -m ondevice.bundle.descriptor`) and
`codegen/descriptor.py` prints LLVM constants from it, so the two sides cannot drift apart.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

from ondevice.bundle.program import (
    FORMAT_VERSION,
    KV_BLOCK_TOKENS,
    KV_SPAN_TOKENS,
    Space,
    StepBuffer,
)
from ondevice.dims import SYMBOLS

WEIGHTS_MAGIC = b"ODWEIGHT"
WEIGHTS_VERSION = 2
WEIGHTS_DATA_START = 64  # bytes of the header; the data follows at once
KV_FILE_MAGIC = b"ODKVFILE"
KV_FILE_VERSION = 1
KV_FILE_HEADER_BYTES = 128
ALIGN_BYTES = 64  # of arena slots and of tensors in the data

# A CPU variant is usable where the machine has all of its features. The position in this tuple is
# the bit of the feature's mask; append only. Names are LLVM's; both ISAs share one numbering.
CPU_FEATURES = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512dq",
    "avx512vnni",
    "avxvnni",
    "dotprod",
    "i8mm",
    "fullfp16",
    "neon",
    "amx-tile",
    "amx-int8",
)

# Scalar types: name -> (C type, LLVM type).
SCALARS = {
    "u8": ("uint8_t", "i8"),
    "i32": ("int32_t", "i32"),
    "u32": ("uint32_t", "i32"),
    "i64": ("int64_t", "i64"),
    "u64": ("uint64_t", "i64"),
    "f32": ("float", "float"),
}


@dataclass(frozen=True)
class Field:
    """`type` is a scalar, a struct, `T[n]`, or `T*` (a pointer to constant T)."""

    name: str
    type: str
    doc: str = ""


@dataclass(frozen=True)
class Struct:
    name: str
    doc: str
    fields: tuple[Field, ...]


STRUCTS = (
    Struct(
        "od_weights_header",
        f"First {WEIGHTS_DATA_START} bytes of a weights file, little-endian.",
        (
            Field("magic", f"u8[{len(WEIGHTS_MAGIC)}]", WEIGHTS_MAGIC.decode()),
            Field("version", "u32"),
            Field("data_start", "u32", "bytes from the start of the header to the data"),
            Field("abi_hash", "u8[32]", "of the program that these weights are packed for"),
            Field("data_bytes", "u64"),
            Field("identity", "u8[8]", "differs where the weights' values differ"),
        ),
    ),
    Struct(
        "od_kv_file_header",
        f"First {KV_FILE_HEADER_BYTES} bytes of a saved conversation, little-endian.",
        (
            Field("magic", f"u8[{len(KV_FILE_MAGIC)}]", KV_FILE_MAGIC.decode()),
            Field("version", "u32"),
            Field("data_start", "u32", "bytes from the start of the file to the blocks"),
            Field("abi_hash", "u8[32]"),
            Field("identity", "u8[8]", "of the weights"),
            Field("block_bytes", "u64"),
            Field("tokens", "i32"),
            Field("blocks", "i32"),
            Field("zero", "u8[40]"),
            Field("data_checksum", "u64", "of all that follows the header"),
            Field("checksum", "u64", "of the header with 0 here"),
        ),
    ),
    Struct(
        "od_extent",
        "mul * ceil((s*S + l*L + b*B + p*P + t*T + constant) / div)",
        (
            *(Field(s.lower(), "i32") for s in SYMBOLS),
            Field("constant", "i32"),
            Field("div", "i32"),
            Field("mul", "i32"),
        ),
    ),
    Struct(
        "od_argument",
        "A buffer of a launch.",
        (
            Field("space", "i32", "od_space"),
            Field("index", "i32", "arena slot, or od_step_buffer (rope r is OD_STEP_ROPE + r)"),
            Field("offset", "i64", "bytes from the start of the weights' data or of the slot"),
        ),
    ),
    Struct(
        "od_launch",
        "One kernel over a range of tasks, run when min_rows <= rows <= max_rows and T likewise.",
        (
            Field("kernel", "i32"),
            Field("first_argument", "i32"),
            Field("argument_count", "i32"),
            Field("first_scalar", "i32", "of the extents"),
            Field("scalar_count", "i32"),
            Field("chunk", "i32", "tasks that a worker claims at once"),
            Field("min_rows", "i32"),
            Field("max_rows", "i32"),
            Field("min_spans", "i32"),
            Field("max_spans", "i32"),
            Field("barrier", "i32", "1: all earlier launches must have finished"),
            Field("tasks", "i32", "index of an extent"),
            Field("rows", "i32", "index of an extent"),
            Field("chained", "i32", "1: claimed with the launch that runs before it"),
            Field("each", "i32", "1: run whole by every worker, to the worker's own memory"),
        ),
    ),
    Struct(
        "od_rope",
        "Rows of cos[half_dim] then sin[half_dim]; angle = position * inv_freq in float.",
        (
            Field("half_dim", "i32"),
            Field("first_inv_freq", "i32"),
            Field("scale", "f32", "multiplies cos and sin"),
        ),
    ),
    Struct(
        "od_variant",
        "All kernels of the program for one set of CPU features.",
        (
            Field("features", "u64", "mask of OD_CPU_* bits, all needed"),
            Field("name", "char*"),
            Field("kernels", "od_kernel*"),
        ),
    ),
    Struct(
        "od_model",
        "What libmodel exports as od_model_<first 16 hex digits of abi_hash>.",
        (
            Field("format_version", "u32"),
            Field("struct_bytes", "u32", "sizeof(od_model)"),
            Field("abi_hash", "u8[32]"),
            Field("name", "char*"),
            Field("vocab_size", "i32"),
            Field("context_tokens", "i32"),
            Field("prefill_chunk_tokens", "i32", "largest S of a step"),
            Field("logit_rows", "i32", "largest L of a step"),
            Field("block_table_width", "i32"),
            Field("kernel_count", "i32"),
            Field("variant_count", "i32"),
            Field("launch_count", "i32"),
            Field("argument_count", "i32"),
            Field("extent_count", "i32"),
            Field("slot_count", "i32"),
            Field("rope_count", "i32"),
            Field("kv_block_bytes", "i64", f"{KV_BLOCK_TOKENS} tokens of all layers"),
            Field("scratch_bytes", "i64", "per worker, the largest of all kernels"),
            Field("weights_bytes", "i64", "of the data behind the weights header"),
            Field("variants", "od_variant*", "best first"),
            Field("launches", "od_launch*"),
            Field("arguments", "od_argument*"),
            Field("extents", "od_extent*"),
            Field("slots", "od_extent*", "bytes of each arena slot"),
            Field("ropes", "od_rope*"),
            Field("inv_freq", "f32*"),
        ),
    ),
)

BY_NAME = {s.name: s for s in STRUCTS}


def c_name(feature: str) -> str:
    """The feature as part of a macro's name."""
    return feature.upper().replace("-", "_")


def feature_mask(features: frozenset[str] | set[str] | tuple[str, ...]) -> int:
    """The bits of `features`. Raises KeyError on a name that is not in CPU_FEATURES."""
    bits = {name: 1 << i for i, name in enumerate(CPU_FEATURES)}
    return sum(bits[name] for name in sorted(set(features)))


def array_type(field_type: str) -> tuple[str, int] | None:
    """`("u8", 32)` of `u8[32]`, None of any other type."""
    match = re.fullmatch(r"(\w+)\[(\d+)\]", field_type)
    return (match[1], int(match[2])) if match else None


def llvm_type(field_type: str) -> str:
    """The LLVM type of a field; structs are spelled out, so no named types are needed."""
    if field_type.endswith("*"):
        return "ptr"
    if array := array_type(field_type):
        return f"[{array[1]} x {llvm_type(array[0])}]"
    if field_type in BY_NAME:
        return f"{{ {', '.join(llvm_type(f.type) for f in BY_NAME[field_type].fields)} }}"
    return SCALARS[field_type][1]


def size_bytes(field_type: str) -> int:
    """Size on a target with 8-byte pointers, by the rules of C."""
    return _layout(field_type)[0]


def _layout(field_type: str) -> tuple[int, int]:
    """(size, alignment) in bytes."""
    if field_type.endswith("*"):
        return 8, 8
    if array := array_type(field_type):
        size, align = _layout(array[0])
        return size * array[1], align
    if field_type not in BY_NAME:
        size = {"u8": 1, "i32": 4, "u32": 4, "f32": 4}.get(field_type, 8)
        return size, size
    offset, widest = 0, 1
    for field in BY_NAME[field_type].fields:
        size, align = _layout(field.type)
        offset = -(-offset // align) * align + size
        widest = max(widest, align)
    return -(-offset // widest) * widest, widest


def pack_weights_header(abi_hash: str, data_bytes: int, identity: str = "0" * 16) -> bytes:
    """The header of a weights file; `abi_hash` is 64 hex digits, `identity` 16."""
    return struct.pack(
        "<8sII32sQ8s",
        WEIGHTS_MAGIC,
        WEIGHTS_VERSION,
        WEIGHTS_DATA_START,
        bytes.fromhex(abi_hash),
        data_bytes,
        bytes.fromhex(identity),
    )


def model_symbol(abi_hash: str) -> str:
    """The one symbol that libmodel exports."""
    return f"od_model_{abi_hash[:16]}"


def print_header() -> str:
    """The text of native/model.h."""
    lines = [
        "/* What a compiled model exports and what a weights file starts with.",
        " * Printed by `python -m ondevice.bundle.descriptor`; edit the table there. */",
        "#ifndef OD_MODEL_H",
        "#define OD_MODEL_H",
        "",
        "#include <stdint.h>",
        "",
        f"#define OD_FORMAT_VERSION {FORMAT_VERSION}",
        f"#define OD_KV_BLOCK_TOKENS {KV_BLOCK_TOKENS}",
        f"#define OD_KV_SPAN_TOKENS {KV_SPAN_TOKENS}",
        f"#define OD_ALIGN_BYTES {ALIGN_BYTES}",
        f'#define OD_WEIGHTS_MAGIC "{WEIGHTS_MAGIC.decode()}"',
        f"#define OD_WEIGHTS_VERSION {WEIGHTS_VERSION}",
        f'#define OD_KV_FILE_MAGIC "{KV_FILE_MAGIC.decode()}"',
        f"#define OD_KV_FILE_VERSION {KV_FILE_VERSION}",
        "",
        "typedef enum od_space {",
        *(f"    OD_SPACE_{s.name} = {s.value}," for s in Space),
        "} od_space;",
        "",
        "typedef enum od_step_buffer {",
        *(f"    OD_STEP_{s.name} = {s.value}," for s in StepBuffer),
        "} od_step_buffer;",
        "",
        *(f"#define OD_CPU_{c_name(n)} (UINT64_C(1) << {i})" for i, n in enumerate(CPU_FEATURES)),
        "",
        "/* Runs tasks [begin, end); scratch belongs to the calling worker. */",
        "typedef void (*od_kernel)(void *const *buffers, const int32_t *scalars, int32_t begin,",
        "                          int32_t end, void *scratch);",
    ]
    for item in STRUCTS:
        lines += ["", f"/* {item.doc} */", f"typedef struct {item.name} {{"]
        lines += [f"    {_c_field(f)};{f' /* {f.doc} */' if f.doc else ''}" for f in item.fields]
        lines += [f"}} {item.name};"]
    return "\n".join([*lines, "", "#endif", ""])


def _c_field(field: Field) -> str:
    if field.type == "od_kernel*":
        return f"od_kernel const *{field.name}"
    if field.type.endswith("*"):
        base = field.type[:-1]
        return f"const {SCALARS[base][0] if base in SCALARS else base} *{field.name}"
    if array := array_type(field.type):
        return f"{SCALARS[array[0]][0]} {field.name}[{array[1]}]"
    c_type = SCALARS[field.type][0] if field.type in SCALARS else field.type
    return f"{c_type} {field.name}"


HEADER_PATH = Path(__file__).parent.parent / "native" / "model.h"

if __name__ == "__main__":
    HEADER_PATH.write_text(print_header())
