"""Target: the machine a bundle is built for, one frozen row of catalog.toml.

Code asks for what it needs (`variant.has("avx512vnni")`) and never for a target's name.
"""

from __future__ import annotations

import platform
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from ondevice.errors import TargetError, nearest
from ondevice.tables import read_table


@dataclass(frozen=True)
class CpuVariant:
    """One set of LLVM features that kernels are compiled for."""

    name: str
    vector_bits: int  # the widest registers this variant may use
    vector_registers: int
    vector_pipes: int  # that compute on these registers
    features: tuple[str, ...]
    base: str = ""  # the variant whose code this one shares where it computes the same kernel

    def has(self, feature: str) -> bool:
        return feature in self.features


@dataclass(frozen=True)
class Speed:
    """What one core does in a cycle, and what memory gives: for predicted times, not for code.

    Bandwidths are what a loop that only reads gets, all levels on the way included.
    """

    cores: int
    ghz: float
    issue: int  # instructions a cycle
    multiply_pipes: int  # of the vector pipes, those that multiply
    load_pipes: int
    store_pipes: int
    l2_bytes_per_cycle: float
    last_gb_per_s: float  # from the last cache, for each core
    memory_gb_per_s: float  # for all cores together
    launch_ns: float  # to claim tasks of a launch, and to start them
    barrier_ns: float  # until all cores know that all are done


@dataclass(frozen=True)
class Cpu:
    """`variants` are best first; the last is what the target demands of every CPU."""

    baseline: str  # LLVM's name of the CPU that code outside kernels is compiled for
    variants: tuple[CpuVariant, ...]
    l1_bytes: int  # per core, data
    l2_bytes: int  # per core
    last_bytes: int  # of the cache that all cores share
    speed: Speed

    def has(self, feature: str) -> bool:
        """Whether every CPU of this target has `feature`: whether all variants list it."""
        return all(variant.has(feature) for variant in self.variants)


@dataclass(frozen=True)
class Target:
    """A row of the catalogue."""

    name: str
    triple: str  # LLVM's
    zig_target: str  # the same for `zig cc`
    linker: tuple[str, ...]  # the program inside ziglang, and its options
    runtime_library: str  # file name
    model_library: str  # file name, {abi} is 16 hex digits
    runner: str  # file name of the static program that generates without an app
    cpu: Cpu
    system_libraries: tuple[str, ...] = ()  # that libraries must name to use, as far as they do

    def model_library_name(self, abi_hash: str) -> str:
        """File name of the library compiled for a program."""
        return self.model_library.format(abi=abi_hash[:16])


@dataclass(frozen=True)
class Catalog:
    """catalog.toml: targets, the host's alias by platform, and names that are not built yet."""

    host: dict[str, str]
    target: dict[str, Target]
    planned: tuple[str, ...]


def load(name: str) -> Target:
    """The target called `name`; "host" is an alias of the row for this machine.

    Raises TargetError where the name is unknown or only planned.
    """
    catalog = _catalog()
    if name == "host":
        machine = f"{platform.system()}-{platform.machine()}"
        if machine not in catalog.host:
            raise TargetError(f"no target for this machine ({machine}) yet; known: {_known()}")
        name = catalog.host[machine]
    if name in catalog.planned:
        raise TargetError(f"target {name!r} is planned but not built yet; known: {_known()}")
    if name not in catalog.target:
        raise TargetError(f"unknown target {name!r}{nearest(name, ('host', *catalog.target))}")
    return catalog.target[name]


def names() -> list[str]:
    """Every target that can be built, the alias "host" first."""
    return ["host", *sorted(_catalog().target)]


def planned() -> list[str]:
    """Targets that are refused with a message until they are built."""
    return list(_catalog().planned)


def _known() -> str:
    return ", ".join(names())


@cache
def _catalog() -> Catalog:
    text = files("ondevice.targets").joinpath("catalog.toml").read_text(encoding="utf-8")
    table = tomllib.loads(text)
    rows = {
        name: read_table(Target, {"name": name, **row}, TargetError, f"target.{name}")
        for name, row in table["target"].items()
    }
    return Catalog(table["host"], rows, tuple(table["planned"]))
