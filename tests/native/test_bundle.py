"""`ondevice.load` over a bundle of the toy model: text in, text out."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

import ondevice
from ondevice.bundle.format import Libraries, ModelInfo, ProgramInfo, SamplingInfo, TokenizerInfo
from ondevice.bundle.program import WeightEntry
from ondevice.bundle.write import BundleWriter
from ondevice.codegen.link import compile_runtime
from ondevice.errors import RuntimeFailure
from ondevice.runtime.engine import Engine
from ondevice.runtime.header import Status
from ondevice.runtime.sampling import Sampling
from ondevice.targets import load
from ondevice.tokenizer import compile_tokenizer

from .conftest import Toy, link_toy, toy_program

PROMPT = "Once upon a time"
BOS, EOS = 5, 11


def byte_tokenizer() -> str:
    """97 single bytes: printable ASCII, and the three bytes of one character."""
    alphabet = [chr(code) for code in range(33, 127)] + ["\u00e4", "\u00b8", "\u0122"]
    file = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    file.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    file.decoder = decoders.ByteLevel()
    first = chr(33 + BOS)
    file.post_processor = processors.TemplateProcessing(
        f"{first} $A", special_tokens=[(first, BOS)]
    )
    return file.to_str()


@pytest.fixture(scope="module")
def bundle(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bundle")
    (directory / "tokenizer.json").write_text(byte_tokenizer(), encoding="utf-8")
    tokenizer = compile_tokenizer(directory / "tokenizer.json", vocab_size=97)
    program = toy_program()
    library = f"lib/libmodel_{program.abi_hash[:16]}.so"
    with BundleWriter(directory / "toy.bundle") as writer:
        writer.add("lib/libondevice.so", compile_runtime(load("host")))
        writer.add(library, link_toy(program, directory))
        writer.add("tokenizer/tokenizer.bin", tokenizer.data)
        with writer.weights(program.abi_hash, toy.embedding.nbytes) as file:
            file.write(toy.embedding.tobytes())
        return writer.finish(
            name="toy",
            target="linux-x86_64",
            variants=("best", "plain"),
            abi_hash=program.abi_hash,
            model=ModelInfo("Toy", 97, 200, 48, 8, 1, "f32"),
            program=ProgramInfo(("toy",), 1, program.step_bytes, program.kv.block_bytes),
            tokenizer=TokenizerInfo("tokenizer/tokenizer.bin", None, BOS, (EOS,)),
            sampling=SamplingInfo(),
            libraries=Libraries("lib/libondevice.so", library),
            tensors=(WeightEntry("embed", "f32", (97, 8), "rows", 0, toy.embedding.nbytes),),
        )


@pytest.fixture
def engine(bundle: Path) -> Engine:
    return ondevice.load(bundle, threads=2)


def test_text_and_tokens_agree(engine: Engine) -> None:
    with engine:
        tokens = list(engine.generate_tokens(PROMPT, 40, Sampling(1.0, seed=2)))
        text = "".join(engine.generate(PROMPT, 40, temperature=1.0, seed=2))
        assert text == engine.tokenizer.decode(tokens, continues=True)
    assert 0 < len(tokens) <= 40 and EOS not in tokens


def test_prompt_as_tokens(engine: Engine) -> None:
    with engine:
        tokens = engine.tokenizer.encode(PROMPT)
        assert tokens[0] == BOS
        said = list(engine.generate_tokens(PROMPT, 10))
        assert list(engine.generate_tokens(tokens, 10)) == said


def test_logits_of_more_rows_than_a_step_has(engine: Engine) -> None:
    with engine, engine.conversation() as conversation:
        tokens = [i * 5 % 97 for i in range(20)]
        whole = engine.logits(tokens)
        assert (whole.shape, whole.dtype) == ((20, 97), np.dtype("float32"))
        pieces = [conversation.logits(tokens[:3]), conversation.logits(tokens[3:])]
        np.testing.assert_array_equal(np.concatenate(pieces), whole)
        assert engine.logits([]).shape == (0, 97)
        assert conversation.length == 20


def test_leaving_the_iterator_cancels_and_frees(engine: Engine) -> None:
    with engine:
        first = list(itertools.islice(engine.generate_tokens(PROMPT), 3))
        assert engine.info.conversations == 0
        assert engine.info.kv_blocks_free == engine.info.kv_blocks
        assert list(engine.generate_tokens(PROMPT, 3)) == first


def test_conversation_knows_only_what_was_yielded(engine: Engine) -> None:
    with engine, engine.conversation() as conversation:
        tokens = len(engine.tokenizer.encode(PROMPT))
        first = list(itertools.islice(conversation.generate_tokens(PROMPT), 3))
        assert conversation.length == tokens + 3
        rest = list(conversation.generate_tokens(max_tokens=4))
        assert first + rest == list(engine.generate_tokens(PROMPT, 7))


def test_iterator_may_outlive_its_engine(engine: Engine) -> None:
    iterator = engine.generate_tokens(PROMPT)
    with engine:
        next(iterator)
    iterator.close()


def test_conversation_continues(engine: Engine) -> None:
    with engine, engine.conversation() as conversation:
        first = list(conversation.generate_tokens(PROMPT, 4))
        assert conversation.ending is Status.LENGTH
        rest = list(conversation.generate_tokens(max_tokens=4))
        assert first + rest == list(engine.generate_tokens(PROMPT, 8))


def test_later_turns_have_no_second_bos(engine: Engine) -> None:
    with engine, engine.conversation() as conversation:
        lengths = []
        for _ in range(2):
            for _ in range(2):
                list(conversation.generate("abcd", 0))
                lengths.append(conversation.length)
            conversation.rewind(0)
        assert lengths == [5, 9, 5, 9]


def test_fork_and_stats(engine: Engine) -> None:
    with engine, engine.conversation() as conversation:
        prompt = [i * 3 % 97 for i in range(70)]
        first = list(conversation.generate_tokens(prompt, 5))
        stats = conversation.stats
        assert (stats.prompt_tokens, stats.reused_tokens, stats.computed_tokens) == (70, 0, 70)
        assert stats.generated_tokens == len(first) and stats.first_token_ms > 0
        with conversation.fork() as fork:
            said = list(conversation.generate_tokens("ab", 4))
            assert list(fork.generate_tokens("ab", 4)) == said
            assert fork.stats.own_tokens == conversation.stats.own_tokens == conversation.length - 7


def test_context_is_never_cut_silently(engine: Engine) -> None:
    with engine, engine.conversation() as conversation:
        assert len(list(conversation.generate_tokens([1] * 150))) == 50
        assert conversation.ending is Status.CONTEXT_FULL
        conversation.rewind(0)
        with pytest.raises(
            RuntimeFailure, match="holds 200 tokens, the context is 200; rewind it to go on"
        ):
            list(conversation.generate_tokens([1] * 150, 51))
        with pytest.raises(RuntimeFailure, match="201 tokens do not fit"):
            list(engine.generate([1] * 201))


def test_closed_engine(engine: Engine) -> None:
    with engine:
        pass
    engine.close()
    with pytest.raises(RuntimeFailure, match="the engine has been closed"):
        engine.conversation()
    with pytest.raises(RuntimeFailure, match="the engine has been closed"):
        next(engine.generate(PROMPT))


def test_threads_from_the_environment(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONDEVICE_THREADS", "3")
    with ondevice.load(bundle) as engine:
        assert engine.info.threads == 3
    with ondevice.load(bundle, threads=1, conversations=2, kv_blocks=8) as engine:
        assert (engine.info.threads, engine.info.kv_blocks) == (1, 8)
