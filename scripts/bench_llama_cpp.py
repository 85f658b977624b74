"""Time a bundle against llama.cpp on the same model, in turn, and print the ratios.

    python -m venv llama && llama/bin/pip install --no-binary llama-cpp-python llama-cpp-python
    python scripts/bench_llama_cpp.py BUNDLE MODEL.gguf --python llama/bin/python --rounds 5

Each round starts a fresh process of each, ours first in even rounds. Prefill is 512 tokens, decode
128 tokens from an empty context; figures are medians, ratios are medians of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from statistics import median

PREFILL_TOKENS = 512
DECODE_TOKENS = 128
WARM_TOKENS = 16

OURS = """
import json, sys
from ondevice.runtime.engine import Engine
bundle, threads, prefill, decode, warm = sys.argv[1], *map(int, sys.argv[2:])
with Engine(bundle, threads=threads) as engine:
    def run(first, count, generate):
        with engine.conversation() as conversation:
            tokens = [(i * 7919) % 30000 + first for i in range(count)]
            list(conversation.generate_tokens(tokens, max_tokens=generate, stop_tokens=()))
            return conversation.stats
    run(5, 2, warm)
    print(json.dumps([prefill / run(7, prefill, 1).first_token_ms * 1e3,
                      run(9, 1, decode).tokens_per_second]))
"""

THEIRS = """
import json, sys, time
from llama_cpp import Llama
path, threads, prefill, decode, warm = sys.argv[1], *map(int, sys.argv[2:])
model = Llama(path, n_ctx=2048, n_batch=512, n_ubatch=512, n_threads=threads,
              n_threads_batch=threads, verbose=False)
def timed(batches):
    model.reset()
    start = time.perf_counter()
    for batch in batches:
        model.eval(batch)
    return sum(map(len, batches)) / (time.perf_counter() - start)
tokens = [(i * 7919) % 30000 + 5 for i in range(max(prefill, decode))]
timed([[t] for t in tokens[:warm]])
print(json.dumps([timed([tokens[:prefill]]), timed([[t] for t in tokens[:decode]])]))
"""


def measure(python: str, source: str, model: str, threads: int) -> list[float]:
    """[prefill, decode] in tokens per second, by a process of its own."""
    sizes = map(str, (threads, PREFILL_TOKENS, DECODE_TOKENS, WARM_TOKENS))
    command = [python, "-c", source, model, *sizes]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{python} failed with {done.returncode}:\n{done.stderr[-2000:]}")
    figures: list[float] = json.loads(done.stdout)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle")
    parser.add_argument("gguf")
    parser.add_argument("--python", required=True, help="an interpreter with llama-cpp-python")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows: dict[str, list[list[float]]] = {"ondevice": [], "llama.cpp": []}
    contestants = [
        ("ondevice", sys.executable, OURS, given.bundle),
        ("llama.cpp", given.python, THEIRS, given.gguf),
    ]
    for number in range(given.rounds):
        for name, python, source, model in contestants[:: -1 if number % 2 else 1]:
            rows[name].append(measure(python, source, model, given.threads))
    if given.json:
        print(json.dumps(rows))
        return
    for i, test in enumerate((f"pp{PREFILL_TOKENS}", f"tg{DECODE_TOKENS}")):
        ours, theirs = ([row[i] for row in rows[name]] for name in rows)
        ratio = median(a / b for a, b in zip(ours, theirs, strict=True))
        print(
            f"{test}: ondevice {median(ours):.0f} t/s, llama.cpp {median(theirs):.0f} t/s, "
            f"ratio {ratio:.2f}"
        )


if __name__ == "__main__":
    main()
