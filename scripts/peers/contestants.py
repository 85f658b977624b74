"""Who is measured on what."""

from __future__ import annotations

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
    """Where nothing is generated but the token behind the prompt, the prompt is timed."""

    name: str
    prompt: int
    generate: int
    threads: int
    reps: int
    models: tuple[str, ...] = ()  # none: all

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
]

CONTESTANTS = [
    Contestant("ondevice", "ondevice", "ondevice-int4_g32", "", ("quant.default=int4_g32",)),
    Contestant(
        "ondevice-sym", "ondevice", "ondevice-int4_g32_sym", "", ("quant.default=int4_g32_sym",)
    ),
    Contestant(
        "ondevice-int8", "ondevice", "ondevice-int8_g32", "", ("quant.default=int8_g32",),
        default=False,
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
    Contestant("openvino", "openvino", "openvino", "openvino"),
    Contestant("onnxruntime", "onnxruntime", "onnxruntime", "onnxruntime"),
]  # fmt: skip

MODELS = [
    Model("1.1b", "tinyllama-1.1b", 968_884_224, 64),
    Model("160m", "160m", 113_246_208, 64),
    Model("15m", "15m", 5_971_968, 32),
    Model("smollm2", "", 106_168_320, 64, "smollm2-135m-instruct"),
]

TESTS = [
    Test("prefill 512", 512, 1, 2, 5),
    Test("decode 128", 1, 129, 2, 5),
    Test("decode 128 at depth 2048", 2048, 129, 2, 1, ("1.1b",)),
    Test("prefill 512, 1 thread", 512, 1, 1, 1, ("1.1b",)),
    Test("decode 128, 1 thread", 1, 129, 1, 1, ("1.1b",)),
]
CONTEXT_TOKENS = 2048 + 256


def tests_of(model: Model) -> list[Test]:
    return [test for test in TESTS if not test.models or model.name in test.models]
