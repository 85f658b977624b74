"""Libraries of models that people use are small: kernels are shared, tables hold each row once."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from ondevice import targets
from ondevice.build import rewrite
from ondevice.checkpoint.open import open_checkpoint
from ondevice.codegen.compile import KernelJobs, compile_kernels, link_model
from ondevice.kernels import LIBRARY
from ondevice.models import family_of
from ondevice.passes.context import Context
from ondevice.passes.schedule import schedule
from ondevice.recipe import load_recipe

MOST_BYTES = 400_000


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("random_checkpoint")


@pytest.fixture(scope="module")
def hollow(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of SmolLM2's shapes whose weights are a hole in a file: nobody reads them."""
    shape = script.PRESETS["smollm2-135m"]
    folder = tmp_path_factory.mktemp("hollow")
    (folder / "config.json").write_text(json.dumps(shape.config()))
    tensors = list(shape.tensors())
    header = script.header(tensors)
    weights = sum(math.prod(size) for _, size in tensors)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + weights * script.BYTES)
    return folder


@pytest.mark.parametrize("scheme", ["int8_g256", "int4_g32"])
@pytest.mark.parametrize("target", ["android-arm64"])
def test_libmodel(target: str, scheme: str, hollow: Path) -> None:
    recipe = load_recipe(str(hollow), target=target, settings=[f"quant.default={scheme}"])
    machine = targets.load(target)
    with open_checkpoint(hollow) as checkpoint:
        family = family_of(checkpoint.architecture)
        planned = rewrite(family, family.parse_config(checkpoint.config), recipe, machine)
    assert planned is not None
    program, kernels = schedule(planned.graph, Context(machine, LIBRARY), planned.frame)
    with KernelJobs(machine) as jobs:
        variants = compile_kernels(program, kernels, jobs)
    size = len(link_model(program, variants, machine).library)
    assert size <= MOST_BYTES
