"""Each op's reference against a second, independent statement of what it means."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest

from ondevice.dtypes import f16, f32, i8, i32
from ondevice.errors import GraphError
from ondevice.graph.graph import TensorType
from ondevice.graph.kv_pool import kv_type
from ondevice.graph.ops import OPS, op_named

RNG = np.random.default_rng(7)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def test_infer_and_reference_have_one_signature():
    for op in OPS.values():
        infer, reference = inspect.signature(op.infer), inspect.signature(op.reference)
        if op.infer.__name__ != "infer_same":
            assert list(infer.parameters) == list(reference.parameters), op.name
        assert op.reference.__doc__, op.name
        assert not op.state or op.state in op.inputs


def test_elementwise_ops_commute_with_picking_rows():
    """What makes fusion legal: a row of the result needs that row of the operands only."""
    x, y, scale, weight = normal(5, 6), normal(5, 6), normal(5), normal(6)
    rows = np.array([3, 1])
    operands = {
        "add": ((x, y), (x[rows], y[rows])),
        "mul": ((x, y), (x[rows], y[rows])),
        "silu": ((x,), (x[rows],)),
        "add_bias": ((x, weight), (x[rows], weight)),
        "normalize": ((x, scale, weight), (x[rows], scale[rows], weight)),
    }
    assert operands.keys() == {op.name for op in OPS.values() if op.elementwise}
    for name, (whole, part) in operands.items():
        reference = OPS[name].reference
        np.testing.assert_array_equal(reference(*whole)[rows], reference(*part))


def test_rows():
    table = normal(10, 4)
    rows = np.array([2, 2, 9], np.int32)
    for op in ("embed", "select_rows"):
        operands = (rows, table) if op == "embed" else (table, rows)
        result = OPS[op].reference(*operands)
        assert [list(r) for r in result] == [list(table[i]) for i in (2, 2, 9)]


def test_matmul_is_a_sum_over_the_inner_dim():
    x, w = normal(3, 5), normal(4, 5)
    expected = [[sum(float(a) * float(b) for a, b in zip(r, n, strict=True)) for n in w] for r in x]
    np.testing.assert_allclose(OPS["matmul"].reference(x, w), expected, rtol=1e-5, atol=1e-6)


def test_silu_is_finite_at_the_ends():
    x = np.array([-1e30, -200, -1, 0, 1, 200], np.float32)
    expected = [0, 0, -1 / (1 + math.e), 0, 1 / (1 + math.exp(-1)), 200]
    np.testing.assert_allclose(OPS["silu"].reference(x), expected, rtol=1e-6, atol=1e-30)


def test_rmsnorm_is_normalize_of_rms_scale():
    x, weight = normal(3, 8), normal(8)
    scale = OPS["rms_scale"].reference(x, eps=1e-5)
    for s in range(3):
        mean = math.fsum(float(v) ** 2 for v in x[s]) / 8
        assert scale[s] == pytest.approx(1 / math.sqrt(mean + 1e-5), rel=1e-6)
    whole = OPS["rmsnorm"].reference(x, weight, eps=1e-5)
    np.testing.assert_array_equal(whole, OPS["normalize"].reference(x, scale, weight))
    assert whole.dtype == scale.dtype == np.float32


def test_rope_rotates_half_split_pairs():
    heads, head_dim, angle = 2, 4, np.array([0.3, 1.1])
    x = normal(1, heads * head_dim)
    table = np.concatenate([np.cos(angle), np.sin(angle)]).astype(np.float32)[None]
    rotated = OPS["rope"].reference(x, table, heads=heads, head_dim=head_dim)
    pairs = x.reshape(heads, 2, head_dim // 2)
    turned = (pairs[:, 0] + 1j * pairs[:, 1]) * np.exp(1j * angle)  # a rotation of the plane
    expected = np.stack([turned.real, turned.imag], 1).reshape(1, -1)
    np.testing.assert_allclose(rotated, expected, rtol=1e-5, atol=1e-6)


@pytest.fixture
def paged():
    """40 tokens of one conversation and 3 of another in scattered blocks, 2 layers."""
    layers, kv_heads, head_dim = 2, 2, 4
    table = np.array([[5, 1], [3, 0]], np.int32)
    sequence = np.array([0] * 40 + [1] * 3, np.int32)
    positions = np.array([*range(40), *range(3)], np.int32)
    k, v = normal(43, kv_heads * head_dim), normal(43, kv_heads * head_dim)
    kv = np.full((6, layers, 2, kv_heads, head_dim * 32), np.nan, np.float32)
    kv = OPS["kv_write"].reference(kv, k, v, positions, sequence, table, layer=1)
    return kv, k, v, positions, sequence, table


def test_kv_write_lays_keys_out_by_element_and_values_by_token(paged):
    kv, k, v, *_ = paged
    # Token 37 of conversation 0 is token 5 of its second block, which is block 1.
    for g in range(2):
        for d in range(4):
            assert kv[1, 1, 0, g, d * 32 + 5] == k[37, g * 4 + d]
            assert kv[1, 1, 1, g, 5 * 4 + d] == v[37, g * 4 + d]
    assert np.isnan(kv[:, 0]).all(), "the other layer stays as it was"
    assert np.isfinite(kv[:, 1]).sum() == 43 * 2 * 2 * 4


def test_kv_write_leaves_its_input_alone():
    kv = np.zeros((1, 1, 2, 1, 64), np.float32)
    zeros = np.zeros(1, np.int32)
    ones = np.ones((1, 2), np.float32)
    table = np.zeros((1, 1), np.int32)
    assert OPS["kv_write"].reference(kv, ones, ones, zeros, zeros, table, layer=0).sum() == 4
    assert kv.sum() == 0


def test_attention_is_softmax_over_the_own_conversation(paged):
    kv, k, v, positions, sequence, table = paged
    heads, kv_heads, head_dim = 4, 2, 4
    q = normal(43, heads * head_dim)
    shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "scale": 0.5}
    got = OPS["attention"].reference(q, kv, positions, sequence, table, layer=1, **shape)
    for s, h in ((0, 0), (39, 3), (41, 1), (42, 2)):
        own = [t for t in range(43) if sequence[t] == sequence[s] and positions[t] <= positions[s]]
        part = slice(h // 2 * head_dim, (h // 2 + 1) * head_dim)
        query = q[s, h * head_dim : (h + 1) * head_dim].astype(float)
        exps = [math.exp(0.5 * float(query @ k[t, part])) for t in own]
        expected = sum(e * v[t, part].astype(float) for e, t in zip(exps, own, strict=True))
        expected = expected / sum(exps)
        np.testing.assert_allclose(got[s, h * head_dim : (h + 1) * head_dim], expected, rtol=1e-4)


def test_half_precision_cache_rounds_what_it_stores(paged):
    kv, k, v, positions, sequence, table = paged
    half = OPS["kv_write"].reference(
        np.zeros(kv.shape, np.float16), k, v, positions, sequence, table, layer=1
    )
    assert half.dtype == np.float16
    assert half[5, 1, 0, 0, 0] == np.float16(k[0, 0])


def test_int8_cache_keeps_each_head_of_a_token_within_half_a_step(paged):
    _, k, v, positions, sequence, table = paged
    empty = np.zeros([d.evaluate({"P": 6}) for d in kv_type(2, 2, 4, i8).shape], np.int8)
    kv = OPS["kv_write"].reference(empty, k, v, positions, sequence, table, layer=1)
    block, token = table[sequence[37], positions[37] // 32], positions[37] % 32
    for plane, wanted in ((0, k), (1, v)):
        for g in range(2):
            head = wanted[37, g * 4 : g * 4 + 4]
            tile = kv[block, 1, plane, g]
            scale = tile[128 + 4 * token : 132 + 4 * token].view(np.float32)[0]
            assert scale == np.abs(head).max() / np.float32(127)
            first, step = (token * 4, 1) if plane == 0 else (token // 4 * 16 + token % 4, 4)
            codes = tile[first : first + 4 * step : step]
            assert np.abs(codes).max() == 127
            assert np.abs(codes * scale - head).max() <= 0.501 * scale
    assert not kv[:, 0].any(), "the other layer stays as it was"


def test_attention_reads_what_an_int8_cache_stands_for(paged):
    kv, k, v, positions, sequence, table = paged
    empty = np.zeros([d.evaluate({"P": 6}) for d in kv_type(2, 2, 4, i8).shape], np.int8)
    codes = OPS["kv_write"].reference(empty, k, v, positions, sequence, table, layer=1)
    attrs = {"layer": 1, "heads": 4, "kv_heads": 2, "head_dim": 4, "scale": 0.5}
    q, where = normal(len(k), 16), (positions, sequence, table)
    exact, got = (OPS["attention"].reference(q, pool, *where, **attrs) for pool in (kv, codes))
    assert 0 < np.abs(got - exact).max() < 0.05


X = TensorType.of(f32, "S", 8)
ROWS = TensorType.of(i32, "S")
TABLE = TensorType.of(i32, "B", 4)


@pytest.mark.parametrize(
    ("op", "inputs", "attrs", "message"),
    [
        ("matmul", (X, TensorType.of(f32, 4, 7)), (), "inner sizes of matmul: 8 is not 7"),
        ("matmul", (X,), (), r"matmul takes \(x, weight\), not 1 inputs"),
        ("matmul", (TensorType.of(f16, "S", 8), TensorType.of(f32, 4, 8)), (), "plain f32"),
        ("add", (X, TensorType.of(f32, "L", 8)), (), "operand types"),
        ("embed", (X, TensorType.of(f32, 4, 8)), (), "tokens must be i32"),
        ("rms_scale", (X,), (), "lacks the attribute eps"),
        ("rms_scale", (X,), (("eps", 1),), "eps=1 must be float"),
        ("rms_scale", (X,), (("eps", 1e-5), ("epps", 1e-5)), "no attribute 'epps'; did you mean"),
        ("rms_scale", (X,), (("eps", 1e-5), ("eps", 1e-5)), "twice"),
        ("rope", (X, TensorType.of(f32, "S", 4)), (("heads", 4), ("head_dim", 2)), "rope table"),
        (
            "kv_write",
            (kv_type(2, 2, 4), X, X, ROWS, ROWS, TABLE),
            (("layer", 2),),
            "layer 2 does not exist",
        ),
        (
            "kv_write",
            (kv_type(2, 2, 8), X, X, ROWS, ROWS, TABLE),
            (("layer", 0),),
            "features of k: 8 is not 16",
        ),
        (
            "attention",
            (X, kv_type(1, 3, 2), ROWS, ROWS, TABLE),
            (("layer", 0), ("heads", 4), ("kv_heads", 3), ("head_dim", 2), ("scale", 1.0)),
            "cannot share",
        ),
    ],
)
def test_type_rules_refuse(op, inputs, attrs, message):
    with pytest.raises(GraphError, match=message):
        OPS[op].infer_type(inputs, attrs)


def test_unknown_op_names_the_nearest():
    with pytest.raises(GraphError, match="did you mean 'matmul'"):
        op_named("matmull")
