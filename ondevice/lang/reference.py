"""What every intrinsic means, on NumPy values: the oracle of all printers.

A vector is a one-dimensional array, a scalar of a buffer's dtype a NumPy scalar, an `index` a
Python int. The functions here are what kernel sources import, so that a kernel runs as plain
Python; `Array` gives buffers that refuse negative and out-of-range indices.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ondevice.dtypes import DType
from ondevice.errors import KernelError

Value = Any  # a vector, a NumPy scalar or a Python number: kernels are typed by `specialize`


class Vector(np.ndarray[Any, np.dtype[Any]]):
    """A vector: an array whose `a += b` makes a new value, for kernels' vectors are values."""


for _name in "add sub mul truediv floordiv mod and or xor lshift rshift".split():
    setattr(Vector, f"__i{_name}__", getattr(np.ndarray, f"__{_name}__"))


class Array:
    """A buffer of the plain-Python run: a NumPy array of any strides, with checked access."""

    def __init__(self, name: str, array: npt.NDArray[Any]) -> None:
        self.name = name
        self.array = array

    def locate(self, indices: tuple[int, ...], elements: int) -> tuple[int | slice, ...]:
        """The slice of `elements` neighbours along the last dim; KernelError if out of range."""
        shape = self.array.shape
        if len(indices) != len(shape):
            raise KernelError(f"{self.name} has {len(shape)} dims, indexed with {len(indices)}")
        widths = (1,) * (len(shape) - 1) + (elements,)
        for axis, (i, size, width) in enumerate(zip(indices, shape, widths, strict=True)):
            if not isinstance(i, int):
                raise KernelError(f"{self.name}: index {axis} is {type(i).__name__}, use index()")
            if i < 0 or i + width > size:
                span = f"{i}" if width == 1 else f"{i}:{i + width}"
                raise KernelError(f"{self.name}: index {axis} is {span}, outside 0:{size}")
        return (*indices[:-1], slice(indices[-1], indices[-1] + elements))

    def read(self, indices: tuple[int, ...], lanes: int, dtype: np.dtype[Any]) -> Value:
        elements = element_count(lanes, dtype, self.array.dtype)
        data = np.ascontiguousarray(self.array[self.locate(indices, elements)])
        return data.view(np.uint8)[: lanes * dtype.itemsize].copy().view(dtype)

    def following(self, indices: tuple[int, ...], count: int) -> npt.NDArray[Any]:
        """`count` elements from `indices` on, over the ends of dims; KernelError if too many."""
        self.locate(indices, 1)
        start = int(np.ravel_multi_index(indices, self.array.shape))
        if start + count > self.array.size:
            raise KernelError(f"{self.name}: {count} elements from {indices} on are too many")
        return self.array.reshape(-1)[start : start + count]

    def write(self, indices: tuple[int, ...], value: npt.NDArray[Any]) -> None:
        own = self.array.dtype
        if value.dtype != own and own != np.uint8:
            raise KernelError(f"{self.name}: a store of {value.dtype} into {own}")
        data = value if value.dtype == own else np.ascontiguousarray(value).view(own)
        self.array[self.locate(indices, data.size)] = data

    def __getitem__(self, indices: int | tuple[int, ...]) -> Value:
        return load(self, *as_tuple(indices), lanes=1)

    def __setitem__(self, indices: int | tuple[int, ...], value: Value) -> None:
        store(self, *as_tuple(indices), value)


class Registers:
    """The plain-Python form of `registers`: variables named by compile-time indices."""

    def __init__(self, init: Value, dims: tuple[int, ...]) -> None:
        places = itertools.product(*map(range, dims))
        self.values = dict.fromkeys(places, init)

    def __getitem__(self, indices: int | tuple[int, ...]) -> Value:
        return self.values[self.place(indices)]

    def __setitem__(self, indices: int | tuple[int, ...], value: Value) -> None:
        self.values[self.place(indices)] = value

    def place(self, indices: int | tuple[int, ...]) -> tuple[int, ...]:
        place = as_tuple(indices)
        if place not in self.values:
            raise KernelError(f"registers index {place} is out of range")
        return place


def as_tuple(indices: int | tuple[int, ...]) -> tuple[int, ...]:
    return indices if isinstance(indices, tuple) else (indices,)


def element_count(lanes: int, dtype: np.dtype[Any], own: np.dtype[Any]) -> int:
    """Buffer elements that `lanes` values of `dtype` cover."""
    return -(-lanes * dtype.itemsize // own.itemsize)


def unwrap(values: npt.NDArray[Any]) -> Value:
    """A vector, or its only lane as a scalar."""
    return values[0] if values.size == 1 else values.view(Vector)


def numpy_dtype(dtype: DType) -> np.dtype[Any]:
    return np.dtype(dtype.np)


# --- memory --------------------------------------------------------------------------------------


def load(
    buffer: Array, *indices: int, lanes: int = 16, count: int | None = None,
    as_: DType | None = None,
) -> Value:  # fmt: skip
    """`lanes` neighbours along the last dim; lanes >= count read nothing and are 0."""
    dtype = buffer.array.dtype if as_ is None else numpy_dtype(as_)
    if count is None:
        return unwrap(buffer.read(indices, lanes, dtype))
    present = min(max(count, 0), lanes)
    values = np.zeros(lanes, dtype)
    if present:
        values[:present] = buffer.read(indices, present, dtype)
    return unwrap(values)


def store(buffer: Array, *indices_value: Any, count: int | None = None) -> None:
    """`store(buffer, *indices, value)`; lanes >= count are not written."""
    *indices, value = indices_value
    if isinstance(value, (bool, int, float)):
        value = buffer.array.dtype.type(value)
    values = np.atleast_1d(np.asarray(value))
    present = values.size if count is None else min(max(count, 0), values.size)
    if present:
        buffer.write(tuple(indices), values[:present])


def prefetch(buffer: Array, *indices: int) -> None:
    """A hint that the element is wanted soon, which must be one of the buffer."""
    buffer.locate(indices, 1)


def scratch(dtype: DType, *dims: int) -> Array:
    """Uninitialised worker memory; poisoned here, so that reading it first is noticed."""
    array = np.empty(dims, numpy_dtype(dtype))
    poison(array)
    return Array("scratch", array)


def poison(array: npt.NDArray[Any]) -> None:
    array.fill(np.nan if array.dtype.kind == "f" else np.iinfo(array.dtype).max)


def registers(init: Value, *dims: int) -> Registers:
    """A register array: as many plain variables, each starting as `init`."""
    return Registers(np.float32(init) if isinstance(init, float) else init, dims)


# --- loops ---------------------------------------------------------------------------------------


def parallel(*extents: int) -> Iterator[Any]:
    """The tasks of a kernel, row-major; in no order that a kernel may rely on."""
    if len(extents) == 1:
        return iter(range(extents[0]))
    return itertools.product(*map(range, extents))


def unroll(count: int) -> range:
    """A loop expanded at compile time; its variable is a literal."""
    return range(count)


# --- building and converting values --------------------------------------------------------------


def vec(value: Value, lanes: int) -> Value:
    """`value` in every lane; a float literal is f32, an int literal i32."""
    if isinstance(value, float):
        value = np.float32(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        value = np.int32(value)
    return unwrap(np.full(lanes, value))


def iota(lanes: int) -> Value:
    """0, 1, 2, ... as i32."""
    return unwrap(np.arange(lanes, dtype=np.int32))


class IndexType(DType):
    """`index` is an element type in annotations and `cast`, and a conversion when called."""

    def __call__(self, value: Value) -> int:
        return int(value)


index = IndexType("index", 64, "index", "int64")


def cast(dtype: DType, value: Value) -> Value:
    """`value` as `dtype`: floats round to nearest even, floats to integers truncate."""
    if dtype.name == "index":
        return int(value)
    target = numpy_dtype(dtype)
    if np.asarray(value).dtype.kind == "f" and target.kind in "iu":
        low, high = np.iinfo(target).min, np.iinfo(target).max
        whole = np.trunc(np.asarray(value, np.float64))
        if not np.all((whole >= low) & (whole <= high)):
            raise KernelError(f"cast({dtype}, ...) of {value}, which is out of range")
    if isinstance(value, int):
        return np.asarray(value).astype(target)[()]
    return value.astype(target) if hasattr(value, "astype") else target.type(value)


def bitcast(dtype: DType, value: Value) -> Value:
    """The same bits as `dtype`; the number of lanes follows."""
    if isinstance(value, float):
        value = np.float32(value)
    return unwrap(np.ascontiguousarray(np.atleast_1d(value)).view(numpy_dtype(dtype)))


def low(value: Value) -> Value:
    """The first half of the lanes."""
    return unwrap(value[: value.size // 2])


def high(value: Value) -> Value:
    """The second half of the lanes."""
    return unwrap(value[value.size // 2 :])


def join(a: Value, b: Value) -> Value:
    """The lanes of `a`, then those of `b`."""
    return unwrap(np.concatenate((np.atleast_1d(a), np.atleast_1d(b))))


# --- arithmetic ----------------------------------------------------------------------------------


def fma(a: Value, b: Value, c: Value) -> Value:
    """`a * b + c` in f32 with a single rounding."""
    a, b, c = (np.float32(x) if isinstance(x, (int, float)) else x for x in (a, b, c))
    # The product of two f32 is exact in f64. TwoSum finds what the f64 sum lost; forcing the sum
    # to odd where it lost something makes the rounding to f32 the only one (Boldo, Melquiond 2008).
    product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
    addend = np.asarray(c, np.float64)
    total = np.atleast_1d(product + addend)
    back = total - product
    lost = (product - (total - back)) + (addend - back)
    inexact = np.isfinite(lost) & (lost != 0)
    if inexact.any():
        bits = total.view(np.int64)
        away = np.where((lost > 0) == (total > 0), 1, -1)
        bits += np.where(inexact & (bits & 1 == 0), away, 0)
    result = total.astype(np.float32)
    return unwrap(result)


def sqrt(x: Value) -> Value:
    """The exactly rounded square root."""
    return np.sqrt(np.float32(x) if isinstance(x, float) else x)


def floor(x: Value) -> Value:
    """The largest whole number that is not above x."""
    return np.floor(np.float32(x) if isinstance(x, float) else x)


def round_half_even(x: Value) -> Value:
    """The nearest whole number, of two the even one."""
    return np.rint(np.float32(x) if isinstance(x, float) else x)


def minimum(a: Value, b: Value) -> Value:
    """`a if a < b else b` in each lane, which also settles signed zeros and nan."""
    return select(a < b, a, b)


def maximum(a: Value, b: Value) -> Value:
    """`a if a > b else b` in each lane."""
    return select(a > b, a, b)


def absolute(x: Value) -> Value:
    """|x|; the smallest integer stays as it is."""
    return abs(x)


def select(condition: Value, a: Value, b: Value) -> Value:
    """`a` where `condition`, else `b`."""
    if not isinstance(condition, np.ndarray):
        chosen, other = (a, b) if condition else (b, a)
        if isinstance(chosen, (int, float)) and isinstance(other, (np.ndarray, np.generic)):
            return np.full_like(other, chosen)[()]  # a literal adapts to the other operand
        return chosen
    dtypes = [x.dtype for x in (a, b) if isinstance(x, (np.ndarray, np.generic))]
    chosen = np.asarray(np.where(condition, a, b))
    return unwrap(chosen.astype(dtypes[0] if dtypes else np.float32, copy=False))


def ceildiv(a: int, b: int) -> int:
    """`a / b` rounded up, for non-negative index values."""
    return -(-a // b)


def halving_tree(combine: Any, values: Value) -> Value:
    """Combine lanes i and i + n/2 until one is left: the one order of every reduction."""
    while np.size(values) > 1:
        half = values.size // 2
        values = combine(values[:half], values[half:])
    return np.atleast_1d(values)[0]


def reduce_add(values: Value) -> Value:
    """The sum of all lanes."""
    return halving_tree(np.add, values)


def reduce_max(values: Value) -> Value:
    """The largest lane."""
    return halving_tree(maximum, values)


def reduce_min(values: Value) -> Value:
    """The smallest lane."""
    return halving_tree(minimum, values)


def dot4(acc: Value, u: Value, s: Value) -> Value:
    """`acc[i] + sum_j u[4i+j] * s[4i+j]`, exact: i32x16, u8x64, i8x64 -> i32x16."""
    products = u.astype(np.int32) * s.astype(np.int32)
    return acc + products.reshape(-1, 4).sum(axis=1, dtype=np.int32)


def dot4_u7(acc: Value, u: Value, s: Value) -> Value:
    """`dot4` where every u <= 127 is promised: cheaper on CPUs without a u8 * i8 dot."""
    if u.max() > 127:
        raise KernelError(f"dot4_u7 of u = {u.max()}, which is above 127")
    return dot4(acc, u, s)


def dot4_i8(acc: Value, a: Value, b: Value) -> Value:
    """`dot4` of i8x64 with i8x64 where every b >= -127 is promised."""
    if b.min() < -127:
        raise KernelError("dot4_i8 of b = -128, whose negative is no int8")
    return dot4(acc, a, b)


def dot_tile(*places: Any) -> None:
    """`out[..., m, n] = sum_k rows[m, k] * columns[k // 4, n, k % 4]`, exact, by a matrix unit.

    `places` are three buffers, each with its indices: the result, 16 rows of 64 int8, and 16
    columns of 64 int8, four k of a column side by side.
    """
    starts = [i for i, p in enumerate(places) if isinstance(p, Array)]
    out, rows, columns = (places[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True))
    a = rows[0].following(rows[1:], 1024).view(np.int8).reshape(16, 64)
    b = columns[0].following(columns[1:], 1024).view(np.int8)
    b = b.reshape(16, 16, 4).swapaxes(1, 2).reshape(64, 16)
    out[0].array[out[1:]] = a.astype(np.int32) @ b.astype(np.int32)
