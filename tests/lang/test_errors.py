"""What is outside the language, or wrong, is refused with file, line, source and caret."""

from __future__ import annotations

import numpy as np
import pytest

from ondevice.errors import KernelError
from ondevice.lang import (
    Chain,
    Inline,
    cast,
    ceildiv,
    dot4_i8,
    dot4_u7,
    f32,
    i8,
    i32,
    index,
    inline,
    kernel,
    load,
    parallel,
    scratch,
    store,
)
from ondevice.lang.specialize import specialize

BODIES = {
    "while": ("while x[0] > 0.0:\n    y[0] = 1.0", "not supported in kernels: while", "while"),
    "comprehension": ("y[0] = [1.0 for k in range(3)]", "list comprehension", "[1.0"),
    "attribute": ("y[0] = np.exp(x[0])", "attribute access", "np.exp"),
    "lambda": ("f = lambda v: v", "lambda", "lambda"),
    "try": ("try:\n    y[0] = 1.0\nfinally:\n    pass", "try", "try"),
    "power": ("y[0] = x[0] ** 2", "not supported in kernels: **", "x[0] **"),
    "string": ("y[0] = 'a'", "str literal", "'a'"),
    "slice": ("y[0] = x[0:4]", "slice", "0:4"),
    "break": ("for k in range(3):\n    break", "break", "break"),
    "annotation": ("a: f32 = 1.0", "annotated assignment", "a: f32"),
    "chained": ("y[0] = 1.0 if 0.0 < x[0] < 1.0 else 0.0", "chained comparisons", "0.0 <"),
    "pruned": ("if False:\n    del y", "not supported in kernels: delete", "del"),
    "walrus": ("y[0] = (a := 1.0)", ":=", "a :="),
    "tuple": ("a, b = x[0], x[1]", "not supported", "a, b"),
    "unknown name": ("y[0] = laod(x, 0)", "unknown name 'laod'; did you mean 'load'?", "laod"),
    "mixed dtypes": ("y[0] = x[0] + n[0]", "'+' of f32 and i32", "x[0] + n[0]"),
    "mixed lanes": ("y[0] = x[0] * load(x, 0)", "'*' of f32 and f32x16", "x[0] *"),
    "index and int": ("y[0] = cast(f32, t + n[0])", "'+' of index and i32", "t + n"),
    "float division": ("n[0] = n[0] / 2", "'/' is not defined on i32", "n[0] / 2"),
    "integer fma": ("n[0] = fma(n[0], n[0], 1)", "fma of i32", "fma"),
    "half arithmetic": ("h[0] = h[0] + h[1]", "cast it to f32", "h[0] + h[1]"),
    "vector condition": ("if load(x, 0) < 1.0:\n    y[0] = 1.0", "use select", "if load"),
    "int condition": ("if n[0]:\n    y[0] = 1.0", "must be a scalar bool", "if n"),
    "wrong store": ("y[0] = n[0]", "i32 where f32 is wanted", "y[0]"),
    "vector store": ("store(n, 0, load(x, 0))", "a store of f32x16 into n", "store"),
    "rank": ("y[0] = x[0, 1]", "has 1 dims, not 2", "x[0, 1]"),
    "float index": ("y[0] = x[1.0]", "the float 1.0 cannot become index", "x[1.0]"),
    "loaded index": ("y[0] = x[n[0]]", "i32 where index is wanted", "x[n[0]]"),
    "static range": ("y[0] = w[8]", "index 0 of w is 8, outside 0:8", "w[8]"),
    "static vector": ("store(y, 0, load(w, 0))", "outside 0:8", "load(w"),
    "negative": ("y[0] = x[-1]", "is -1, outside", "x[-1]"),
    "lanes": ("store(y, 0, load(x, 0, lanes=12))", "power of two", "load"),
    "retyped": ("a = x[0]\na = n[0]", "i32 where f32 is wanted", "a = n"),
    "retyped lanes": ("a = x[0]\na = vec(a, 4)", "f32x4 where f32 is wanted", "a = vec"),
    "local": ("if x[0] > 0.0:\n    a = x[1]\ny[0] = a", "unknown name 'a'", "a"),
    "loop local": ("for k in range(2):\n    a = x[k]\ny[0] = a", "unknown name 'a'", "a"),
    "loop variable": ("for k in range(2):\n    k = 1", "k cannot be assigned", "k = 1"),
    "hidden": ("for t in range(2):\n    y[0] = 1.0", "hides another name", "t in"),
    "dimension": ("N = 3", "N cannot be assigned", "N = 3"),
    "runtime unroll": ("for k in unroll(t):\n    y[0] = 1.0", "compile-time integer", "for k"),
    "runtime registers": ("a = registers(0.0, 2)\ny[0] = a[t]", "compile-time integer", "a[t]"),
    "registers range": ("a = registers(0.0, 2)\ny[0] = a[2]", "out of range", "a[2]"),
    "runtime scratch": ("a = scratch(f32, t)", "compile-time integer", "a = scratch"),
    "inner parallel": ("for k in parallel(2):\n    y[0] = 1.0", "exactly once", "for k"),
    "step": ("for k in range(4, 0, -1):\n    y[0] = 1.0", "must be positive", "for k"),
    "return": ("return 1.0", "return is only the last statement", "return"),
    "argument count": ("y[0] = fma(x[0], x[1])", "fma: missing a required argument", "fma"),
    "too many": ("y[0] = min(x[0], x[1], x[2])", "too many positional", "min"),
    "dead value": ("min(x[0], x[1])", "result of min is not used", "min"),
    "keyword": ("store(y, 0, load(x, 0, width=4))", "unknown keyword 'width'", "4"),
    "not a dtype": ("y[0] = cast(x, n[0])", "element type", "cast"),
    "no cast": ("h[0] = cast(f16, n[0])", "go through f32", "cast"),
    "index vector": ("store(y, 0, vec(t, 4))", "vec of an index", "vec"),
    "dot": ("store(y, 0, dot4(vec(0, 16), load(b, 0, lanes=64), load(b, 0, lanes=64)))",
            "u8x64 where i8x64", "dot4"),
    "dot u7": ("store(y, 0, dot4_u7(vec(0, 16), x[0], x[0]))", "f32 where u8x64", "dot4_u7"),
    "literal range": ("b[0] = b[0] + 256", "256 does not fit in u8", "b[0] + 256"),
    "shift": ("n[0] = n[0] << 32", "shift by 32", "n[0] <<"),
    "zero": ("y[0] = x[t % 0]", "'%' by zero", "t % 0"),
    "untyped start": ("a = 0.1\na += x[0]", "needs a typed start: cast(f32, 0.1)", "a = 0.1"),
    "inline storing": ("y[0] = x[0] + put(y, 1.0)", "call it in a statement of its own", "put"),
    "inline count": ("y[0] = put(y)", "put takes 2 arguments, not 1", "put"),
    "recursion": ("y[0] = forever(1.0)", "recursion", None),
    "no value": ("a = nothing(y)", "returns nothing", "a = nothing"),
    "buffer value": ("y[0] = x", "a value is wanted", "x"),
    "call": ("y[0] = x(0)", "only intrinsics", "x(0)"),
}  # fmt: skip


@inline
def put(y: f32[N], value):
    y[1] = value
    return value


@inline
def nothing(y: f32[N]):
    y[1] = 1.0


@inline
def forever(x):
    return forever(x)


def write_kernel(tmp_path, body):
    """Import a kernel with this body from a file of its own."""
    lines = "\n".join("        " + line for line in body.split("\n"))
    text = (
        "from __future__ import annotations\n"
        "def wrong(x: f32[N], y: f32[N], n: i32[N], h: f16[N], b: u8[N], w: f32[8]):\n"
        f"    for t in parallel(N):\n{lines}\n"
    )
    path = tmp_path / "wrong.py"
    path.write_text(text)
    names = dict(globals())
    exec(compile(text, str(path), "exec"), names)
    return path, text.split("\n"), kernel(names["wrong"])


@pytest.mark.parametrize("name", BODIES)
def test_refused_with_a_caret(name, tmp_path):
    body, message, caret = BODIES[name]
    path, lines, function = write_kernel(tmp_path, body)
    with pytest.raises(KernelError) as caught:
        specialize(function, {}, {})
    first, source, mark = str(caught.value).split("\n")
    assert message in first
    if caret is None:
        return
    file, number, _ = first.split(":", 2)
    assert file == str(path)
    assert source == lines[int(number) - 1]
    assert source[mark.index("^") :].startswith(caret)


def test_a_wrong_kernel_reads_well():
    @kernel
    def broken(x: f32[N], y: i32[N]):
        for n in parallel(N):
            y[n] = x[n] + y[n]

    with pytest.raises(KernelError) as caught:
        specialize(broken, {}, {})
    message = str(caught.value)
    assert "test_errors.py:" in message
    assert message.endswith(
        ": '+' of f32 and i32; use cast or vec\n"
        "            y[n] = x[n] + y[n]\n"
        "                   ^"
    )


@kernel
def holey(x: f32[N], y: f32[N], *, f: Inline, rows: int):
    for n in parallel(ceildiv(N, rows)):
        y[n] = f(x[n], n)


@inline
def needs_three(a, b, c):
    return a


@pytest.mark.parametrize(
    "dims, constants, message",
    [
        ({}, {"f": Chain()}, "'rows' is missing"),
        ({}, {"f": Chain(), "rows": 2.5}, "rows must be int"),
        ({}, {"f": Chain(), "rows": True}, "rows must be int"),
        ({}, {"f": needs_three, "rows": 1}, "f must be Inline"),
        ({}, {"f": Chain(), "rows": 1, "row": 1}, "unknown constant 'row'; did you mean 'rows'?"),
        ({"M": 3}, {"f": Chain(), "rows": 1}, "unknown dim 'M'"),
        ({"N": 0}, {"f": Chain(), "rows": 1}, "not a positive size"),
        ({"N": "N"}, {"f": Chain(), "rows": 1}, "not a positive size"),
        ({}, {"f": Chain((needs_three,)), "rows": 1}, "takes 3 values, the hole gives 2"),
    ],
)
def test_wrong_specializations(dims, constants, message):
    with pytest.raises(KernelError, match=message.replace("?", r"\?")):
        specialize(holey, dims, constants)


def test_wrong_signatures():
    def no_note(x):
        pass

    def vararg(x: f32[N], *rest):
        pass

    def kind(x: f32[N], *, rows: str):
        pass

    def dims(x: f32[N + 1]):
        pass

    for function, message in [
        (no_note, "x needs dtype"),
        (vararg, "only plain parameters"),
        (kind, "rows must be one of int"),
        (dims, "a dimension is a name"),
    ]:
        with pytest.raises(KernelError, match=message):
            specialize(kernel(function), {}, {})


# --- the plain-Python run ------------------------------------------------------------------------


@kernel
def pick(x: f32[N], y: f32[M], where: i32[M], lanes: index):
    for m in parallel(M):
        place = index(where[m])
        y[m] = x[place]
        if lanes > 1:
            store(y, 0, load(x, place, lanes=4))


@pytest.mark.parametrize("place, lanes", [(-1, 1), (8, 1), (5, 4), (-2, 4)])
def test_reference_refuses_indices_out_of_range(place, lanes):
    x, y = np.zeros(8, np.float32), np.zeros(4, np.float32)
    pick(x, y, np.full(4, 4, np.int32), lanes)
    with pytest.raises(KernelError, match=r"x: index 0 is .*outside 0:8"):
        pick(x, y, np.full(4, place, np.int32), lanes)


def test_reference_checks_its_arguments():
    x, y, where = np.zeros(8, np.float32), np.zeros(4, np.float32), np.zeros(4, np.int32)
    with pytest.raises(KernelError, match="dimension M is 3, elsewhere 4"):
        pick(x, y, where[:3], 1)
    with pytest.raises(KernelError, match="x is float64, not f32"):
        pick(x.astype(np.float64), y, where, 1)
    with pytest.raises(KernelError, match="takes 4 arguments"):
        pick(x, y, where)
    with pytest.raises(KernelError, match="unknown 'lane'"):
        pick(x, y, where, 1, lane=2)
    with pytest.raises(KernelError, match="has 2 dims"):
        pick(x.reshape(2, 4), y, where, 1)


def test_reference_notices_broken_promises():
    full = np.full(64, 128, np.uint8)
    with pytest.raises(KernelError, match="above 127"):
        dot4_u7(np.zeros(16, np.int32), full, full.view(np.int8))
    with pytest.raises(KernelError, match="whose negative"):
        dot4_i8(np.zeros(16, np.int32), full.view(np.int8), full.view(np.int8))
    with pytest.raises(KernelError, match="out of range"):
        cast(i8, np.float32(128))
    assert cast(i8, np.float32(127.9)) == 127


def test_scratch_is_poisoned_for_each_task():
    @kernel
    def leaky(y: f32[N]):
        xs = scratch(f32, 4)
        for n in parallel(N):
            if n == 0:
                xs[0] = 1.0
            y[n] = xs[0]

    y = np.zeros(2, np.float32)
    leaky(y)
    assert y[0] == 1.0 and np.isnan(y[1])
