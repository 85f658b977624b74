"""What the type rules of ops check. All raise GraphError."""

from __future__ import annotations

from ondevice.dims import Extent
from ondevice.dtypes import f32, i32
from ondevice.errors import GraphError
from ondevice.graph.graph import TensorType


def tensor(name: str, type_: TensorType, kind: str, rank: int) -> tuple[Extent, ...]:
    """The shape of `type_`, which must have this kind of elements and this rank."""
    if type_.dtype.kind != kind or len(type_.shape) != rank:
        raise GraphError(f"{name} must be {kind} of rank {rank}, not {type_}")
    return type_.shape


def activation(name: str, type_: TensorType, rank: int = 2) -> tuple[Extent, ...]:
    """The shape of a value computed in the step: plain float32."""
    if type_.dtype != f32 or type_.scheme or len(type_.shape) != rank:
        raise GraphError(f"{name} must be plain f32 of rank {rank}, not {type_}")
    return type_.shape


def indices(name: str, type_: TensorType, rank: int = 1) -> tuple[Extent, ...]:
    if type_.dtype != i32 or len(type_.shape) != rank:
        raise GraphError(f"{name} must be i32 of rank {rank}, not {type_}")
    return type_.shape


def equal(what: str, left: object, right: object) -> None:
    if left != right:
        raise GraphError(f"{what}: {left} is not {right}")
