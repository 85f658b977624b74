"""Program as text: one line for each row, and the same Program back from it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NoReturn, TypeVar

from ondevice.bundle.program import (
    ALL_SPANS,
    Argument,
    KvCache,
    Launch,
    Program,
    ProgramKernel,
    Rope,
    Slot,
    Space,
    StepBuffer,
    WeightEntry,
    step_sizes,
)
from ondevice.dims import Extent
from ondevice.dtypes import DTYPES
from ondevice.errors import BundleError

T = TypeVar("T")

SIZES = (
    "vocab_size", "context_tokens", "prefill_chunk_tokens", "logit_rows", "weights_bytes",
    "worker_bytes",
)  # fmt: skip


def print_program(program: Program) -> str:
    """The launch table and all it refers to; `parse_program` reads it back."""
    kv = program.kv
    lines = [f"program {program.name}", *(f"{name} {getattr(program, name)}" for name in SIZES)]
    lines.append(f"kv {kv.layers} layers {kv.kv_heads} heads {kv.head_dim} {kv.dtype}")
    for rope in program.ropes:
        lines.append(f"rope {rope.scale!r} {' '.join(f'{f!r}' for f in rope.inv_freq)}")
    lines += [f"slot {slot.size_bytes} # {slot.name}" for slot in program.slots]
    lines += [f"kernel {k.symbol} {k.scratch_bytes} {k.text_sha256}" for k in program.kernels]
    lines += [_weight(entry) for entry in program.weights]
    lines += [_launch(launch) for launch in program.launches]
    lines += [_waits(program, rows) for rows in (1, program.prefill_chunk_tokens)]
    return "\n".join(lines) + "\n"


def parse_program(text: str) -> Program:
    """The inverse of `print_program`. Raises BundleError with the line that does not fit."""
    parser = _Parser(text)
    try:
        return parser.program()
    except ValueError as error:  # a size or a number that is none
        parser.fail(str(error))


def _waits(program: Program, rows: int) -> str:
    """A remark, which the parser leaves out."""
    total, layer = program.barriers(step_sizes(rows))
    return f"# a step of {rows} tokens has {total} barriers, {layer:.1f} in a layer"


def _weight(entry: WeightEntry) -> str:
    shape = "x".join(map(str, entry.shape))
    scheme = entry.scheme or "-"
    return (
        f"weight {scheme} {entry.layout} {shape} {entry.offset} {entry.size_bytes} # {entry.name}"
    )


def _launch(launch: Launch) -> str:
    arguments = " ".join(map(_argument, launch.arguments))
    scalars = " ".join(map(str, launch.scalars))
    spans = f" spans {launch.min_spans}..{launch.max_spans}"
    limited = (launch.min_spans, launch.max_spans) != (0, ALL_SPANS)
    return (
        f"launch {_start(launch)} {launch.kernel}"
        f" ({arguments}) ({scalars})"
        f" tasks {launch.tasks} by {launch.chunk}"
        f" when {launch.min_rows}..{launch.max_rows} {launch.rows}{spans if limited else ''}"
        f" # {launch.source}"
    )


def _start(launch: Launch) -> str:
    start = "barrier" if launch.barrier else "chained" if launch.chained else "free"
    return f"{start} each" if launch.each else start


def _argument(argument: Argument) -> str:
    name = argument.space.name.lower()
    if argument.space == Space.STEP and argument.index in list(StepBuffer):
        return f"{name}:{StepBuffer(argument.index).name.lower()}+{argument.offset}"
    return f"{name}:{argument.index}+{argument.offset}"


class _Parser:
    """Lines by their first word, in the order that `print_program` writes them."""

    def __init__(self, text: str) -> None:
        lines = text.split("\n")
        self.lines = [line for line in lines if line and not line.startswith("# ")]
        self.at = 0  # lines read so far

    def program(self) -> Program:
        name = self.one("program (.+)", str)
        sizes = {key: self.one(rf"{key} (-?\d+)", int) for key in SIZES}
        kv = self.match(r"kv (\d+) layers (\d+) heads (\d+) (\w+)")
        if kv[4] not in DTYPES:
            self.fail(f"unknown element type {kv[4]!r}")
        geometry = KvCache(int(kv[1]), int(kv[2]), int(kv[3]), DTYPES[kv[4]])
        program = Program(
            name=name,
            **sizes,
            kv=geometry,
            ropes=tuple(self.many("rope ", self.rope)),
            slots=tuple(self.many("slot ", self.slot)),
            kernels=tuple(self.many("kernel ", self.kernel)),
            weights=tuple(self.many("weight ", self.weight)),
            launches=tuple(self.many("launch ", self.launch)),
        )
        if self.at != len(self.lines):
            self.at += 1
            self.fail("a line that no program has")
        return program

    def rope(self) -> Rope:
        scale, *frequencies = self.match("rope (.+)")[1].split(" ")
        return Rope(tuple(map(float, frequencies)), float(scale))

    def slot(self) -> Slot:
        match = self.match("slot (.+) # (.*)")
        return Slot(match[2], Extent.parse(match[1]))

    def kernel(self) -> ProgramKernel:
        match = self.match(r"kernel (\S+) (\d+) (\w+)")
        return ProgramKernel(match[1], int(match[2]), match[3])

    def weight(self) -> WeightEntry:
        match = self.match(r"weight (\S+) (\S+) ([\dx]+) (\d+) (\d+) # (.*)")
        shape = tuple(map(int, match[3].split("x")))
        scheme = "" if match[1] == "-" else match[1]
        return WeightEntry(match[6], scheme, shape, match[2], int(match[4]), int(match[5]))

    def launch(self) -> Launch:
        match = self.match(
            r"launch (barrier|chained|free)( each)? (\d+)"
            r" \((\S+(?: \S+)*)\) \(((?:\S+(?: \S+)*)?)\)"
            r" tasks (\S+) by (\d+) when (\d+)\.\.(\d+) (\S+)"
            r"(?: spans (\d+)\.\.(\d+))? # (.*)"
        )
        return Launch(
            kernel=int(match[3]),
            arguments=tuple(map(self.argument, match[4].split())),
            scalars=tuple(map(Extent.parse, match[5].split())),
            tasks=Extent.parse(match[6]),
            chunk=int(match[7]),
            rows=Extent.parse(match[10]),
            min_rows=int(match[8]),
            max_rows=int(match[9]),
            barrier=match[1] == "barrier",
            source=match[13],
            min_spans=int(match[11] or 0),
            max_spans=int(match[12] or ALL_SPANS),
            chained=match[1] == "chained",
            each=match[2] is not None,
        )

    def argument(self, text: str) -> Argument:
        match = re.fullmatch(r"(\w+):(\w+)\+(\d+)", text)
        space, index, offset = (part.upper() for part in match.groups()) if match else ("", "", "")
        if space not in Space.__members__ or not (
            index in StepBuffer.__members__ or index.isdigit()
        ):
            self.fail(f"{text!r} is no argument")
        number = int(index) if index.isdigit() else int(StepBuffer[index])
        return Argument(Space[space], number, int(offset))

    def many(self, start: str, row: Callable[[], T]) -> Iterator[T]:
        while self.at < len(self.lines) and self.lines[self.at].startswith(start):
            yield row()

    def one(self, pattern: str, kind: Callable[[str], T]) -> T:
        return kind(self.match(pattern)[1])

    def match(self, pattern: str) -> re.Match[str]:
        line = self.lines[self.at] if self.at < len(self.lines) else ""
        match = re.fullmatch(pattern, line)
        self.at += 1
        if match is None:
            self.fail(f"expected {pattern!r}, not {line!r}")
        return match

    def fail(self, what: str) -> NoReturn:
        raise BundleError(f"program text, line {self.at}: {what}")
