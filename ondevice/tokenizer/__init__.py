"""tokenizer.json to tables, chat templates to segments."""

from ondevice.tokenizer.compile import compile_tokenizer
from ondevice.tokenizer.compiled import CompiledTokenizer, dependencies, unpack
from ondevice.tokenizer.components import TokenizerError

__all__ = [
    "CompiledTokenizer",
    "TokenizerError",
    "compile_tokenizer",
    "dependencies",
    "unpack",
]
