"""Targets: what a build may be for, and what the machine at hand can run."""

from ondevice.targets.target import Cpu, CpuVariant, Target, load, names, planned

__all__ = ["Cpu", "CpuVariant", "Target", "load", "names", "planned"]
