"""Who is measured on what.

Everyone has the same threads, cores, prompts, context and checkpoint, and 4-bit weights with 8-bit
activations in the way that its makers recommend for CPUs:

    ondevice      int4_g32, embeddings and head in int8; KV in f16
    llama.cpp     Q4_0, repacked at load, head in Q6_K; built for this very CPU; its C API called as
                  llama-bench calls it, so that no token is sampled; KV in f16
    OpenVINO      int4 in groups of 64 (32 where rows are no multiple), ratio 1.0, by optimum-intel;
                  LLMPipeline with its defaults: activations in groups of 32, bf16 between, KV in u8
    ONNX Runtime  int4 in blocks of 32, also of the head, accuracy level 4, by its model builder;
                  KV in f32
    ExecuTorch    8da4w in groups of 32 on XNNPACK, its own attention, int8 embeddings; KV in f32

Peers are driven from Python, one call for a token at most. Each is warmed with the measured prompt.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Environment:
    """A Python environment of a peer's own. `note` is what a reader of the figures should know."""

    name: str
    packages: tuple[str, ...]
    remove: tuple[str, ...] = ()  # packages that come along and break it
    note: str = ""


@dataclass(frozen=True)
class Contestant:
    """A peer with one kind of weights. `settings` are of the conversion, `options` of the run."""

    name: str
    program: str  # run_{program}.py
    artifact: str  # contestants with the same share what was converted
    environment: str  # "" is ours
    settings: tuple[str, ...] = ()
    options: dict[str, str] = field(default_factory=dict)
    default: bool = True
    models: tuple[str, ...] = ()  # none: all
    tests: tuple[str, ...] = ()  # none: all

    def measures(self, model: Model) -> bool:
        return not self.models or model.name in self.models


@dataclass(frozen=True)
class Model:
    """`preset` is of random_checkpoint.py, "" the real SmolLM2."""

    name: str
    preset: str
    parameters: int  # of the layers: the head sees one token of a prompt
    openvino_group: int
    recipe: str = "tinyllama-1.1b"


@dataclass(frozen=True)
class Test:
    """Where nothing is generated but the token behind the prompt, the prompt is timed.

    Long ones are measured in the first `rounds` only.
    """

    name: str
    prompt: int
    generate: int
    threads: int
    reps: int
    models: tuple[str, ...] = ()  # none: all
    busy: bool = False  # beside a foreign process
    rounds: int = 99

    @property
    def decodes(self) -> bool:
        return self.generate > 1


TORCH = "torch==2.13.0"  # its CPU build is enough
ENVIRONMENTS = [
    Environment("llama.cpp", ("llama-cpp-python==0.3.36", "gguf==0.19.0")),
    Environment(
        "openvino",
        ("openvino-genai==2026.4.1.0", "optimum-intel==2.2.0", "nncf==3.4.0", TORCH),
        remove=("torchvision",),
    ),
    Environment(
        "onnxruntime",
        ("onnxruntime-genai==0.18.0", "onnx==1.23.2", "onnx-ir==1.1.0", "transformers", TORCH),
    ),
    Environment("executorch", ("executorch==1.5.1", TORCH)),
]

# A system prompt of about a thousand tokens.
TOPICS = "letters numbers dates names places prices units files links quotes lists tables".split()
SYSTEM = "You are a careful assistant of a small library. " + " ".join(
    f"Rule {i + 1}: when someone asks about {topic}, {what}."
    for i, (topic, what) in enumerate(
        (topic, what)
        for what in (
            "first say in one short sentence what you understood",
            "give at most three examples, the simplest one first",
            "name the shelf and the room where more about it can be found",
            "say plainly what you do not know, and whom to ask instead",
        )
        for topic in TOPICS
    )
)

DEEP = "decode 64 at depth 2048"
CONTESTANTS = [
    Contestant("ondevice", "ondevice", "ondevice-int4_g32", "", ("quant.default=int4_g32",)),
    Contestant(
        "ondevice-sym", "ondevice", "ondevice-int4_g32_sym", "", ("quant.default=int4_g32_sym",),
        default=False,
    ),
    Contestant(
        "ondevice-int8", "ondevice", "ondevice-int8_g256", "", ("quant.default=int8_g256",),
        default=False,
    ),
    Contestant(
        "ondevice-kv16", "ondevice", "ondevice-int4_g32-kv16", "",
        ("quant.default=int4_g32", "kv.dtype=f16"), models=("1.1b",), tests=(DEEP,),
    ),
    Contestant("llama.cpp-q4_0", "llama_cpp", "llama.cpp-q4_0", "llama.cpp", ("q4_0",)),
    Contestant(
        "llama.cpp-q4_0-kv8", "llama_cpp", "llama.cpp-q4_0", "llama.cpp", ("q4_0",),
        {"kv": "q8_0"}, default=False,
    ),
    Contestant(
        "llama.cpp-q4_k_m", "llama_cpp", "llama.cpp-q4_k_m", "llama.cpp", ("q4_k_m",),
        default=False,
    ),
    Contestant(
        "llama.cpp-q8_0", "llama_cpp", "llama.cpp-q8_0", "llama.cpp", ("q8_0",), default=False
    ),
    Contestant("llama.cpp-f16", "llama_cpp", "llama.cpp-f16", "llama.cpp", ("f16",), default=False),
    Contestant("openvino", "openvino", "openvino", "openvino"),
    Contestant("onnxruntime", "onnxruntime", "onnxruntime", "onnxruntime"),
    # its export of more layers takes a quarter of an hour and more
    Contestant("executorch", "executorch", "executorch", "executorch", models=("160m", "15m")),
]  # fmt: skip
SHIPPED = Contestant(
    "ondevice-shipped", "ondevice", "ondevice-shipped", "",
    ("quant.default=int4_g32", f"prompt.system={json.dumps(SYSTEM)}"),
)  # fmt: skip
# Beside those chosen, what a perplexity is to be compared with.
SCORED = ("ondevice-sym", "ondevice-kv16", "llama.cpp-f16")
BUILT = ("ondevice", "llama_cpp")  # programs whose conversion of the largest takes under a minute

MODELS = [
    Model("1.1b", "tinyllama-1.1b", 968_884_224, 64),
    Model("160m", "160m", 113_246_208, 64),
    Model("15m", "15m", 5_971_968, 32),
    Model("smollm2", "", 106_168_320, 64, "smollm2-135m-instruct"),
]

PREFILL, DECODE = "prefill 512", "decode 128"
SINGLE = "decode 64, 1 thread"
BUSY_PREFILL, BUSY_DECODE = "prefill 512, busy core", "decode 128, busy core"
TESTS = [
    Test(PREFILL, 512, 1, 2, 5),
    Test(DECODE, 1, 129, 2, 5),
    Test(BUSY_PREFILL, 512, 1, 2, 5, ("smollm2",), busy=True, rounds=2),
    Test(BUSY_DECODE, 1, 129, 2, 5, ("smollm2",), busy=True, rounds=2),
    Test(DEEP, 2048, 65, 2, 1, ("1.1b",), rounds=2),
    Test(SINGLE, 1, 65, 1, 1, ("1.1b",), rounds=2),
    Test("prefill 512, 1 thread", 512, 1, 1, 1, ("1.1b",), rounds=1),
]
CONTEXT_TOKENS = 2048 + 256


def tests_of(model: Model, number: int = 0, contestant: Contestant | None = None) -> list[Test]:
    """What is measured of a model in a round."""
    return [
        test
        for test in TESTS
        if number < test.rounds
        and (not test.models or model.name in test.models)
        and (contestant is None or not contestant.tests or test.name in contestant.tests)
    ]
