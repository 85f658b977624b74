"""`engine.chat.completions.create(messages, ...)`, as OpenAI's Python client has it.

    answer = engine.chat.completions.create([{"role": "user", "content": "Hello!"}])
    print(answer.choices[0].message.content)

The conversation of the last answer is kept open as long as no other is opened: a next call whose
messages begin with the same ones computes only what is new.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack, overload

from ondevice.closes import Closes
from ondevice.errors import RuntimeFailure
from ondevice.runtime.completion import (
    AssistantMessage,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    Delta,
    FinishReason,
    Logprobs,
    PromptTokensDetails,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from ondevice.runtime.conversation import Conversation
from ondevice.runtime.generation import Generation
from ondevice.runtime.header import Status
from ondevice.runtime.native import ConversationStats
from ondevice.runtime.request import ChatOptions, ChatRequest, Message, read_request
from ondevice.runtime.sampling import TokenLogprobs

if TYPE_CHECKING:
    from ondevice.runtime.engine import Engine


class Chat:
    """`engine.chat`; its one thing is `completions`."""

    def __init__(self, engine: Engine) -> None:
        self.completions = Completions(engine)


class Completions:
    """Answers to conversations. Threads may call it at the same time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._kept: tuple[Conversation, list[int]] | None = None

    @overload
    def create(
        self,
        messages: Sequence[Message],
        *,
        stream: Literal[False] = False,
        **options: Unpack[ChatOptions],
    ) -> ChatCompletion: ...

    @overload
    def create(
        self,
        messages: Sequence[Message],
        *,
        stream: Literal[True],
        **options: Unpack[ChatOptions],
    ) -> ChatStream: ...

    def create(
        self, messages: Sequence[Message], *, stream: bool = False, **options: Unpack[ChatOptions]
    ) -> ChatCompletion | ChatStream:
        """The model's answer to `messages`; `options` are described at ChatOptions.

        With `stream` the chunks of the answer as they come. Raises TypeError for an unknown
        argument and RuntimeFailure where the messages, a value or the room do not allow it.
        """
        name = self._engine.bundle.manifest.name
        request = read_request(messages, options, self._engine.chat_sampling, name)
        prompt = self._engine.tokenizer.chat_tokens(request.messages, thinking=request.thinking)
        context = self._engine.info.context_tokens
        if len(prompt) > context:
            raise RuntimeFailure(
                f"the messages have {len(prompt)} tokens, the context is {context}; leave some out",
                int(Status.CONTEXT_FULL),
            )
        running = ChatStream(self, request, prompt, name)
        return running if stream else running.complete()

    def take(self, prompt: Sequence[int]) -> Conversation:
        """A conversation that holds a start of `prompt`, but not all of it."""
        with self._lock:
            kept, self._kept = self._kept, None
        if kept is None:
            return self._engine.conversation()
        conversation, tokens = kept
        conversation.rewind(min(_common(tokens, prompt), len(prompt) - 1))
        return conversation

    def put(self, conversation: Conversation, tokens: list[int]) -> None:
        """Keep a conversation at rest that holds `tokens`, if it is the only one open."""
        try:
            alone = self._engine.info.conversations == 1 and conversation.length == len(tokens)
        except RuntimeFailure:  # the engine has been closed
            alone = False
        with self._lock:
            if alone and self._kept is None:
                self._kept = conversation, tokens
                return
        conversation.close()

    def token_text(self, token: int) -> str:
        """What a token of an answer is called in logprobs."""
        return self._engine.tokenizer.decode([token], skip_special_tokens=False, continues=True)

    def release(self) -> None:
        """Close the conversation that is kept for the next call."""
        with self._lock:
            kept, self._kept = self._kept, None
        if kept is not None:
            kept[0].close()


class ChatStream(Closes):
    """The chunks of an answer as they come; close it, or leave its `with` block, to cancel."""

    def __init__(
        self, completions: Completions, request: ChatRequest, prompt: Sequence[int], model: str
    ) -> None:
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.model = model
        self.stats: list[ConversationStats] = []  # of each answer that has ended or was left
        self._completions = completions
        self._request = request
        self._prompt = prompt
        self._conversation: Conversation | None = None  # that `cancel` may cancel
        self._cancelled = False
        self._lock = threading.Lock()
        self._chunks = self._run()
        # The prompt is submitted now, so that what is refused is refused by `create`.
        self._first: ChatCompletionChunk | None = next(self._chunks)

    def __iter__(self) -> Iterator[ChatCompletionChunk]:
        return self

    def __next__(self) -> ChatCompletionChunk:
        first, self._first = self._first, None
        return next(self._chunks) if first is None else first

    def cancel(self) -> None:
        """End the answer within a token, from any thread; its reader gets the rest of it."""
        with self._lock:
            self._cancelled = True
            if self._conversation is not None:
                self._conversation.cancel()

    def close(self) -> None:
        """Cancel what is still to come; may be called twice."""
        self._first = None
        self._chunks.close()

    def complete(self) -> ChatCompletion:
        """Wait for all of it."""
        texts = [""] * self._request.n
        logprobs: list[list[TokenLogprob]] = [[] for _ in texts]
        reasons: list[FinishReason] = ["stop"] * self._request.n
        with self:
            for choice in (choice for chunk in self for choice in chunk.choices):
                texts[choice.index] += choice.delta.content or ""
                logprobs[choice.index] += choice.logprobs.content if choice.logprobs else ()
                reasons[choice.index] = choice.finish_reason or "stop"
        wanted = self._request.sampling.logprobs is not None
        choices = (
            Choice(i, AssistantMessage(text), reason, Logprobs(tuple(probs)) if wanted else None)
            for i, (text, reason, probs) in enumerate(zip(texts, reasons, logprobs, strict=True))
        )
        return ChatCompletion(self.id, self.created, self.model, tuple(choices), self.usage)

    @property
    def usage(self) -> Usage:
        """Tokens of the answers that have come to their end; the prompt counts once."""
        prompt = len(self._prompt)
        generated = sum(stats.generated_tokens for stats in self.stats)
        reused = self.stats[0].reused_tokens if self.stats else 0
        return Usage(prompt, generated, prompt + generated, PromptTokensDetails(reused))

    def _run(self) -> Generator[ChatCompletionChunk, None, None]:
        for index in range(self._request.n):
            if not self._cancelled:
                yield from self._answer(index)
        if self._request.include_usage:
            yield ChatCompletionChunk(self.id, self.created, self.model, (), self.usage)

    def _answer(self, index: int) -> Iterator[ChatCompletionChunk]:
        conversation, generation = self._begin(index)
        self._conversation = conversation
        try:
            yield self._chunk(index, Delta("assistant", ""))
            told = 0
            with closing(generation.text()) as pieces:
                for piece in pieces:
                    logprobs = self._logprobs(generation.logprobs[told:])
                    told = len(generation.logprobs)
                    yield self._chunk(index, Delta(content=piece), logprobs=logprobs)
            reason: FinishReason = "stop" if generation.ending is Status.STOP else "length"
            logprobs = self._logprobs(generation.logprobs[told:])
            yield self._chunk(index, Delta(), reason, logprobs)
        finally:
            with self._lock:
                self._conversation = None
            with suppress(RuntimeFailure):  # closed meanwhile
                self.stats.append(conversation.stats)
            self._completions.put(conversation, [*self._prompt, *generation.generated])

    def _begin(self, index: int) -> tuple[Conversation, Generation]:
        request, conversation = self._request, self._completions.take(self._prompt)
        sampling = replace(request.sampling, seed=(request.sampling.seed + index) % 2**64)
        try:
            new = self._prompt[conversation.length :]
            return conversation, conversation.begin(
                new, request.max_tokens, sampling, continues=False
            )
        except BaseException:
            conversation.close()
            raise

    def _chunk(
        self,
        index: int,
        delta: Delta,
        reason: FinishReason | None = None,
        logprobs: Logprobs | None = None,
    ) -> ChatCompletionChunk:
        choice = ChunkChoice(index, delta, reason, logprobs)
        return ChatCompletionChunk(self.id, self.created, self.model, (choice,))

    def _logprobs(self, tokens: Sequence[TokenLogprobs]) -> Logprobs | None:
        if not tokens:
            return None
        return Logprobs(
            tuple(
                TokenLogprob(
                    **self._named(entry.token),
                    logprob=entry.logprob,
                    top_logprobs=tuple(
                        TopLogprob(**self._named(token), logprob=value)
                        for token, value in entry.top
                    ),
                )
                for entry in tokens
            )
        )

    def _named(self, token: int) -> _Named:
        text = self._completions.token_text(token)
        whole = "\N{REPLACEMENT CHARACTER}" not in text
        return {"token": text, "bytes": tuple(text.encode()) if whole else None}


class _Named(TypedDict):
    token: str
    bytes: tuple[int, ...] | None


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the common start."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))
