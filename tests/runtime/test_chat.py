"""`chat.completions.create`: OpenAI's shapes, the model's defaults, nothing computed twice."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ondevice
from ondevice.errors import OndeviceError, RuntimeFailure
from ondevice.runtime.engine import Engine
from ondevice.runtime.header import Status
from ondevice.runtime.sampling import Sampling

FIRST = {"role": "user", "content": "Tell me a story about a dog."}
MESSAGES = [FIRST]


@pytest.fixture(scope="module")
def shared(chat_bundle: Path) -> Iterator[Engine]:
    with ondevice.load(chat_bundle, threads=2) as engine:
        yield engine


@pytest.fixture
def engine(shared: Engine) -> Engine:
    """With nothing kept from the test before."""
    shared.chat.completions.release()
    assert shared.info.conversations == 0
    return shared


def ask(engine: Engine, messages: list[dict[str, str]] = MESSAGES, **options: Any) -> Any:
    options = {"max_tokens": 24, "temperature": 0} | options
    return engine.chat.completions.create(messages, **options)


def answer(engine: Engine, messages: list[dict[str, str]] = MESSAGES, **options: Any) -> str:
    return str(ask(engine, messages, **options).choices[0].message.content)


# ---- shapes ----


def test_a_completion_has_the_fields_of_the_api(engine: Engine) -> None:
    table = ask(engine).to_dict()
    assert set(table) == {"id", "object", "created", "model", "choices", "usage"}
    assert table["id"].startswith("chatcmpl-") and table["object"] == "chat.completion"
    assert table["model"] == "stories260k"
    (choice,) = table["choices"]
    content = choice["message"].pop("content")
    assert content and "</s>" not in content
    assert choice == {
        "index": 0,
        "message": {"role": "assistant"},
        "finish_reason": "length",
        "logprobs": None,
    }
    prompt = len(engine.tokenizer.chat_tokens(MESSAGES))
    assert table["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 24,
        "total_tokens": prompt + 24,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_chunks_join_to_the_completion(engine: Engine) -> None:
    whole = ask(engine)
    with ask(engine, stream=True, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    first, *middle, last, usage = [chunk.to_dict() for chunk in chunks]
    assert {c["id"] for c in (first, *middle, last, usage)} == {chunks[0].id}
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(set(c["choices"][0]["delta"]) == {"content"} for c in middle)
    assert last["choices"][0]["delta"] == {}
    assert last["choices"][0]["finish_reason"] == "length"
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 24)
    assert all(c["usage"] is None for c in (first, *middle, last))
    text = "".join(c["choices"][0]["delta"]["content"] for c in middle)
    assert text == whole.choices[0].message.content
    assert middle


def test_the_answer_is_that_of_the_rendered_prompt(engine: Engine) -> None:
    prompt = engine.tokenizer.chat_text(MESSAGES)
    assert prompt == "<s>user: Tell me a story about a dog.</s>\nassistant:"
    tokens = engine.tokenizer.chat_tokens(MESSAGES)
    assert engine.tokenizer.decode(list(engine.generate_tokens(tokens, 24))) == answer(engine)


def test_contents_in_parts(engine: Engine) -> None:
    parts = [{"type": "text", "text": "Tell me a story"}, {"type": "text", "text": " about a dog."}]
    assert answer(engine, [{"role": "user", "content": parts}]) == answer(engine)


def test_logprobs(engine: Engine) -> None:
    plain = answer(engine)
    (choice,) = ask(engine, logprobs=True, top_logprobs=3).choices
    assert choice.message.content == plain
    entries = choice.logprobs.content
    assert len(entries) == 24
    for entry in entries:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token  # greedy
        assert entry.bytes is None or bytes(entry.bytes).decode() == entry.token
    assert "".join(entry.token for entry in entries).lstrip() == plain
    assert ask(engine, logprobs=True).choices[0].logprobs.content[0].top_logprobs == ()
    streamed = [c.choices[0].logprobs for c in ask(engine, logprobs=True, stream=True)]
    told = [entry for logprobs in streamed if logprobs for entry in logprobs.content]
    assert [entry.token for entry in told] == [entry.token for entry in entries]


def test_several_answers(engine: Engine) -> None:
    alone = [answer(engine, temperature=1, seed=seed) for seed in (7, 8, 9)]
    three = ask(engine, temperature=1, seed=7, n=3)
    assert [c.message.content for c in three.choices] == alone
    assert [c.index for c in three.choices] == [0, 1, 2]
    assert three.usage.completion_tokens == 72
    assert three.usage.prompt_tokens == len(engine.tokenizer.chat_tokens(MESSAGES))


# ---- sampling ----


def test_what_is_not_given_is_as_the_makers_recommend(engine: Engine) -> None:
    assert engine.chat_sampling == Sampling(0.8, top_k=40)
    tokens = engine.tokenizer.chat_tokens(MESSAGES)
    expected = list(engine.generate_tokens(tokens, 24, Sampling(0.8, top_k=40, seed=5)))
    assert answer(engine, temperature=None, seed=5) == engine.tokenizer.decode(expected)


def test_seeds(engine: Engine) -> None:
    texts = {answer(engine, temperature=2, top_k=0, max_tokens=60) for _ in range(3)}
    assert len(texts) == 3  # without a seed each answer has its own
    assert answer(engine, temperature=1, seed=3) == answer(engine, temperature=1, seed=3)


def test_stop_strings(engine: Engine) -> None:
    whole = answer(engine)
    word = whole.split()[6]
    cut = ask(engine, stop=[word, "never said"])
    assert cut.choices[0].message.content == whole[: whole.index(word)]
    assert cut.choices[0].finish_reason == "stop"
    assert answer(engine, stop=word) == whole[: whole.index(word)]


def test_logit_bias_by_number_or_text(engine: Engine) -> None:
    first = engine.tokenizer.chat_tokens(MESSAGES)
    token = next(iter(engine.generate_tokens(first, 1)))
    banned = answer(engine, logit_bias={token: -100})
    assert banned != answer(engine)
    assert answer(engine, logit_bias={str(token): -100}) == banned


# ---- what is computed ----


def test_the_next_turn_computes_only_what_is_new(engine: Engine, chat_bundle: Path) -> None:
    first = ask(engine, max_tokens=40)
    history = [
        *MESSAGES,
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "And then?"},
    ]
    second = ask(engine, history)
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert cached == first.usage.total_tokens - 1  # its last token was not yet put in
    added = "</s>\nuser: And then?</s>\nassistant:"
    new = len(engine.tokenizer.encode(added, add_special_tokens=False))
    assert second.usage.prompt_tokens - cached == new + 1
    with ondevice.load(chat_bundle, threads=1) as other:
        assert answer(other, history) == second.choices[0].message.content


def test_an_earlier_message_may_change(engine: Engine) -> None:
    first = answer(engine)
    history = [*MESSAGES, {"role": "assistant", "content": first}, FIRST]
    expected = answer(engine, history)
    answer(engine, [{"role": "user", "content": "Tell me a story about a cat."}])
    again = ask(engine, history)
    assert again.choices[0].message.content == expected
    repeated = ask(engine, history)
    assert repeated.choices[0].message.content == expected
    assert repeated.usage.prompt_tokens_details.cached_tokens == repeated.usage.prompt_tokens - 1


def test_what_is_kept_gives_way(engine: Engine) -> None:
    ask(engine)
    assert engine.info.conversations == 1
    with engine.conversation():
        assert engine.info.conversations == 1
        ask(engine)
        assert engine.info.conversations == 1
    assert engine.info.conversations == 0


def test_leaving_a_stream_cancels(engine: Engine) -> None:
    expected = answer(engine, max_tokens=None)
    with ask(engine, stream=True, max_tokens=None) as stream:
        text = "".join(next(stream).choices[0].delta.content for _ in range(4))
    assert expected.startswith(text) and len(text) < len(expected)
    assert answer(engine, max_tokens=None) == expected
    ask(engine, stream=True, max_tokens=None)  # never read
    gc.collect()
    engine.chat.completions.release()
    assert engine.info.conversations == 0


def test_cancel_from_another_thread(engine: Engine) -> None:
    stream = ask(engine, stream=True, max_tokens=None)
    next(stream)
    threading.Timer(0.02, stream.cancel).start()
    assert len(list(stream)) >= 1  # comes to an end: the story alone would fill the context
    stream.cancel()
    assert answer(engine)


def test_threads_at_once_get_what_they_get_alone(chat_bundle: Path) -> None:
    questions = [[{"role": "user", "content": f"Story number {i}"}] for i in range(64)]
    with ondevice.load(chat_bundle, threads=2, conversations=64, kv_blocks=256) as engine:
        alone = [answer(engine, q, temperature=1, seed=1) for q in questions]
        together: dict[int, str] = {}

        def work(i: int) -> None:
            together[i] = answer(engine, questions[i], temperature=1, seed=1)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(questions))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [together[i] for i in range(len(questions))] == alone
        assert engine.info.conversations <= 1


# ---- what is refused: one clear error each, and nothing is lost ----

USER = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("messages", "options", "words"),
    [
        ([], {}, "a conversation needs a message"),
        ([{"role": "boss", "content": "x"}], {}, "role boss; roles are system, user"),
        ([{"role": "user"}], {}, "message 0 has no 'content'"),
        ([USER, {"content": "x"}], {}, "message 1 has no 'role'"),
        ([USER | {"tool_calls": []}], {}, "message 0 has 'tool_calls', which"),
        ([{"role": "user", "content": None}], {}, "message 0: role and content must be text"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], {}, "part of a content must be"),
        (["Hi"], {}, "message 0 must be a dictionary"),
        ([{"role": "user", "content": "a\ud800"}], {}, "no UTF-8"),
        (
            [{"role": "user", "content": "x" * 1_000_000}],
            {},
            "messages have 10000.. tokens, the context is 512",
        ),
        ([{"role": "user", "content": "one two " * 300}], {}, "the context is 512; leave some out"),
        ([USER], {"temperature": float("nan")}, "temperature is not a number"),
        ([USER], {"temperature": -1}, "temperature is not a number within"),
        ([USER], {"top_p": 2}, "top_p is not a number within 0..1"),
        ([USER], {"stop": "x" * 10_000}, "stop string 0 has 10000 bytes, 1 to 1024"),
        ([USER], {"stop": ""}, "stop string 0 has 0 bytes"),
        ([USER], {"logit_bias": {512: 1}}, "logit_bias of token 512, the vocabulary is 0..511"),
        ([USER], {"top_logprobs": 2}, "top_logprobs needs logprobs=True"),
        ([USER], {"logprobs": True, "top_logprobs": 21}, "logprobs are possible"),
        ([USER], {"max_tokens": -1}, "max_tokens = -1 is negative"),
        ([USER], {"max_tokens": 3, "max_completion_tokens": 4}, "two names of one limit"),
        ([USER], {"n": 0}, "n = 0 must be a number of answers"),
        ([USER], {"model": "gpt-4"}, "runs 'stories260k', not 'gpt-4'"),
        ([USER], {"timeout": -1}, "timeout"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_input(
    engine: Engine, messages: Any, options: dict[str, Any], words: str, stream: bool
) -> None:
    before = answer(engine)
    with pytest.raises(OndeviceError, match=words):
        engine.chat.completions.create(messages, stream=stream, **options)
    assert answer(engine) == before
    engine.chat.completions.release()
    assert engine.info.kv_blocks_free == engine.info.kv_blocks


def test_an_unknown_argument_is_a_type_error(engine: Engine) -> None:
    with pytest.raises(TypeError, match=r"no argument 'max_token'; did you mean 'max_tokens'"):
        engine.chat.completions.create(MESSAGES, max_token=3)  # type: ignore[call-overload]


def test_a_full_context_ends_the_answer(engine: Engine) -> None:
    cut = ask(engine, max_tokens=None)
    assert cut.choices[0].finish_reason == "length"
    assert cut.usage.total_tokens == 512
    with pytest.raises(RuntimeFailure, match="the context is 512"):
        ask(engine, max_tokens=1000)


def test_a_timeout_ends_the_answer(engine: Engine) -> None:
    assert ask(engine, max_tokens=None, timeout=0.001).choices[0].finish_reason == "length"


def test_use_after_close(chat_bundle: Path) -> None:
    with ondevice.load(chat_bundle, threads=1) as engine:
        completions = engine.chat.completions
        stream = ask(engine, stream=True, max_tokens=None)
        next(stream)
    for call in (lambda: ask(engine), lambda: list(stream), lambda: engine.tokenizer.encode("x")):
        with pytest.raises(RuntimeFailure, match="has been closed|was closed") as error:
            call()
        assert error.value.status == Status.CLOSED
    completions.release()
    stream.close()


def test_use_after_fork(engine: Engine) -> None:
    expected = answer(engine)
    child = os.fork()
    if child == 0:  # only os._exit from here: pytest is the parent's
        try:
            ask(engine)
        except RuntimeFailure as error:
            os._exit(0 if error.status == Status.FORKED and "open its own" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert answer(engine) == expected
