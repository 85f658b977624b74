"""The C code under the address and undefined sanitizers: damaged files never do harm."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ondevice.codegen.link import MEANING, NATIVE, WARNINGS, runtime_sources
from ondevice.tokenizer import compile_tokenizer
from ondevice.tokenizer.template import ChatTemplate, reduce_template
from ondevice.tokenizer.template_file import pack_table

from .templates import TEMPLATES
from .test_components import BYTES, CHARACTERS, FILES

CLANG = "clang" if shutil.which("clang") else "clang-14"
MUTANTS = 800
TOKENIZERS: dict[str, dict[str, Any]] = {
    "bytes": FILES["flags"],
    "characters": FILES["flags, characters"],
    "metaspace": FILES["metaspace first split"],
    "plain": CHARACTERS,
    "plain bytes": BYTES,
}


@pytest.fixture(scope="session")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which(CLANG) is None:
        pytest.skip("clang is not installed")
    program = tmp_path_factory.mktemp("fuzz") / "fuzz"
    options = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover")
    sources = [Path(__file__).parent / "fuzz.c", *runtime_sources()]
    command = [CLANG, *MEANING, *options, *WARNINGS, "-std=gnu11", "-fhosted", "-pthread"]
    command += ["-Wno-conversion", f"-I{NATIVE}", "-o", str(program), *map(str, sources)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


@pytest.mark.parametrize("name", TOKENIZERS)
def test_mutants(name: str, fuzz: Path, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(TOKENIZERS[name]), encoding="utf-8")
    data, template = tmp_path / "tokenizer.bin", tmp_path / "template.bin"
    data.write_bytes(compile_tokenizer(file).data)
    style = "smollm3, thinking by option" if "bytes" in name else "llama-2"
    template.write_bytes(pack_table(reduce_template(ChatTemplate(*TEMPLATES[style]))[0]))
    command = [str(fuzz), str(data), str(template), "1", str(MUTANTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    opened = int(done.stdout.split()[0])
    assert 0 < opened < MUTANTS
