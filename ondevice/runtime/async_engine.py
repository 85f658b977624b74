"""The engine for asyncio: the same calls, with `await` and `async for`.

    async with AsyncEngine("chat.bundle") as engine:
        stream = await engine.chat.completions.create(messages, stream=True)
        async for chunk in stream:
            print(chunk.choices[0].delta.content or "", end="")

The runtime generates in threads of its own; here a thread per answer waits for it, so that the
event loop never does. Cancelling a task cancels the answer within one token.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar, Unpack, cast, overload

from ondevice.runtime.chat import ChatStream
from ondevice.runtime.completion import ChatCompletion, ChatCompletionChunk
from ondevice.runtime.conversation import Conversation, Prompt
from ondevice.runtime.engine import Engine
from ondevice.runtime.request import ChatOptions, Message
from ondevice.runtime.sampling import GREEDY, Sampling

T = TypeVar("T")
_END = object()
_THREADS = 256  # at most; they are started when needed, and only wait


class AsyncEngine:
    """`Engine` for asyncio; takes the same arguments. `engine` is the one behind it."""

    def __init__(self, path: str | PathLike[str], **options: Any) -> None:
        self.engine = Engine(path, **options)
        self.tokenizer = self.engine.tokenizer
        self.chat = AsyncChat(self.engine, _Waiter())

    def generate(
        self, prompt: Prompt, max_tokens: int | None = None, sampling: Sampling = GREEDY
    ) -> AsyncStream[str]:
        """`Engine.generate`, to be read with `async for`."""
        opened: list[Conversation] = []

        def pieces() -> Iterator[str]:
            with self.engine.conversation() as conversation:
                opened.append(conversation)
                yield from conversation.generate(prompt, max_tokens, sampling)

        def cancel() -> None:
            for conversation in opened:
                conversation.cancel()

        return AsyncStream(self.chat.completions.waiter, pieces(), cancel)

    async def close(self) -> None:
        """`Engine.close`; may be called twice."""
        await self.chat.completions.waiter.wait(self.engine.close)

    async def __aenter__(self) -> AsyncEngine:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


class AsyncChat:
    """`engine.chat`; its one thing is `completions`."""

    def __init__(self, engine: Engine, waiter: _Waiter) -> None:
        self.completions = AsyncCompletions(engine, waiter)


class AsyncCompletions:
    """`Completions` for asyncio."""

    def __init__(self, engine: Engine, waiter: _Waiter) -> None:
        self._create = engine.chat.completions.create
        self.waiter = waiter

    @overload
    async def create(
        self,
        messages: Sequence[Message],
        *,
        stream: Literal[False] = False,
        **options: Unpack[ChatOptions],
    ) -> ChatCompletion: ...

    @overload
    async def create(
        self,
        messages: Sequence[Message],
        *,
        stream: Literal[True],
        **options: Unpack[ChatOptions],
    ) -> AsyncStream[ChatCompletionChunk]: ...

    async def create(
        self, messages: Sequence[Message], *, stream: bool = False, **options: Unpack[ChatOptions]
    ) -> ChatCompletion | AsyncStream[ChatCompletionChunk]:
        """`Completions.create`; with `stream`, await it and read the result with `async for`."""

        def begin() -> ChatStream:
            return self._create(messages, stream=True, **options)

        running = await self.waiter.wait(begin)
        if stream:
            return AsyncStream(self.waiter, running, running.cancel)
        return await self.waiter.wait(running.complete, running.cancel)


class AsyncStream(AsyncIterator[T], Generic[T]):
    """An answer as it comes; `aclose`, or leaving an `async with` block, cancels it."""

    def __init__(self, waiter: _Waiter, items: Iterator[T], cancel: Callable[[], None]) -> None:
        self._waiter = waiter
        self._items = items
        self._cancel = cancel

    def __aiter__(self) -> AsyncStream[T]:
        return self

    async def __anext__(self) -> T:
        item = await self._waiter.wait(lambda: next(self._items, _END), self._cancel)
        if item is _END:
            raise StopAsyncIteration
        return cast(T, item)

    async def aclose(self) -> None:
        """Cancel what is still to come; may be called twice."""
        close: Callable[[], None] = self._items.close  # type: ignore[attr-defined]
        await self._waiter.wait(close)

    async def __aenter__(self) -> AsyncStream[T]:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


class _Waiter:
    """Threads in which calls wait for the runtime."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="ondevice")

    async def wait(self, call: Callable[[], T], cancel: Callable[[], None] | None = None) -> T:
        """The result of `call()`; where the task is cancelled, `cancel()` makes it return soon."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, call)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if cancel is not None:
                cancel()
            await asyncio.wait([future])
            raise
