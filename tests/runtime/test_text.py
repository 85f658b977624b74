"""Streaming text: whole characters, and together the text that one call would decode."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer as TokenizerFile
from tokenizers import decoders, models, pre_tokenizers, processors

from ondevice.errors import BundleError
from ondevice.runtime.text import StreamDecoder, Tokenizer

TEXT = "Grüße, 世界! 👩‍👩‍👧 naïve café — ok\n  x"


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """One token per byte, as byte-level BPE without merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    file = TokenizerFile(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    file.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    file.decoder = decoders.ByteLevel()
    file.add_special_tokens(["<s>"])
    path = tmp_path_factory.mktemp("text") / "tokenizer.json"
    file.save(str(path))
    return Tokenizer(path)


@pytest.fixture(scope="module")
def byte_fallback(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The decoder of Llama 2: spaces as U+2581, unknown characters as bytes, first space cut."""
    words = ["<unk>", "<s>", "\u2581Hi", "\u2581there", "\u2581", "o"]
    vocabulary = {word: i for i, word in enumerate(words)}
    vocabulary |= {f"<0x{byte:02X}>": len(words) + byte for byte in range(256)}
    file = TokenizerFile(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    replace = decoders.Replace("\u2581", " ")
    file.decoder = decoders.Sequence(
        [replace, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    file.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    path = tmp_path_factory.mktemp("text") / "tokenizer.json"
    file.save(str(path))
    return Tokenizer(path)


def stream(tokenizer: Tokenizer, tokens: list[int], prompt: list[int]) -> list[str]:
    decoder = StreamDecoder(tokenizer, prompt)
    pieces = [decoder.add(token) for token in tokens]
    return [*pieces, decoder.finish()]


@pytest.mark.parametrize("split", [0, 1, 5, 10])
def test_pieces_are_the_text_without_half_characters(byte_level: Tokenizer, split: int) -> None:
    tokens = byte_level.encode(TEXT)
    prompt = len(TEXT[:split].encode())
    pieces = stream(byte_level, tokens[prompt:], tokens[:prompt])
    assert "".join(pieces) == TEXT[split:]
    assert all("\ufffd" not in piece for piece in pieces)


def test_character_that_never_ends_is_dropped(byte_level: Tokenizer) -> None:
    tokens = byte_level.encode("a世")[:-1]
    assert stream(byte_level, tokens, []) == ["a", "", "", ""]


def test_bytes_that_are_no_text_come_out(byte_level: Tokenizer) -> None:
    tokens = byte_level.encode("世")[:1] * 6 + byte_level.encode("ok")
    assert "".join(stream(byte_level, tokens, [])).endswith("ok")


def test_special_tokens_are_silent(byte_level: Tokenizer) -> None:
    tokens = [*byte_level.encode("ab"), 256, *byte_level.encode("c")]
    assert "".join(stream(byte_level, tokens, [])) == "abc"


def test_space_after_the_prompt_is_kept(byte_fallback: Tokenizer) -> None:
    assert stream(byte_fallback, [3, 5], [1, 2]) == [" there", "o", ""]
    assert stream(byte_fallback, [2, 3], [])[0] == "Hi"


def test_fallback_bytes_wait_for_their_character(byte_fallback: Tokenizer) -> None:
    tokens = [6 + byte for byte in "é👧".encode()]
    assert stream(byte_fallback, tokens, [2]) == ["", "é", "", "", "", "👧", ""]


def test_special_tokens_are_those_of_the_post_processor(
    byte_level: Tokenizer, byte_fallback: Tokenizer
) -> None:
    assert byte_fallback.encode("o") == [1, 5]
    assert byte_fallback.encode("o", add_special_tokens=False) == [5]
    assert byte_level.encode("o") == byte_level.encode("o", add_special_tokens=False)


def test_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(BundleError, match=r"cannot read .*tokenizer\.json"):
        Tokenizer(path)
