"""tokenizer.json to tables, chat templates to segments."""

from ondevice.tokenizer.compile import CompiledTokenizer, compile_tokenizer
from ondevice.tokenizer.components import TokenizerError

__all__ = ["CompiledTokenizer", "TokenizerError", "compile_tokenizer"]
