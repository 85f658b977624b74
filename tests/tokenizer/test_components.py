# ruff: noqa: RUF001

"""Components of tokenizer.json that the checkpoints at hand lack, on small made-up tokenizers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Library

from ondevice.errors import CheckpointError
from ondevice.runtime.tokenizer import Tokenizer
from ondevice.tokenizer import (
    CompiledTokenizer,
    TokenizerError,
    compile_tokenizer,
    dependencies,
    unpack,
)
from ondevice.tokenizer.compile import byte_characters

from .conftest import BUNDLED, Pair
from .strings import unicode_strings

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(regex: bool = True, prefix: bool = False) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": prefix,
        "trim_offsets": True,
        "use_regex": regex,
    }


def split(regex: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    pattern = {"Regex": regex}
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}


def sequence(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(parts)}


def metaspace(scheme: str, cut: bool) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": cut}


def replaced(old: str, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def normalizers(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(parts)}


def token(number: int, content: str, **flags: bool) -> dict[str, Any]:
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return {"id": number, "content": content} | {name: flags.get(name, False) for name in names}


def bytes_file() -> dict[str, Any]:
    """A byte-level tokenizer with some merges."""
    characters = byte_characters()
    merges = [
        m.split("+") for m in "t+h h+e th+e Ġ+t Ġt+he i+n e+r Ġ+a o+n 1+2 12+3 Ġ+Ġ ĠĠ+ĠĠ".split()
    ]
    merges += [["'", "s"], ["'", "l"], ["'l", "l"], ["Ċ", "Ċ"], ["Ã", "©"], ["l", "l"], ["d", "e"]]
    names = characters + ["".join(m) for m in merges]
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": byte_level(),
        "post_processor": None,
        "decoder": byte_level(),
        "model": {"type": "BPE", "vocab": {n: i for i, n in enumerate(names)}, "merges": merges},
    }


def characters_file() -> dict[str, Any]:
    """The bundled SentencePiece tokenizer."""
    file: dict[str, Any] = json.loads((BUNDLED / "tokenizer.json").read_text("utf-8"))
    return file


def with_model(file: dict[str, Any], **options: Any) -> dict[str, Any]:
    return file | {"model": file["model"] | options}


def without_bytes(file: dict[str, Any]) -> dict[str, Any]:
    names = [n for n in file["model"]["vocab"] if not n.startswith("<0x")]
    return with_model(file, vocab={n: i for i, n in enumerate(names)})


def repeated_words(file: dict[str, Any]) -> dict[str, Any]:
    """A vocabulary with words that its merges do not reach."""
    vocab = dict(file["model"]["vocab"])
    for name in ("Hello", "Ġworld", "hello", "don", "日", "æĹ¥"):
        vocab.setdefault(name, len(vocab))
    return with_model(file, vocab=vocab, ignore_merges=True)


BYTES, CHARACTERS = bytes_file(), characters_file()
SPACES = [token(300 + n, " " * n, normalized=True) for n in range(2, 9)]
FLAGS = [
    token(300, "<l>", lstrip=True, special=True),
    token(301, "<r>", rstrip=True, special=True),
    token(302, "<lr>", lstrip=True, rstrip=True),
    token(303, "the", single_word=True),
    token(304, "café", normalized=True),
    token(305, "<r><r>", special=True),
    token(306, "hello world", normalized=True, single_word=True, rstrip=True),
]

FILES: dict[str, dict[str, Any]] = {
    "prefix space": BYTES | {"pre_tokenizer": byte_level(prefix=True)},
    "no split": BYTES | {"pre_tokenizer": byte_level(regex=False)},
    "llama 3": BYTES | {"pre_tokenizer": sequence(split(LLAMA_3), byte_level(regex=False))},
    "o200k": BYTES | {"pre_tokenizer": sequence(split(O200K), byte_level(regex=False))},
    "deepseek": BYTES
    | {
        "pre_tokenizer": sequence(
            split(r"\p{N}{1,3}"),
            split(r"[一-龥぀-ゟ゠-ヿ]+"),
            split(DEEPSEEK),
            byte_level(regex=False),
        )
    },
    "starcoder": BYTES
    | {"pre_tokenizer": sequence({"type": "Digits", "individual_digits": True}, byte_level())},
    "falcon": BYTES
    | {
        "pre_tokenizer": sequence(
            {"type": "Punctuation", "behavior": "Contiguous"},
            byte_level(),
            {"type": "Digits", "individual_digits": False},
            split("[0-9][0-9][0-9]"),
        )
    },
    "neox": BYTES | {"normalizer": {"type": "NFC"}, "added_tokens": SPACES},
    "flags": BYTES | {"normalizer": {"type": "NFC"}, "added_tokens": FLAGS},
    "flags, characters": CHARACTERS | {"added_tokens": [*CHARACTERS["added_tokens"], *FLAGS]},
    "ignore merges": repeated_words(BYTES),
    "lazy and counted": BYTES
    | {"pre_tokenizer": sequence(split(r"a{2,3}b|x+?y|a??c|(?:cd){2}|\d{2,}"), byte_level())},
    "white space": BYTES | {"pre_tokenizer": sequence({"type": "WhitespaceSplit"}, byte_level())},
    "no byte fallback": without_bytes(with_model(CHARACTERS, byte_fallback=False)),
    "unknown not fused": without_bytes(with_model(CHARACTERS, byte_fallback=False, fuse_unk=False)),
    "no unknown": without_bytes(with_model(CHARACTERS, byte_fallback=False, unk_token=None)),
    "some bytes": with_model(
        CHARACTERS,
        vocab={n: i for n, i in CHARACTERS["model"]["vocab"].items() if n != "<0xC3>"},
    ),
    "gemma": CHARACTERS
    | {
        "normalizer": replaced(" ", "▁"),
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [replaced("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}],
        },
    },
    "replace and compose": CHARACTERS
    | {
        "normalizer": normalizers(
            replaced("``", '"'), {"type": "NFC"}, replaced("a", ""), replaced(" ", "▁▁")
        )
    },
    "post-processors": BYTES
    | {
        "post_processor": {
            "type": "Sequence",
            "processors": [
                byte_level(),
                {
                    "type": "TemplateProcessing",
                    "single": [
                        {"SpecialToken": {"id": "t", "type_id": 0}},
                        {"Sequence": {"id": "A", "type_id": 0}},
                        {"SpecialToken": {"id": "h", "type_id": 0}},
                    ],
                    "pair": [
                        {"Sequence": {"id": "A", "type_id": 0}},
                        {"Sequence": {"id": "B", "type_id": 1}},
                    ],
                    "special_tokens": {
                        "t": {"id": "t", "ids": [83, 84], "tokens": ["t", "u"]},
                        "h": {"id": "h", "ids": [71], "tokens": ["h"]},
                    },
                },
            ],
        }
    },
}
for _scheme in ("always", "first", "never"):
    for _cut in (False, True):
        FILES[f"metaspace {_scheme}{' split' * _cut}"] = CHARACTERS | {
            "normalizer": None,
            "pre_tokenizer": metaspace(_scheme, _cut),
        }
for _behavior in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
    for _invert in (False, True):
        FILES[f"{_behavior}{' inverted' * _invert}"] = BYTES | {
            "pre_tokenizer": sequence(
                split(r"\s|the|\d\d", _behavior, _invert), byte_level(regex=False)
            )
        }


@pytest.fixture
def compile_pair(tmp_path: Path, runtime: Path) -> Callable[[dict[str, Any]], Pair]:
    def compile_file(file: dict[str, Any]) -> Pair:
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(file), encoding="utf-8")
        compiled = compile_tokenizer(path)
        native = Tokenizer(runtime, compiled.data)
        library = Library.from_file(str(path))
        return Pair(library, native, compiled.notes, compiled.data, None)

    return compile_file


@pytest.mark.parametrize("name", FILES)
def test_equals_the_library(name: str, compile_pair: Callable[[dict[str, Any]], Pair]) -> None:
    pair = compile_pair(FILES[name])
    odd = [
        "",
        " ",
        "the",
        " the hello world the",
        "<l> <r>  <lr> x<r><r>\n",
        "12345 aab xxy cdcdcd",
    ]
    for text in [*odd, *unicode_strings(11, 120), *(f"{t} <r>{t}" for t in odd)]:
        tokens = pair.library.encode(text).ids
        assert pair.native.encode(text) == tokens, repr(text)
        decoded = pair.library.decode(tokens, skip_special_tokens=False)
        assert pair.native.decode(tokens, skip_special_tokens=False) == decoded


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "model": (BYTES | {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}, ""),
    "dropout": (with_model(BYTES, dropout=0.1), "BPE with dropout"),
    "normalizer": (BYTES | {"normalizer": {"type": "Lowercase"}}, "normalizer Lowercase"),
    "pre-tokenizer": (
        BYTES | {"pre_tokenizer": {"type": "Whitespace"}},
        "pre-tokenizer Whitespace",
    ),
    "anchor": (BYTES | {"pre_tokenizer": split("^a")}, "the anchor ^"),
    "look-behind": (BYTES | {"pre_tokenizer": split("(?<=a)b")}, "the group (?<"),
    "possessive": (BYTES | {"pre_tokenizer": split("a++b")}, "a possessive repeat"),
    "look far": (BYTES | {"pre_tokenizer": split("a(?!bc)")}, "more than one character"),
    "folded letters": (BYTES | {"pre_tokenizer": split("(?i:ss)")}, "fold together"),
    "empty match": (BYTES | {"pre_tokenizer": split("a*")}, "matches the empty text"),
    "word border": (BYTES | {"pre_tokenizer": split(r"\bx")}, "the escape \\b"),
    "no decoder": (BYTES | {"decoder": None}, "missing decoder"),
    "decoder": (BYTES | {"decoder": {"type": "WordPiece", "prefix": "#", "cleanup": True}}, ""),
}


@pytest.mark.parametrize("name", REFUSED)
def test_names_what_it_does_not_support(
    name: str, compile_pair: Callable[[dict[str, Any]], Pair]
) -> None:
    file, words = REFUSED[name]
    with pytest.raises(TokenizerError, match="not supported|cannot") as error:
        compile_pair(file)
    assert words in str(error.value)


def test_a_file_that_is_no_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text('{"model": ')
    with pytest.raises(CheckpointError, match="cannot read the tokenizer"):
        compile_tokenizer(path)


def test_truncation_is_noted_and_not_applied(
    compile_pair: Callable[[dict[str, Any]], Pair],
) -> None:
    truncation = {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    pair = compile_pair(BYTES | {"truncation": truncation})
    assert "truncation" in pair.notes[-1] or "truncation" in pair.notes[0]
    pair.library.no_truncation()
    assert pair.native.encode("a b c d e") == pair.library.encode("a b c d e").ids


def test_tokens_of_the_model_beyond_the_tokenizer(tmp_path: Path, runtime: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(BYTES), encoding="utf-8")
    native = Tokenizer(runtime, compile_tokenizer(path, vocab_size=400).data)
    assert native.vocab_size == 400
    assert native.decode([64, 399, 65]) == native.decode([64, 65])


@pytest.mark.parametrize("template", [None, b"", b"segments"])
def test_a_compiled_tokenizer_is_kept_as_bytes(template: bytes | None) -> None:
    compiled = CompiledTokenizer(b"tables", template, (2, 7), ("a note",))
    assert unpack(compiled.pack()) == compiled


def test_what_the_bytes_depend_on(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text("{}")
    keys = [dependencies(file, None, 100), dependencies(file, None, 101)]
    (tmp_path / "chat_template.jinja").write_text("x")
    keys.append(dependencies(file, None, 100))
    keys.append(dependencies(file, file, 100))
    assert all(a != b for i, a in enumerate(keys) for b in keys[:i])
