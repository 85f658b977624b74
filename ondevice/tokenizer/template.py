from __future__ import annotations
from pathlib import Path
from typing import Any
from collections.abc import Mapping
def compile_template(config: Mapping[str, Any], directory: Path) -> tuple[bytes | None, str, list[str]]:
    return None, config.get("chat_template") or "", []
