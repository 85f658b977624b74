"""Print token windows of a text as JSON, cut as `ondevice eval` does.

python windows.py CHECKPOINT TEXT BYTES TOKENS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer

from ondevice.gate.perplexity import read_text, windows


def main() -> None:
    checkpoint, text, size, length = *map(Path, sys.argv[1:3]), *map(int, sys.argv[3:5])
    tokens = (
        Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(read_text(text, size)).ids
    )
    print(json.dumps(list(windows(tokens, length, None))))


if __name__ == "__main__":
    main()
