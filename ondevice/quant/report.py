"""What a build made of every tensor: bytes, bits per weight, and the error of its quantization."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ondevice.bundle.program import WeightEntry
from ondevice.errors import OndeviceError
from ondevice.quant.scheme import PLAIN


@dataclass(frozen=True)
class TensorFigures:
    """One tensor. `power` is the sum of its squared elements, `squared_error` of what they lost."""

    name: str
    scheme: str  # "plain" for vectors, which stay unquantized f32
    shape: tuple[int, ...]
    size_bytes: int
    squared_error: float
    power: float

    @property
    def weights(self) -> int:
        return math.prod(self.shape)

    @property
    def bits_per_weight(self) -> float:
        """Scales and padding included."""
        return 8 * self.size_bytes / self.weights

    @property
    def error(self) -> float:
        """Relative root mean square of unpack(pack(w)) - w."""
        return _relative([self])


class QuantReport:
    """Filled tensor by tensor while weights are streamed; every tensor of a bundle is in it."""

    def __init__(self) -> None:
        self.tensors: list[TensorFigures] = []
        # What else a build has to report: figures by name, found when they are asked for.
        self.sections: dict[str, Callable[[], Any]] = {}
        self.texts: list[str] = []  # and lines for people
        self._known: dict[str, tuple[float, float]] = {}
        self._note: Callable[[str], None] = lambda text: None

    def resume(self, notes: Iterable[str], note: Callable[[str], None]) -> None:
        """Learn what an earlier build noted, and give a note of each new tensor to `note`."""
        self._known = {name: (error, power) for name, error, power in map(json.loads, notes)}
        self._note = note

    def knows(self, entry: WeightEntry) -> bool:
        """Whether an earlier build noted the tensor."""
        return entry.name in self._known

    def recall(self, entry: WeightEntry) -> None:
        """Add a tensor as an earlier build noted it."""
        self._append(entry, *self._known[entry.name])

    def add(self, entry: WeightEntry, squared_error: float, power: float) -> None:
        """Add a tensor that was streamed."""
        self._append(entry, squared_error, power)
        self._note(json.dumps([entry.name, squared_error, power]))

    def _append(self, entry: WeightEntry, squared_error: float, power: float) -> None:
        scheme = "plain" if entry.scheme == PLAIN else entry.scheme
        self.tensors.append(
            TensorFigures(entry.name, scheme, entry.shape, entry.size_bytes, squared_error, power)
        )

    def add_section(self, name: str, figures: Callable[[], Any], text: str = "") -> None:
        """Report something else too: `figures` in the JSON, `text` in the summary."""
        self.sections[name] = figures
        self.texts += [text] if text else []

    def json(self) -> str:
        """All tensors and their total; `error` is relative, 0 where every bit was kept."""
        total = {"size_bytes": _bytes(self.tensors), "bits_per_weight": _bits(self.tensors)}
        rows = [_figures(tensor) for tensor in self.tensors]
        sections = {name: figures() for name, figures in self.sections.items()}
        whole = {"tensors": rows, "total": total, **sections}
        return json.dumps(whole, indent=2) + "\n"

    def write(self, path: Path) -> None:
        """Write `json` to a file. Raises OndeviceError."""
        try:
            path.write_text(self.json(), encoding="utf-8")
        except OSError as error:
            raise OndeviceError(f"cannot write the report {path}: {error.strerror}") from error

    def tsv(self) -> str:
        """A line for each tensor."""
        lines = ["tensor\tshape\tscheme\tbytes\tbits_per_weight\terror"]
        for t in self.tensors:
            shape = "x".join(map(str, t.shape))
            figures = f"{t.size_bytes}\t{t.bits_per_weight:.4f}\t{t.error:.6g}"
            lines.append(f"{t.name}\t{shape}\t{t.scheme}\t{figures}")
        return "\n".join(lines) + "\n"

    def summary(self) -> str:
        """A table with one line for the same tensor of all layers.

        `error` is theirs together, `worst` that of the worst one.
        """
        head = f"{'weights':36} {'count':>5}  {'scheme':12} {'bytes':>13} {'bits':>6}"
        lines = [f"{head} {'error':>8} {'worst':>8}"]
        kinds: dict[tuple[str, str], list[TensorFigures]] = {}
        for tensor in self.tensors:
            kind = re.sub(r"\.\d+\.", ".*.", tensor.name)
            kinds.setdefault((kind, tensor.scheme), []).append(tensor)
        lines += [_line(name, scheme, group) for (name, scheme), group in kinds.items()]
        return "\n".join([*lines, _line("total", "", self.tensors), *self.texts])


def _line(name: str, scheme: str, tensors: list[TensorFigures]) -> str:
    worst = max((tensor.error for tensor in tensors), default=0.0)
    errors = f"{_percent(_relative(tensors))} {_percent(worst)}" if scheme else ""
    sizes = f"{_bytes(tensors):13,} {_bits(tensors):6.2f}"
    return f"{name:36} {len(tensors):5}  {scheme:12} {sizes} {errors}".rstrip()


def _percent(error: float) -> str:
    return f"{100 * error:7.3f}%" if error else f"{'0':>8}"


def _figures(tensor: TensorFigures) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "scheme": tensor.scheme,
        "size_bytes": tensor.size_bytes,
        "bits_per_weight": tensor.bits_per_weight,
        "error": tensor.error,
    }


def _bytes(tensors: Iterable[TensorFigures]) -> int:
    return sum(tensor.size_bytes for tensor in tensors)


def _bits(tensors: list[TensorFigures]) -> float:
    return 8 * _bytes(tensors) / max(1, sum(tensor.weights for tensor in tensors))


def _relative(tensors: list[TensorFigures]) -> float:
    power = sum(tensor.power for tensor in tensors)
    return math.sqrt(sum(tensor.squared_error for tensor in tensors) / power) if power else 0.0
