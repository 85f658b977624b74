"""What each pass makes of a model of one layer, as text to read and to review changes by."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from ondevice.bundle.program_text import print_program
from ondevice.graph.text import print_graph
from ondevice.passes import PASSES

from .models import traced

Golden = Callable[[str, str], None]


@pytest.mark.parametrize("name", [row.name for row in PASSES])
def test_graph_after(name: str, golden: Golden) -> None:
    graph = dict(traced("llama-one-layer").after_each_pass())[name]
    golden(f"{name}.graph", print_graph(graph))


def test_program(golden: Golden) -> None:
    """Without the kernels' hashes: their texts have their own tests."""
    text = print_program(traced("llama-one-layer").program()[0])
    golden("program.txt", re.sub(r"_[0-9a-f]{8} (\d+) [0-9a-f]{64}", r" \1", text))
