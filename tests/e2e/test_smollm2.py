"""A real chat model, made from its published file, against transformers and against itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ondevice.build import build
from ondevice.recipe import load_recipe
from ondevice.runtime.engine import Engine

pytest.importorskip("gguf", reason="the checkpoint is converted with gguf")
torch = pytest.importorskip("torch", reason="parity needs torch")
transformers = pytest.importorskip("transformers", reason="parity needs transformers")

SHARED = Path(__file__).parents[3] / "shared"
SCRIPT = SHARED / "scripts" / "smollm2_gguf_to_hf.py"
GGUF = SHARED / "models" / "SmolLM2-135M-Instruct" / "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = SHARED / "text" / "wikitext2.test.raw"
if not (SCRIPT.exists() and GGUF.exists() and TEXT.exists()):
    pytest.skip("the chat model is not beside this repository", allow_module_level=True)

TOLERANCE = 1e-4  # of the range of the logits; measured: 4e-6
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):",
    "Once upon a time",
    "1 + 1 =",
    "<|im_start|>user\nWrite a poem about the sea.<|im_end|>\n<|im_start|>assistant\n",
    "Die Hauptstadt von Deutschland",
    "SELECT * FROM users WHERE",
    "In 1969, humans first",
    '{"name": "Ada", "age":',
    "Dear Sir or Madam,",
)
Expected = Callable[[list[int]], np.ndarray]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("smollm2") / "checkpoint"
    subprocess.run([sys.executable, str(SCRIPT), str(GGUF), str(home), "float16"], check=True)
    return home


@pytest.fixture(scope="module")
def engine(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The model with weights in f32."""
    home = tmp_path_factory.mktemp("smollm2-f32")
    recipe = load_recipe("smollm2-135m-instruct", model=checkpoint, settings=["quant.default=f32"])
    with Engine(build(recipe, home / "f32.bundle"), threads=2) as engine:
        yield engine


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> Expected:
    """Logits f32[n, vocab] of n tokens by transformers in float32."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(checkpoint), dtype=torch.float32, attn_implementation="eager"
    ).eval()

    def logits(tokens: list[int]) -> np.ndarray:
        with torch.no_grad():
            return model(torch.tensor([tokens])).logits[0].numpy()

    return logits


@pytest.mark.parametrize("length", [10, 700, 1030])
def test_logits(engine: Engine, expected: Expected, length: int) -> None:
    tokens = engine.tokenizer.encode(TEXT.read_text(encoding="utf-8")[:8000])[:length]
    assert len(tokens) == length
    wanted = expected(tokens)
    difference = np.abs(engine.logits(tokens) - wanted).max() / (wanted.max() - wanted.min())
    assert difference < TOLERANCE


@pytest.mark.parametrize("prompt", PROMPTS)
def test_64_greedy_tokens(engine: Engine, expected: Expected, prompt: str) -> None:
    tokens = engine.tokenizer.encode(prompt)
    generated = list(engine.generate_tokens(tokens, max_tokens=64))
    ended = len(generated) < 64
    # Each token is the likeliest after those before it, so all of them are.
    likeliest = expected([*tokens, *generated]).argmax(axis=1)[len(tokens) - 1 :].tolist()
    assert generated == likeliest[: len(generated)]
    if ended:
        assert likeliest[-1] in engine.bundle.manifest.tokenizer.eos_token_ids


@pytest.mark.parametrize("scheme", ["int8_g256", "int4_g32"])
def test_quantized_bits(checkpoint: Path, tmp_path: Path, scheme: str) -> None:
    """Whatever the CPU variant, the threads, the batch and the length of a step: the same bits."""
    setting = f"quant.default={scheme}"
    recipe = load_recipe("smollm2-135m-instruct", model=checkpoint, settings=[setting])
    bundle = build(recipe, tmp_path / "bundle")
    text = TEXT.read_text(encoding="utf-8")
    with Engine(bundle, threads=2) as engine:
        tokens = engine.tokenizer.encode(text[:400])[:70]
        reference = engine.logits(tokens)
        variants = engine.bundle.manifest.variants
    for variant in variants:
        for threads in (1, 2):
            with Engine(bundle, threads=threads, variant=variant) as engine:
                np.testing.assert_array_equal(engine.logits(tokens), reference)
    with Engine(bundle, threads=2) as engine, engine.conversation() as conversation:
        for i, token in enumerate(tokens[:40]):
            np.testing.assert_array_equal(conversation.logits([token])[0], reference[i])


@pytest.fixture(scope="module")
def chat(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle as the recipe has it."""
    recipe = load_recipe("smollm2-135m-instruct", model=checkpoint)
    return build(recipe, tmp_path_factory.mktemp("smollm2-chat") / "chat.bundle")


def test_chat(chat: Path) -> None:
    """The template is the model's own, and the second turn computes only the new tokens."""
    with Engine(chat) as engine:
        completions = engine.chat.completions
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        first = completions.create(messages)
        answer = first.choices[0]
        assert "Paris" in answer.message.content and answer.finish_reason == "stop"
        assert "<|im_end|>" not in answer.message.content
        messages.append({"role": "assistant", "content": answer.message.content})
        messages.append({"role": "user", "content": "And of Germany?"})
        second = completions.create(messages)
        assert "Berlin" in second.choices[0].message.content
        reused = second.usage.prompt_tokens_details.cached_tokens
        assert reused == first.usage.total_tokens
        added = "<|im_end|>\n<|im_start|>user\nAnd of Germany?<|im_end|>\n<|im_start|>assistant\n"
        assert second.usage.prompt_tokens - reused == len(engine.tokenizer.encode(added))


def test_64_conversations_at_once_are_those_alone(chat: Path) -> None:
    prompts = [f"{i} + {i * 7 % 13} is" for i in range(64)]
    with Engine(chat, threads=2, conversations=64, kv_blocks=64 * 2) as engine:

        def go_on(prompt: str) -> str:
            return "".join(engine.generate(prompt, 6, temperature=0.8, seed=5))

        alone = [go_on(prompt) for prompt in prompts]
        with ThreadPoolExecutor(64) as threads:
            assert list(threads.map(go_on, prompts)) == alone
        assert len(set(alone)) > 10


def test_chat_in_a_terminal(chat: Path, open_terminal: Callable[..., Any]) -> None:
    terminal = open_terminal("chat", chat)
    terminal.wait_for(">>> ")
    terminal.type("Write a very long story about the sea.\n")
    terminal.wait_for("sea.\n")
    terminal.wait_for(" ")  # it has begun to answer
    terminal.type("\x03")
    terminal.wait_for("Ctrl-C again leaves")
    terminal.type("/stats\n")
    assert "answer of" in terminal.wait_for(" tokens per second")
    terminal.type("What is the capital of France?\n")
    terminal.wait_for(">>> ")
    terminal.type("/exit\n")
    assert terminal.process.wait(timeout=30) == 0
