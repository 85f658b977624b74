"""Times that a build predicted, for this machine instead of the one that its target describes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ondevice.errors import OndeviceError
from ondevice.passes.times import Demand
from ondevice.targets.target import Speed

# 8-bit operations of a core in a cycle with the instructions by which `gate.ceilings` multiplies:
# two pipes, but three instructions on three pipes for AVX2; a tile product in 16 cycles for AMX.
CYCLE_OPERATIONS = {
    "AVX-512 VNNI": 256,
    "AVX-VNNI": 128,
    "AVX2": 64,
    "dotprod": 64,
    "AMX": 2048,
}
LAST_CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")


@dataclass(frozen=True)
class Predicted:
    """The report of a build on one CPU variant."""

    variant: str
    speed: Speed  # that the target describes
    last_bytes: int
    steps: tuple[Mapping[str, Any], ...]

    def launch_us(
        self, tokens: int, depth: int, speed: Speed, last_bytes: int
    ) -> dict[tuple[str, str], float]:
        """By operation and symbol, the time of a launch of a step: the one nearest in depth.

        Empty where the build predicted no step of so many tokens.
        """
        alike = [step for step in self.steps if step["tokens"] == tokens]
        if not alike:
            return {}
        rows = min(alike, key=lambda step: abs(step["depth"] - depth))["launches"]
        from_memory = sum(row["count"] * row["fresh_bytes"] for row in rows) > last_bytes
        total: dict[tuple[str, str], list[float]] = {}
        for row in rows:
            both = total.setdefault((row["op"], row["symbol"]), [0, 0])
            both[0] += row["count"] * _demand(row).us(speed, from_memory)
            both[1] += row["count"]
        return {key: us / count for key, (us, count) in total.items()}


def _demand(row: Mapping[str, Any]) -> Demand:
    return Demand(**{field.name: row[field.name] for field in fields(Demand)})


def read_predicted(path: Path, variant: str) -> Predicted:
    """Those for a CPU variant in the report that `build --report` wrote. Raises OndeviceError."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))["predicted"]
        speed = Speed(**{field.name: table["assumed"][field.name] for field in fields(Speed)})
        steps = {row["name"]: tuple(row["steps"]) for row in table["variants"]}
        return Predicted(variant, speed, table["assumed"]["last_bytes"], steps[variant])
    except OSError as error:
        raise OndeviceError(f"cannot read {path}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise OndeviceError(
            f"{path} predicts nothing for {variant}; write it with build --report"
        ) from error


def measured_speed(described: Speed, ceilings: Mapping[str, Any]) -> Speed:
    """A description with what `gate.ceilings` measured in place of clock, bandwidths and cores."""
    threads = int(ceilings["threads"])
    clocks = [
        ceilings[f"{kind}gop_per_s"] / threads / CYCLE_OPERATIONS[ceilings[name]]
        for kind, name in (("int8_", "instruction"), ("matrix_", "matrix_instruction"))
        if ceilings[name] in CYCLE_OPERATIONS
    ]
    return replace(
        described,
        cores=threads,
        ghz=max(clocks, default=described.ghz),  # what disturbed one did not the other
        last_gb_per_s=ceilings["cached_gb_per_s"] / threads,
        memory_gb_per_s=ceilings["dram_gb_per_s"],
    )


def last_cache_bytes(described: int) -> int:
    """Size of this machine's last cache, as described where Linux does not say."""
    try:
        text = LAST_CACHE.read_text(encoding="ascii").strip()
    except OSError:
        return described
    return int(text.removesuffix("K")) << 10 if text.endswith("K") else described
