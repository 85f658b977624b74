"""Count the instructions that a generated token costs on arm64, for ondevice and for llama.cpp.

    python scripts/count_arm_instructions.py --mca llvm-mca-19 --out arm.json

Both programs run the same SmolLM2 checkpoint on one thread under qemu-aarch64, with a plugin that
counts executed instructions. What N and M tokens cost differs by M - N tokens: loading and the
prompt cancel. A count is no time: it says nothing of caches, memory or how many instructions a core
starts per cycle. For the blocks in which each spends most, llvm-mca estimates the cycles on two Arm
cores, as if everything were in the first cache.

Needs qemu-aarch64 (Debian: qemu-user), cmake, ninja, llvm-objdump and llvm-mca (Debian: llvm).
llama.cpp comes from the source distribution of llama-cpp-python and is compiled by zig.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers.contestants import CONTESTANTS, ENVIRONMENTS, MODELS, Contestant
from peers.prepare import Cache, our_version, say
from peers.table import markdown

SOURCES = Path(__file__).resolve().parent / "arm64"
ZIG = [sys.executable, "-m", "ziglang"]
# what is compiled for: dotprod came with Cortex-A76, i8mm with Cortex-X2 and A710
VARIANTS = {"dotprod": "cortex_a76", "i8mm": "cortex_a76+i8mm"}
CORES = ("cortex-a510", "cortex-x2")
PROMPT = "504,4465,253,2777,282,260,905,28"
HOT = 2  # blocks shown for each program
CMAKE_OFF = """BUILD_SHARED_LIBS GGML_OPENMP GGML_NATIVE LLAMA_BUILD_COMMON LLAMA_BUILD_TOOLS
    LLAMA_BUILD_EXAMPLES LLAMA_BUILD_TESTS LLAMA_BUILD_SERVER LLAMA_CURL""".split()


@dataclass(frozen=True)
class Program:
    """Something to count; `{tokens}` in the command stands for how many to generate."""

    name: str
    variant: str
    command: tuple[str, ...]

    @property
    def binary(self) -> Path:
        return Path(self.command[0])


@dataclass(frozen=True)
class Count:
    """Instructions per token, and per block (distance from the start of code, length)."""

    instructions: float
    blocks: list[tuple[int, int, float]]  # distance in bytes, instructions, executions per token


def run(command: Sequence[Any], **options: Any) -> str:
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, **options
    )
    if done.returncode:
        said = (done.stdout + done.stderr)[-2000:]
        sys.exit(f"{command[0]} failed with {done.returncode}:\n{said}")
    return done.stdout


# ---- what is counted ----


def plugin(work: Path) -> Path:
    """The counting plugin, compiled for this machine's QEMU."""
    version = run(["qemu-aarch64", "--version"])
    major = int(re.search(r"version (\d+)", version)[1])  # type: ignore[index]
    interface = 1 if major < 9 else 4
    out = work / "libcount.so"
    flags = ["-O2", "-shared", "-fPIC", f"-DQEMU_PLUGIN_VERSION={interface}"]
    run([*ZIG, "cc", *flags, "-o", out, SOURCES / "count_instructions.c"])
    return out


def llama_sources(work: Path) -> Path:
    """llama.cpp as it lies in the source distribution of llama-cpp-python."""
    pinned = next(e for e in ENVIRONMENTS if e.name == "llama.cpp").packages[0]
    if not (found := list(work.glob("llama_cpp_python-*/vendor/llama.cpp"))):
        say(f"fetching {pinned}")
        options = ["--quiet", "--no-deps", "--no-binary", ":all:", "-d", work]
        run([sys.executable, "-m", "pip", "download", *options, pinned])
        with tarfile.open(next(work.glob("llama_cpp_python-*.tar.gz"))) as archive:
            archive.extractall(work, filter="data")
        found = list(work.glob("llama_cpp_python-*/vendor/llama.cpp"))
    return found[0]


def compiler(work: Path, variant: str, language: str) -> Path:
    """A program that calls zig for arm64: CMake wants one word."""
    path = work / f"zig-{language}-{variant}"
    flags = "" if language in ("ar", "ranlib") else target(variant)
    path.write_text(f'#!/bin/sh\nexec {" ".join(ZIG)} {language} {flags} "$@"\n')
    path.chmod(0o755)
    return path


def target(variant: str) -> str:
    return f"-target aarch64-linux-musl -mcpu={VARIANTS[variant]}"


def llama_build(work: Path, variant: str, target_name: str) -> Path:
    """Where CMake has built a target of llama.cpp, for arm64 and static."""
    build = work / f"build-{variant}"
    tools = {"C_COMPILER": "cc", "CXX_COMPILER": "c++", "AR": "ar", "RANLIB": "ranlib"}
    settings = [f"-D{name}=OFF" for name in CMAKE_OFF]
    settings += [f"-DCMAKE_{k}={compiler(work, variant, v)}" for k, v in tools.items()]
    settings += ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"]
    settings += ["-DCMAKE_BUILD_TYPE=Release"]
    say(f"compiling llama.cpp for arm64 with {variant}")
    run(["cmake", "-G", "Ninja", "-S", llama_sources(work), "-B", build, *settings])
    run(["cmake", "--build", build, "--target", target_name, "-j2"])
    return build


def llama_program(work: Path, variant: str) -> Path:
    """run_llama.c with llama.cpp; which kernels it has is decided when they are compiled."""
    out = work / f"run-llama-{variant}"
    if out.exists():
        return out
    whole = llama_build(work, next(iter(VARIANTS)), "llama")
    kernels = llama_build(work, variant, "ggml")
    includes = [f"-I{llama_sources(work) / folder}" for folder in ("include", "ggml/include")]
    compiled = work / "run_llama.o"
    flags = target(variant).split()
    run([*ZIG, "cc", *flags, "-O2", "-c", *includes, "-o", compiled, SOURCES / "run_llama.c"])
    libraries = [whole / "src/libllama.a"]
    libraries += [kernels / f"ggml/src/libggml{part}.a" for part in ("", "-cpu", "-base")]
    run([*ZIG, "c++", *flags, "-static", "-o", out, compiled, *libraries])
    return out


def programs(cache: Cache, work: Path, prompt: str) -> list[Program]:
    """Ours with two kinds of weights and llama.cpp's Q4_0, for each variant."""
    model = next(model for model in MODELS if not model.preset)
    found = []
    for scheme in ("int4_g32", "int4_g32_sym"):
        bundle = work / f"{scheme}-{our_version()}.bundle"
        if not bundle.exists():
            options = ["--target", "linux-arm64", "--set", f"quant.default={scheme}"]
            checkpoint = ["--model", cache.checkpoint(model), "--out", bundle]
            run(
                [sys.executable, "-m", "ondevice", "build", model.recipe, *options, *checkpoint],
                cwd=work,
            )
        for variant in VARIANTS:
            options = ["--threads", "1", "--tokens", prompt, "--max-tokens", "{tokens}"]
            command = (
                str(bundle / "bin/ondevice-run"),
                str(bundle),
                "--variant",
                variant,
                *options,
            )
            found.append(Program(f"ondevice {scheme}", variant, command))
    gguf = cache.artifact(contestant("llama.cpp-q4_0"), model)
    for variant in VARIANTS:
        command = (str(llama_program(work, variant)), str(gguf), "{tokens}", prompt)
        found.append(Program("llama.cpp Q4_0", variant, command))
    return found


def contestant(name: str) -> Contestant:
    return next(c for c in CONTESTANTS if c.name == name)


# ---- counting ----


def executed(library: Path, program: Program, tokens: int) -> tuple[int, Counter[tuple[int, int]]]:
    """Instructions of one run, and executions of its blocks."""
    out = library.with_name("counted.txt")
    command = [word.format(tokens=tokens) for word in program.command]
    run(["qemu-aarch64", "-cpu", "max", "-plugin", f"{library},out={out}", *command])
    total, *lines = out.read_text().splitlines()
    blocks: Counter[tuple[int, int]] = Counter()
    for line in lines:
        distance, length, executions = map(int, line.split())
        blocks[distance, length] += executions
    return int(total), blocks


def count(library: Path, program: Program, few: int, many: int) -> Count:
    """Per token, from the difference of two runs."""
    (first, before), (second, after) = (executed(library, program, n) for n in (few, many))
    per = many - few
    blocks = [(at, length, (after[at, length] - before[at, length]) / per) for at, length in after]
    whole = joined(sorted(blocks))
    whole.sort(key=lambda block: -block[1] * block[2])
    return Count((second - first) / per, whole[:HOT])


def joined(blocks: Sequence[tuple[int, int, float]]) -> list[tuple[int, int, float]]:
    """Blocks in the order of their addresses, those that QEMU cut in the middle as one."""
    found: list[tuple[int, int, float]] = []
    for at, length, executions in blocks:
        if found and found[-1][2] > 0:
            begin, so_far, often = found[-1]
            if begin + 4 * so_far == at and abs(executions / often - 1) < 0.01:
                found[-1] = (begin, so_far + length, often)
                continue
        found.append((at, length, executions))
    return found


# ---- the blocks that matter ----


def code_start(objdump: str, binary: Path) -> int:
    """Virtual address of the first executable segment, from which QEMU's start of code counts."""
    headers = run([objdump, "--private-headers", binary])
    loads = re.findall(r"LOAD off +\S+ vaddr (\S+) .*\n.*flags (\S+)", headers)
    return next(int(address, 16) for address, flags in loads if "x" in flags)


def assembly(objdump: str, binary: Path, distance: int, length: int) -> list[str]:
    """Instructions of a block without its branches."""
    start = code_start(objdump, binary) + distance
    span = [f"--start-address={start}", f"--stop-address={start + 4 * length}"]
    text = run([objdump, "-d", "--no-show-raw-insn", "--mattr=+all", *span, binary])
    lines = re.findall(r"^ *[0-9a-f]+:\s+(.+)$", text, re.MULTILINE)
    plain = [re.sub(r"\s*(//|<).*", "", line) for line in lines]
    if "" in plain:
        sys.exit(f"{objdump} does not know every instruction: name a later one with --objdump")
    return [line for line in plain if not re.match(r"(b|b\.\w+|bl|blr|br|ret|cbn?z|tbn?z)\s", line)]


def cycles(mca: str, core: str, lines: Sequence[str]) -> float:
    """Cycles of one execution in a long row of them."""
    features = "-mattr=+dotprod,+i8mm,+fullfp16,+bf16"
    command = [mca, "-march=aarch64", f"-mcpu={core}", features, "-iterations=100"]
    text = run(command, input="\n".join(lines) + "\n")
    return int(re.search(r"Total Cycles: +(\d+)", text)[1]) / 100  # type: ignore[index]


def products(lines: Sequence[str]) -> int:
    """8-bit products of a block: 16 of sdot, 32 of smmla."""
    words = Counter(line.split()[0] for line in lines)
    return sum(
        words[w] * n for w, n in (("sdot", 16), ("usdot", 16), ("smmla", 32), ("usmmla", 32))
    )


def hot_rows(program: Program, counted: Count, objdump: str, mca: str) -> list[list[str]]:
    """program, variant, share of all instructions, length, products, cycles per core."""
    rows = []
    for distance, length, executions in counted.blocks:
        lines = assembly(objdump, program.binary, distance, length)
        share = length * executions / counted.instructions
        made = products(lines)
        spent = [cycles(mca, core, lines) for core in CORES]
        rates = [f"{made / c:.1f}" if made else "-" for c in spent]
        cells = [
            f"{100 * share:.0f} %",
            str(length),
            str(made),
            *(f"{c:.0f}" for c in spent),
            *rates,
        ]
        rows.append([program.name, program.variant, *cells])
    return rows


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    home = Path.home() / ".cache" / "ondevice" / "peers"
    shared = SOURCES.parent.parent.parent / "shared"
    parser.add_argument("--cache", type=Path, default=home, help="as of bench_peers.py")
    parser.add_argument("--shared", type=Path, default=shared, help="as of bench_peers.py")
    parser.add_argument("--prompt", default=PROMPT, help="token ids")
    parser.add_argument("--tokens", type=int, nargs=2, default=(4, 12), metavar=("N", "M"))
    parser.add_argument("--objdump", default="llvm-objdump")
    parser.add_argument("--mca", default="llvm-mca", help="19 or later knows both cores")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    given = parser.parse_args()
    for tool in ("qemu-aarch64", "cmake", "ninja", given.objdump, given.mca):
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is not installed; see --help")
    return given


def main() -> None:
    given = arguments()
    cache = Cache(given.cache, given.shared)
    work = cache.root / "arm64"
    work.mkdir(exist_ok=True)
    library = plugin(work)
    counted = {p: count(library, p, *given.tokens) for p in programs(cache, work, given.prompt)}
    theirs = {p.variant: c.instructions for p, c in counted.items() if p.name.startswith("llama")}
    rows = [
        [
            p.name,
            p.variant,
            f"{c.instructions / 1e6:.2f}",
            f"{c.instructions / theirs[p.variant]:.2f}",
        ]
        for p, c in counted.items()
    ]
    print("Instructions per generated token, SmolLM2 135M, one thread, under QEMU:\n")
    print(markdown(["program", "variant", "millions", "ratio to llama.cpp"], rows))
    print("\nBlocks in which each executes most, and llvm-mca's estimate of one execution:\n")
    hot = [row for p, c in counted.items() for row in hot_rows(p, c, given.objdump, given.mca)]
    titles = ["program", "variant", "share", "instructions", "products"]
    titles += [f"{core} cycles" for core in CORES] + [f"{core} products/cycle" for core in CORES]
    print(markdown(titles, hot))
    if given.out:
        figures = [
            {"program": p.name, "variant": p.variant, "instructions_per_token": c.instructions,
             "blocks": c.blocks}
            for p, c in counted.items()
        ]  # fmt: skip
        given.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
