"""What a model computes of a system prompt, for a bundle that ships it.

Keys and values have the same bits on every target, so for a phone they are computed here, by a
build of the same recipe for this machine.
"""

from __future__ import annotations

import dataclasses
import tempfile
from datetime import datetime
from itertools import takewhile
from pathlib import Path

from ondevice import targets
from ondevice.build import Parts, build
from ondevice.bundle.descriptor import model_symbol
from ondevice.bundle.kv_file import rebind
from ondevice.bundle.program import KV_BLOCK_TOKENS
from ondevice.bundle.read import open_bundle
from ondevice.bundle.write import WEIGHTS_PATH
from ondevice.errors import RecipeError, RuntimeFailure
from ondevice.recipe import Recipe
from ondevice.runtime.header import Status
from ondevice.runtime.native import Library, NativeEngine, model_descriptor
from ondevice.runtime.tokenizer import Tokenizer

# What may follow a system prompt: as different as can be, so that what they share is the prompt.
_FOLLOWING = ("A", "1", " ")
_DATES = (datetime(2000, 1, 1), datetime(2033, 12, 30))


def write_prompt(recipe: Recipe, parts: Parts, out: Path) -> int:
    """Compute the system prompt of `recipe` and save it to `out`; returns how many tokens ship.

    Only whole KV blocks do. Raises RecipeError where that is nothing, or where the chat template
    has no place for a system prompt.
    """
    if targets.load(recipe.target) == targets.load("host"):
        return _compute(recipe, parts, out)
    with tempfile.TemporaryDirectory(prefix=".twin-", dir=parts.directory) as directory:
        twin = dataclasses.replace(recipe, target="host")
        bundle = open_bundle(
            build(twin, Path(directory) / "twin.bundle", write_prompt=write_prompt)
        )
        assert bundle.prompt_path is not None
        bundle.prompt_path.rename(out)
    rebind(out, parts.abi_hash, parts.identity)
    return bundle.manifest.prompt.tokens


def _compute(recipe: Recipe, parts: Parts, out: Path) -> int:
    runtime = parts.directory / parts.libraries.runtime
    tokens = _shared_tokens(_tokenizer(parts, runtime), recipe.prompt.system, parts)
    tokens = tokens[: len(tokens) // KV_BLOCK_TOKENS * KV_BLOCK_TOKENS]
    if not tokens:
        raise RecipeError(
            f"prompt.system has fewer than {KV_BLOCK_TOKENS} tokens that every conversation starts "
            "with: too few to ship, leave it out"
        )
    engine = NativeEngine(
        Library(runtime),
        model_descriptor(parts.directory / parts.libraries.model, model_symbol(parts.abi_hash)),
        parts.directory / WEIGHTS_PATH,
        kv_blocks=len(tokens) // KV_BLOCK_TOKENS,
    )
    try:
        conversation = engine.conversation()
        try:
            conversation.submit(tokens, 0)
        except RuntimeFailure as error:
            raise RecipeError(f"prompt.system cannot be computed: {error}") from error
        while conversation.read()[0] in (Status.OK, Status.TIMEOUT):
            pass
        with out.open("wb") as file:
            conversation.save(file.fileno())
    finally:
        engine.close()
    return len(tokens)


def _tokenizer(parts: Parts, runtime: Path) -> Tokenizer:
    template = parts.tokenizer.chat_template
    return Tokenizer(
        runtime,
        (parts.directory / parts.tokenizer.file).read_bytes(),
        None if template is None else (parts.directory / template).read_bytes(),
    )


def _shared_tokens(tokenizer: Tokenizer, system: str, parts: Parts) -> list[int]:
    """The first tokens of every conversation with this system prompt, whatever follows, any day."""
    if parts.tokenizer.chat_template is None:
        texts = [tokenizer.encode(system + following) for following in ("", *_FOLLOWING)]
    else:
        texts = [
            _chat_tokens(tokenizer, system, following, now)
            for following in _FOLLOWING
            for now in _DATES
        ]
    same = takewhile(lambda column: len(set(column)) == 1, zip(*texts, strict=False))
    return [column[0] for column in same]


def _chat_tokens(tokenizer: Tokenizer, system: str, user: str, now: datetime) -> list[int]:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    try:
        return tokenizer.chat_tokens(messages, now=now)
    except RuntimeFailure as error:
        raise RecipeError(f"prompt.system cannot be used: {error}") from error
