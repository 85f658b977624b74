"""`dot_tile` on x86's matrix unit, AMX: 16 rows by 16 columns by 64, in six tile registers.

A function that uses tiles configures them at its start and releases them at its end, so that the
system need not save them for a thread that does not compute.
Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
"""

from __future__ import annotations

from ondevice.codegen.writer import Writer

ROWS, COLUMN_BYTES, K_BYTES = 16, 64, 64
_PALETTE, _TILES = 1, 8
# Two sets, used in turn: the next product can start while the last one is stored.
_SETS = ((0, 1, 2), (3, 4, 5))  # result, rows, columns


def configuration() -> bytes:
    """The 64 bytes that LDTILECFG loads."""
    widths, rows = [0] * _TILES, [0] * _TILES
    for result, left, right in _SETS:
        widths[result], rows[result] = COLUMN_BYTES, ROWS
        widths[left], rows[left] = K_BYTES, ROWS
        widths[right], rows[right] = COLUMN_BYTES, K_BYTES // 4
    table = bytes([_PALETTE]) + bytes(15)
    table += b"".join(w.to_bytes(2, "little") for w in widths) + bytes(16)
    return table + bytes(rows) + bytes(8)


class Tiles:
    """The tile registers of one function under construction."""

    def __init__(self, out: Writer) -> None:
        self.out = out
        self.used = 0
        self.start = out.reserve(1)

    def dot(self, result: str, rows: str, columns: str) -> None:
        """Multiply what lies at the pointers `rows` and `columns`; store it at `result`."""
        c, a, b = _SETS[self.used % len(_SETS)]
        self.used += 1
        for call in (
            f"tileloadd64(i8 {a}, ptr {rows}, i64 {K_BYTES})",
            f"tileloadd64(i8 {b}, ptr {columns}, i64 {COLUMN_BYTES})",
            f"tilezero(i8 {c})",
            f"tdpbssd(i8 {c}, i8 {a}, i8 {b})",
            f"tilestored64(i8 {c}, ptr {result}, i64 {COLUMN_BYTES})",
        ):
            self.out.line(f"call void @llvm.x86.{call}")

    def configure(self) -> None:
        """Fill in the start of the function, once it is known to use tiles."""
        if not self.used:
            return
        lines = ["%tiles = alloca [64 x i8], align 64"]
        words = configuration()
        for i in range(0, 64, 8):
            word = int.from_bytes(words[i : i + 8], "little")
            if i == 0:
                place = "%tiles"
            else:
                place = f"%tiles{i}"
                lines.append(f"{place} = getelementptr i8, ptr %tiles, i64 {i}")
            lines.append(f"store i64 {word}, ptr {place}")
        lines.append("call void @llvm.x86.ldtilecfg(ptr %tiles)")
        self.out.lines[self.start] = "\n".join("  " + line for line in lines)

    def release(self) -> None:
        """At the end of the function."""
        if self.used:
            self.out.line("call void @llvm.x86.tilerelease()")
