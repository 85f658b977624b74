"""The launch table: every node runs once, in an order and in memory that keep its inputs."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ondevice.bundle.program import Space
from ondevice.bundle.program_text import parse_program, print_program
from ondevice.dims import Extent
from ondevice.errors import BundleError
from ondevice.passes.plan_memory import larger, size_bytes

from .elements import tasks
from .models import MODELS, Model, random_models, step_inputs, traced
from .simulate import Access, Place, between_barriers, chains, running

STEPS = [
    {"S": s, "L": min(l, s), "B": 2, "P": 9, "T": t}
    for s, l in ((1, 1), (2, 2), (4, 0), (5, 5), (64, 1), (64, 8))
    for t in (1, 2)
]


def check_each_node_runs_once(model: Model) -> None:
    graph, (program, kernels) = model.planned(), model.program()
    for sizes in STEPS:
        ran = [one.launch.source for one in running(program, kernels, sizes)]
        in_parts = sizes["S"] <= 8 and sizes["T"] > 1
        rows = {n.output.name: n.output.type.shape[0].evaluate(sizes) for n in graph.nodes}
        wanted = [
            n
            for n in graph.nodes
            if rows[n.output.name] and (n.op != "attention_parts" or in_parts)
        ]
        assert ran == [node.output.name for node in wanted]


def check_order_between_barriers_is_free(model: Model) -> None:
    """But for that of launches in a chain, and of what each worker computes for itself."""
    program, kernels = model.program()
    for sizes in STEPS:
        for group in between_barriers(running(program, kernels, sizes)):
            for one, other in itertools.combinations(chains(group), 2):
                for a, b in itertools.product(one, other):
                    own = a.own & b.reads if a.launch.each else frozenset()
                    free = Access(a.launch, a.reads, a.writes - own)
                    assert not free.conflicts(b), (a.launch.source, b.launch.source)


def check_own_results_are_there(model: Model) -> None:
    """A worker computes for itself, in the same phase, what it reads of its own memory."""
    program, kernels = model.program()
    for sizes in STEPS:
        for group in between_barriers(running(program, kernels, sizes)):
            there: set[Place] = set()
            for one in group:
                assert one.launch.each == bool(one.own) == (one.own == one.writes)
                assert {p for p in one.reads if p[0] == Space.WORKER} <= there
                assert not one.launch.each or not one.launch.chained
                assert not one.own & there
                there |= one.own


def check_chains_depend_task_by_task(model: Model) -> None:
    """Tasks of different numbers never touch the same bytes, but where both only read."""
    program, kernels = model.program()
    for sizes in (row for row in STEPS if row["S"] <= 5):
        inputs = step_inputs(model.graph)
        inputs["logit_rows"] = np.arange(sizes["L"]) % sizes["S"]
        for chain in filter(lambda c: len(c) > 1, chains(running(program, kernels, sizes))):
            for variant in range(len(kernels[0])):
                touched = [
                    list(tasks(kernels[one.launch.kernel][variant], one.launch, sizes, inputs))
                    for one in chain
                ]
                for left, right in itertools.combinations(touched, 2):
                    for (i, a), (j, b) in itertools.product(enumerate(left), enumerate(right)):
                        assert i == j or not a.conflicts(b), chain[1].launch.source


def check_values_live_until_read(model: Model, disabled: tuple[str, ...] = ()) -> None:
    """Follows which value each slot holds: a launch must find its inputs, not their successors."""
    graph, (program, kernels) = model.planned(disabled), model.program(disabled)
    nodes, storage = {n.output.name: n for n in graph.nodes}, dict(graph.storage)
    for sizes in STEPS:
        held: dict[Place, str] = {}
        for one in running(program, kernels, sizes):
            node = nodes[one.launch.source]
            inputs = {name for name in node.reads() if name in storage}
            read = [held[p] for p in one.reads if p[0] in (Space.ARENA, Space.WORKER)]
            if node.op == "attention_joined":  # from the parts or from the queries
                assert read and set(read) <= inputs, node.output.name
            else:
                assert sorted(read) == sorted(inputs), node.output.name
            for written in (p for p in one.writes if p[0] in (Space.ARENA, Space.WORKER)):
                assert written not in one.reads, f"{node.output.name} overwrites its own input"
                held[written] = node.output.name


def check_slots_are_large_enough(model: Model) -> None:
    """In small steps, where a tile that is not full counts, and in large ones."""
    graph, (program, _) = model.planned(), model.program()
    types = graph.types()
    large = [{"S": s, "L": l, "B": 2, "P": 9} for s, l in ((16, 16), (17, 3), (512, 64))]
    for (name, slot), sizes in itertools.product(graph.storage, STEPS + large):
        needed = size_bytes(types[name]).evaluate(sizes)
        assert needed <= program.slots[slot].size_bytes.evaluate(sizes), name


CHECKS = [
    check_each_node_runs_once,
    check_order_between_barriers_is_free,
    check_own_results_are_there,
    check_values_live_until_read,
    check_slots_are_large_enough,
]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", MODELS)
def test_models(name: str, check) -> None:
    check(traced(name))


@pytest.mark.parametrize("check", CHECKS)
def test_random_graphs(check) -> None:
    @settings(max_examples=40, deadline=None)
    @given(random_models())
    def holds(model: Model) -> None:
        check(model)

    holds()


@pytest.mark.parametrize("name", ["llama", "qwen2-int8"])
def test_chains_depend_task_by_task(name: str) -> None:
    check_chains_depend_task_by_task(traced(name))


@settings(max_examples=8, deadline=None)
@given(random_models())
def test_chains_of_random_graphs_depend_task_by_task(model: Model) -> None:
    check_chains_depend_task_by_task(model)


def test_a_slot_for_each_value_holds_them_too() -> None:
    check_values_live_until_read(traced("llama"), disabled=("plan_memory",))


@pytest.mark.parametrize("name", ["llama", "llama-biases", "qwen2"])
def test_memory_is_shared_as_far_as_it_can_be(name: str) -> None:
    """As many slots as values at once; those counted in S and in L grow apart and share none."""
    model = traced(name)
    graph, (program, kernels) = model.planned(), model.program()
    rows = {value.name: str(value.type.shape[0]) for value in graph.values()}
    nodes = {node.output.name: node for node in graph.nodes}
    most = Counter[str]()
    for sizes in STEPS:
        phases = between_barriers(running(program, kernels, sizes))
        ran = [[nodes[one.launch.source] for one in phase] for phase in phases]
        written = {node.output.name: i for i, phase in enumerate(ran) for node in phase}
        read = {value: i for i, phase in enumerate(ran) for node in phase for value in node.reads()}
        for i in range(len(ran)):
            stored = (name for name, _ in graph.storage if name in written)
            held = Counter(rows[v] for v in stored if written[v] <= i <= read.get(v, written[v]))
            most |= held
    assert Counter(rows[slot.name] for slot in program.slots) == most


def test_layers_share_kernels() -> None:
    one, two = (traced(name).program()[0] for name in ("llama-one-layer", "llama"))
    assert len(one.kernels) == len(two.kernels)
    assert len(one.launches) < len(two.launches)


@pytest.mark.parametrize("name", MODELS)
def test_text_parses_back(name: str) -> None:
    program, _ = traced(name).program()
    assert parse_program(print_program(program)) == program


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("program tiny", "programme tiny"),
        ("1 heads 6 f32", "1 heads 6 f31"),
        ("step:tokens+0", "step:tockens+0"),
        ("step:tokens+0", "stop:tokens+0"),
        ("tasks S by", "tasks Q by"),
        ("slot 48*L", "slot 48*l"),
        ("launch ", "lunch "),
    ],
)
def test_damaged_text_names_the_line(old: str, new: str) -> None:
    text = print_program(traced("llama").program()[0])
    assert old in text
    line = text[: text.index(old)].count("\n") + 1
    with pytest.raises(BundleError, match=f"program text, line {line}: "):
        parse_program(text.replace(old, new, 1))


def test_text_that_goes_on_after_its_end() -> None:
    text = print_program(traced("llama").program()[0])
    with pytest.raises(BundleError, match="a line that no program has"):
        parse_program(text + "slot 4 # late\n")


SLOPES = st.integers(0, 5000)


@given(SLOPES, SLOPES, SLOPES, SLOPES)
def test_a_slot_holds_its_values_at_every_size_of_a_step(a: int, b: int, c: int, d: int) -> None:
    """A value that is larger in small steps may be the smaller one in large steps."""
    one, other = Extent.of("S") * a + b, Extent.of("S") * c + d
    for rows in (1, 16, 512):
        needed = max(one.evaluate({"S": rows}), other.evaluate({"S": rows}))
        assert larger(one, other).evaluate({"S": rows}) >= needed


def test_a_layer_has_few_barriers() -> None:
    """Behind them: qkv, attention, o, gate and up, down; what stands before a product is computed
    by each worker if it is one row, else it needs a barrier too."""
    program, _ = traced("qwen2-int8").program()
    decode, deep, prompt = (
        {"S": s, "L": 1, "B": 1, "P": 9, "T": t} for s, t in ((1, 1), (1, 2), (64, 1))
    )
    assert program.barriers(decode)[1] <= 5
    assert program.barriers(deep)[1] <= 7
    assert program.barriers(prompt)[1] <= 10
    alone = traced("qwen2-int8").program(("schedule",))[0]
    assert alone.barriers(decode)[0] == len(alone.running(decode))
