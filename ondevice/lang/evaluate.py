"""Index expressions of a Kernel as plain numbers, where its scalars are known."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ondevice.lang import check
from ondevice.lang.kernel_ir import Const, Expr, Kernel, Op, Var

_FOLDS = dict((*check.ARITHMETIC.values(), *check.COMPARISON.values()))


def evaluate(expr: Expr, scalars: Mapping[str, int]) -> int:
    """The value of an index expression without loads."""
    match expr:
        case Const(_, value):
            return int(value)
        case Var(_, name):
            return scalars[name]
        case Op(_, "min" | "max" as name, (a, b)):
            pair = evaluate(a, scalars), evaluate(b, scalars)
            return min(pair) if name == "min" else max(pair)
        case Op(_, "select", (condition, a, b)):
            return evaluate(a if evaluate(condition, scalars) else b, scalars)
        case Op(_, name, (a, b)) if name in _FOLDS:
            return int(_FOLDS[name](evaluate(a, scalars), evaluate(b, scalars)))
    raise ValueError(f"{expr} is not an index expression")


def task_count(kernel: Kernel, scalars: Mapping[str, int]) -> int:
    """Tasks of the kernel's parallel loop for these run-time dims and index parameters."""
    return math.prod(max(0, evaluate(e, scalars)) for e in kernel.extents)
