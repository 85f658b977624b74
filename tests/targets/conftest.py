"""Bundles of stories260K for other machines, each built once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ondevice.build import build
from ondevice.bundle.descriptor import model_symbol
from ondevice.bundle.read import open_bundle
from ondevice.recipe import load_recipe
from ondevice.runtime.engine import Engine
from ondevice.runtime.tokenizer import open_tokenizer

BuildFor = Callable[[str, str], Path]
TOKENS = [1, 403, 407, 261, 378, 432, 383, 286, 261, 376, 298]  # more rows than one tile has
PROMPT = ",".join(map(str, TOKENS))
MOST = 24


@pytest.fixture(scope="session")
def built_for(tmp_path_factory: pytest.TempPathFactory) -> BuildFor:
    """`built_for("android-arm64", "int4_g32")`: the bundle, all matrices in that scheme.

    Caches are of float32 beside weights of f32, of float16 beside int4_g32_sym, else of int8.
    """
    known: dict[tuple[str, str], Path] = {}

    def once(target: str, scheme: str) -> Path:
        if (target, scheme) not in known:
            settings = [f"quant.default={scheme}", f"quant.embedding={scheme}"]
            if scheme == "int4_g32_sym":
                settings.append("kv.dtype=f16")
            recipe = load_recipe("stories260k", target=target, settings=settings)
            out = tmp_path_factory.mktemp("bundles") / f"{target}.bundle"
            known[target, scheme] = build(recipe, out)
        return known[target, scheme]

    return once


Expected = Callable[[str], tuple[list[int], NDArray[np.float32]]]


@pytest.fixture(scope="session")
def expected(built_for: BuildFor) -> Expected:
    """What this machine generates after TOKENS in a scheme, and the logits of TOKENS."""
    known: dict[str, tuple[list[int], NDArray[np.float32]]] = {}

    def once(scheme: str) -> tuple[list[int], NDArray[np.float32]]:
        if scheme not in known:
            with Engine(built_for("host", scheme), threads=2) as engine:
                with engine.conversation() as conversation:
                    tokens = list(conversation.generate_tokens(TOKENS, MOST))
                known[scheme] = tokens, engine.logits(TOKENS)
        return known[scheme]

    return once


def app_arguments(path: Path, directory: Path) -> list[str]:
    """What host.c is told so that it prints `app_output`; it may write to `directory`."""
    bundle = open_bundle(path)
    symbol = model_symbol(bundle.manifest.abi_hash)
    places = bundle.libondevice, bundle.libmodel, symbol, bundle.weights_path
    files = bundle.tokenizer_path, directory / "saved"
    return [*map(str, (*places, *files)), str(MOST), PROMPT]


AppOutput = Callable[[str, str], str]


@pytest.fixture(scope="session")
def app_output(built_for: BuildFor, expected: Expected) -> AppOutput:
    """`app_output("int4_g32", "neon")`: what host.c prints where it computes what we do here."""

    def output(scheme: str, variant: str) -> str:
        tokens, logits = expected(scheme)
        number = 0xCBF29CE484222325
        for byte in logits.tobytes():
            number = (number ^ byte) * 0x100000001B3 % 2**64
        bundle, text = open_bundle(built_for("host", scheme)), "Once upon a time, café"
        tokenizer = open_tokenizer(bundle, bundle.libondevice)
        encoded = tokenizer.encode(text, add_special_tokens=False)
        tokenizer.close()
        rows = " ".join(map(str, tokens)), f"{number:x} {variant}", " ".join(map(str, encoded))
        return "\n".join([*rows, text])

    return output
