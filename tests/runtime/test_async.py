"""The engine for asyncio says what the engine says, and cancelled tasks stop it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import ondevice
from ondevice.errors import RuntimeFailure
from ondevice.runtime.async_engine import AsyncEngine

MESSAGES = [{"role": "user", "content": "Tell me a story about a dog."}]
OPTIONS: dict[str, Any] = {"max_tokens": 24, "temperature": 0}


def run(bundle: Path, work: Callable[[AsyncEngine], Awaitable[None]]) -> None:
    async def main() -> None:
        async with ondevice.load_async(bundle, threads=2) as engine:
            await work(engine)

    asyncio.run(main())


def test_it_says_the_same(chat_bundle: Path) -> None:
    async def work(engine: AsyncEngine) -> None:
        expected = engine.engine.chat.completions.create(MESSAGES, **OPTIONS)
        content = expected.choices[0].message.content
        completion = await engine.chat.completions.create(MESSAGES, **OPTIONS)
        assert completion.choices == expected.choices
        stream = await engine.chat.completions.create(MESSAGES, stream=True, **OPTIONS)
        deltas = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(deltas) == content
        text = "".join([piece async for piece in engine.generate("Once", 20)])
        assert text == "".join(engine.engine.generate("Once", 20))

    run(chat_bundle, work)


def test_answers_at_once_are_those_one_by_one(chat_bundle: Path) -> None:
    async def work(engine: AsyncEngine) -> None:
        async def ask(i: int) -> str:
            messages = [{"role": "user", "content": f"Story {i}"}]
            answer = await engine.chat.completions.create(messages, **OPTIONS)
            return answer.choices[0].message.content

        alone = [await ask(i) for i in range(10)]
        assert await asyncio.gather(*map(ask, range(10))) == alone

    run(chat_bundle, work)


def test_a_cancelled_task_ends_its_answer(chat_bundle: Path) -> None:
    async def work(engine: AsyncEngine) -> None:
        async def read() -> None:
            async for _ in await engine.chat.completions.create(MESSAGES, stream=True):
                await asyncio.sleep(60)

        async def wait() -> None:
            # Tokens that end nothing: only the cancellation does.
            await engine.chat.completions.create(MESSAGES, n=1000)

        for job in (read, wait):
            task = asyncio.create_task(job())
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        answer = await engine.chat.completions.create(MESSAGES, **OPTIONS)
        assert answer.choices[0].finish_reason == "length"

    run(chat_bundle, work)


def test_leaving_a_stream(chat_bundle: Path) -> None:
    async def work(engine: AsyncEngine) -> None:
        async with engine.generate("Once") as pieces:
            await anext(pieces)
        assert engine.engine.info.conversations == 0
        await pieces.aclose()
        assert [piece async for piece in pieces] == []

    run(chat_bundle, work)


def test_errors_arrive(chat_bundle: Path) -> None:
    async def work(engine: AsyncEngine) -> None:
        with pytest.raises(RuntimeFailure, match="role boss"):
            await engine.chat.completions.create([{"role": "boss", "content": ""}], stream=True)
        with pytest.raises(TypeError, match="no argument 'max_token'"):
            await engine.chat.completions.create(MESSAGES, max_token=1)
        await engine.close()
        await engine.close()
        with pytest.raises(RuntimeFailure, match="has been closed"):
            await engine.chat.completions.create(MESSAGES)

    run(chat_bundle, work)
