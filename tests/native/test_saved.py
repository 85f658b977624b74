"""Saved conversations: restored they go on as if nothing had happened, damaged they are refused."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ondevice.bundle.descriptor import pack_weights_header
from ondevice.errors import RuntimeFailure
from ondevice.runtime.header import Status
from ondevice.runtime.native import Library, NativeConversation, NativeEngine
from ondevice.runtime.native import model_descriptor as descriptor
from ondevice.runtime.sampling import Sampling
from ondevice.runtime.saved import restore_conversation, save_conversation

from .conftest import HERE, TOY_ABI, OpenToy, Toy, compile_c
from .test_sharing import VOCAB, generate, read_all, reused

TEXT = [i * 13 % VOCAB for i in range(150)]


def saved(engine: NativeEngine, path: Path, tokens: list[int]) -> Path:
    conversation = engine.conversation()
    if tokens:
        generate(conversation, tokens, 0)
    save_conversation(conversation, path)
    conversation.close()
    return path


def continuation(conversation: NativeConversation) -> tuple[list[int], list[int]]:
    conversation.submit([3, 1, 4], 20, Sampling(temperature=0.9, seed=4))
    sampled = read_all(conversation)[1]
    return sampled, generate(conversation, [], 12)


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 64, 150])
def test_restored_conversation_goes_on_the_same(
    open_toy: OpenToy, tmp_path: Path, length: int
) -> None:
    expected_engine = open_toy()
    original = expected_engine.conversation()
    if length:
        generate(original, TEXT[:length], 0)
    expected = continuation(original)
    path = saved(open_toy(), tmp_path / "talk.kv", TEXT[:length])
    engine = open_toy()
    conversation = restore_conversation(engine, path)
    assert conversation.length == length
    assert engine.info.kv_blocks - engine.info.kv_blocks_free == length // 32
    assert continuation(conversation) == expected
    rest = restore_conversation(engine, path)
    rest.rewind(length // 2)
    expected_logits = open_toy().conversation().logits([*TEXT[: length // 2], 7], VOCAB)[-1]
    np.testing.assert_array_equal(rest.logits([7], VOCAB)[0], expected_logits)


def test_only_what_is_behind_the_last_full_block_is_computed(
    open_toy: OpenToy, tmp_path: Path
) -> None:
    path = saved(open_toy(), tmp_path / "talk.kv", TEXT[:70])
    conversation = restore_conversation(open_toy(), path)
    generate(conversation, TEXT[70:80], 3)
    assert reused(conversation.stats) == (64, 0, 16)


def test_restored_blocks_are_shared(open_toy: OpenToy, tmp_path: Path) -> None:
    path = saved(open_toy(), tmp_path / "talk.kv", TEXT[:100])
    expected = generate(open_toy().conversation(), TEXT[:110], 8)
    engine = open_toy()
    restore_conversation(engine, path).close()
    assert engine.info.kv_blocks_cached == 3
    conversation = engine.conversation()
    assert generate(conversation, TEXT[:110], 8) == expected
    assert reused(conversation.stats) == (0, 96, 14)
    again = restore_conversation(engine, path)  # finds its own blocks
    assert engine.info.kv_blocks - engine.info.kv_blocks_free == 4
    assert generate(again, TEXT[100:110], 8) == expected


def test_a_file_depends_on_the_tokens_alone(open_toy: OpenToy, tmp_path: Path) -> None:
    first = saved(open_toy(), tmp_path / "first.kv", TEXT[:70])
    engine = open_toy(kv_blocks=8)
    for start in (1, 2, 3):
        other = engine.conversation()
        generate(other, TEXT[start : start + 60], 0)
        other.close()
    busy = engine.conversation()
    for piece in (TEXT[:5], TEXT[5:60], TEXT[60:70]):
        generate(busy, piece, 0)
    save_conversation(busy, tmp_path / "second.kv")
    assert first.read_bytes() == (tmp_path / "second.kv").read_bytes()


def test_writes_to_a_restored_block_stay_private(open_toy: OpenToy, tmp_path: Path) -> None:
    path = saved(open_toy(), tmp_path / "talk.kv", TEXT[:100])
    before = path.read_bytes()
    engine = open_toy(kv_blocks=4)
    conversation = restore_conversation(engine, path)
    conversation.rewind(40)
    generate(conversation, TEXT[60:140], 0)
    conversation.close()
    generate(engine.conversation(), TEXT[5:120], 0)  # takes all blocks
    assert path.read_bytes() == before


def test_blocks_on_whole_pages_are_mapped(tmp_path: Path, libondevice: Library, toy: Toy) -> None:
    """A model whose blocks are of 4096 bytes: the toy with four times the width of its cache."""
    source = (HERE / "toy_model.c").read_text()
    wide = source.replace("OD_KV_BLOCK_TOKENS * D * 4,", "4096,").replace(
        "(block * OD_KV_BLOCK_TOKENS + positions[s] % OD_KV_BLOCK_TOKENS) * D",
        "block * 1024 + positions[s] % OD_KV_BLOCK_TOKENS * D",
    )
    wide = wide.replace(
        "blocks[t / OD_KV_BLOCK_TOKENS] * OD_KV_BLOCK_TOKENS;",
        "blocks[t / OD_KV_BLOCK_TOKENS] * 1024 / D;",
    )
    assert wide.count("1024") == 2 and wide.count("4096") == 1
    (tmp_path / "wide.c").write_text(wide)
    library = compile_c("gcc", tmp_path / "libwide.so", [tmp_path / "wide.c"], "-shared", "-O1")
    model = descriptor(library, "od_model_toy")
    said = []
    for _ in range(2):
        engine = NativeEngine(libondevice, model, toy.weights, threads=2)
        if not said:
            conversation = engine.conversation()
            generate(conversation, TEXT[:100], 0)
            save_conversation(conversation, tmp_path / "talk.kv")
        else:
            conversation = restore_conversation(engine, tmp_path / "talk.kv")
            assert "talk.kv" in Path("/proc/self/maps").read_text()
        said.append(continuation(conversation))
        engine.close()
    assert said[0] == said[1]
    assert "talk.kv" not in Path("/proc/self/maps").read_text()


# ---- refusals ----


def refusal(engine: NativeEngine, path: Path) -> str:
    with pytest.raises(RuntimeFailure) as caught:
        restore_conversation(engine, path)
    assert caught.value.status == Status.FILE
    assert engine.info.conversations == 0 and engine.info.kv_blocks_free == engine.info.kv_blocks
    return str(caught.value)


def test_every_flipped_byte_is_refused(open_toy: OpenToy, tmp_path: Path) -> None:
    path = saved(open_toy(), tmp_path / "talk.kv", TEXT[:100])
    data = path.read_bytes()
    engine = open_toy()
    places = [*range(540), *range(540, len(data), 997), len(data) - 1]
    for place in places:
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x80]) + data[place + 1 :])
        assert "conversation" in refusal(engine, path)
    path.write_bytes(data)
    assert restore_conversation(engine, path).length == 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"", "does not lie at"),
        (lambda data: data[:127], "does not lie at"),
        (lambda data: data[:-1], "cut off or damaged: it has"),
        (lambda data: data[: len(data) // 2], "cut off or damaged: it has"),
        (lambda data: data + b"\0", "cut off or damaged: it has"),
        (lambda data: b"PK" + data[2:], "not a saved conversation"),
        (lambda data: data[:8] + b"\2" + data[9:], "saved in version 2, this runtime reads 1"),
        (lambda data: data[:16] + b"\1" + data[17:], "by another build than this toy"),
        (lambda data: data[:48] + b"\1" + data[49:], "with other weights of toy"),
        (lambda data: data[:64] + b"\xff" * 4 + data[68:], "its header makes no sense"),
        (lambda data: data[:130] + b"\1" + data[131:], "its checksum is another"),
    ],
)
def test_damaged_files(
    open_toy: OpenToy, tmp_path: Path, change: Callable[[bytes], bytes], message: str
) -> None:
    path = saved(open_toy(), tmp_path / "talk.kv", TEXT[:100])
    path.write_bytes(change(path.read_bytes()))
    assert message in refusal(open_toy(), path)


def test_other_weights_are_refused(
    open_toy: OpenToy, toy: Toy, libondevice: Library, tmp_path: Path
) -> None:
    path = saved(open_toy(), tmp_path / "talk.kv", TEXT[:100])
    weights = tmp_path / "weights.bin"
    header = pack_weights_header(TOY_ABI, toy.embedding.nbytes, "ab" * 8)
    weights.write_bytes(header + toy.embedding.tobytes())
    engine = NativeEngine(libondevice, descriptor(toy.library, "od_model_toy"), weights, threads=1)
    assert "with other weights of toy; submit its text again" in refusal(engine, path)
    engine.close()


def test_places_that_cannot_be_used(open_toy: OpenToy, tmp_path: Path) -> None:
    engine = open_toy()
    assert "No such file" in refusal(engine, tmp_path / "missing.kv")
    conversation = engine.conversation()
    with pytest.raises(RuntimeFailure, match=r"cannot save the conversation to .*missing"):
        save_conversation(conversation, tmp_path / "missing" / "talk.kv")
    for place, mode in ((os.devnull, "rb"), ("/dev/full", "wb")):
        with (
            open(place, mode) as file,
            pytest.raises(RuntimeFailure, match="the disk is full, or file descriptor"),
        ):
            conversation.save(file.fileno())
    assert list(tmp_path.iterdir()) == []


def test_a_busy_conversation_is_not_saved(open_toy: OpenToy, tmp_path: Path) -> None:
    conversation = open_toy().conversation()
    messages = set()
    for _ in range(200):  # a toy may finish before the second call comes
        conversation.submit([1, 2, 3], 150)
        try:
            with open(os.devnull, "wb") as file:
                conversation.save(file.fileno())
        except RuntimeFailure as error:
            messages.add(str(error))
        conversation.cancel()
        read_all(conversation)
        conversation.rewind(0)
    (message,) = messages
    assert message.endswith("generating: read to the end or cancel before it is saved")


def test_restoring_needs_blocks_and_a_place(open_toy: OpenToy, tmp_path: Path) -> None:
    path = saved(open_toy(), tmp_path / "talk.kv", TEXT)
    engine = open_toy(kv_blocks=3)
    with pytest.raises(RuntimeFailure, match="needs 4 KV blocks, 3 of 3 are free") as caught:
        restore_conversation(engine, path)
    assert caught.value.status == Status.KV_FULL
    assert engine.info.conversations == 0 and engine.info.kv_blocks_free == 3
    engine = open_toy(conversations=1)
    conversation = engine.conversation()
    with pytest.raises(RuntimeFailure, match="1 conversations are open"):
        restore_conversation(engine, path)
    conversation.close()
    restore_conversation(engine, path)


def test_saved_while_others_generate(open_toy: OpenToy, tmp_path: Path) -> None:
    engine = open_toy(kv_blocks=28)
    expected = saved(open_toy(), tmp_path / "quiet.kv", TEXT[:100]).read_bytes()
    conversation, other = engine.conversation(), engine.conversation()
    generate(conversation, TEXT[:100], 0)
    for _ in range(5):
        other.submit([5], 150)
        save_conversation(conversation, tmp_path / "talk.kv")
        read_all(other)
        other.rewind(0)
        assert (tmp_path / "talk.kv").read_bytes() == expected


SCRIPT = """
import os, signal, sys
from pathlib import Path
from ondevice.runtime.native import Library, NativeEngine, model_descriptor
from ondevice.runtime.sampling import Sampling
from ondevice.runtime.saved import save_conversation
library, model, weights, out = map(Path, sys.argv[1:])
engine = NativeEngine(Library(library), model_descriptor(model, "od_model_toy"), weights)
conversation = engine.conversation()
conversation.submit([i * 13 % 97 for i in range(150)], 0)
while int(conversation.read()[0]) != 3:
    pass
save_conversation(conversation, out)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_restored_after_the_process_was_killed(
    open_toy: OpenToy, toy: Toy, tmp_path: Path, runtime_path: Path
) -> None:
    path = tmp_path / "talk.kv"
    files = map(str, (runtime_path, toy.library, toy.weights, path))
    done = subprocess.run([sys.executable, "-P", "-c", SCRIPT, *files], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert [p.name for p in tmp_path.iterdir()] == ["talk.kv"]
    conversation = restore_conversation(open_toy(), path)
    original = open_toy().conversation()
    generate(original, TEXT, 0)
    assert continuation(conversation) == continuation(original)
    shutil.rmtree(tmp_path)  # a mapped file may be deleted
    conversation.rewind(100)
    original.rewind(100)
    assert continuation(conversation) == continuation(original)
