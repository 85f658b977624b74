"""Reading config.json strictly: a key that nobody understands may change the architecture."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from ondevice.errors import CheckpointError

# Keys that say nothing about what a step computes: bookkeeping, training, generation.
HARMLESS_KEYS = frozenset(
    """
    _name_or_path architectures attention_dropout bos_token_id dtype embd_pdrop eos_token_id
    id2label initializer_range is_llama_config label2id max_window_layers model_type pad_token_id
    pretraining_tp resid_pdrop torch_dtype transformers_version unk_token_id use_cache
    """.split()
)


class ConfigReader:
    """Hands out values of config.json and remembers which keys were read.

    `file` names the place in error messages. All methods raise CheckpointError.
    """

    def __init__(self, config: Mapping[str, object], file: str = "config.json") -> None:
        self._config = config
        self._file = file
        self._read: set[str] = set()

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive integer of at most 31 bits; without a default it must be there."""
        value = self._get(key, default)
        if type(value) is not int or not 0 < value < 2**31:
            raise self._wrong(key, value, "a positive integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive finite number, as float; without a default it must be there."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, value, "a number")
        if not 0 < value <= sys.float_info.max:
            raise self._wrong(key, value, "a positive number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def section(self, key: str) -> ConfigReader | None:
        """The object at `key`, or None where there is none."""
        self._read.add(key)
        value = self._config.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self._wrong(key, value, "an object")
        return ConfigReader(value, f"{self._file}: {key}")

    def text(self, key: str, default: str) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def require(self, key: str, *allowed: object) -> None:
        """`key` is absent or one of `allowed`: this family supports nothing else."""
        self._read.add(key)
        value = self._config.get(key, allowed[0])
        if not any(type(value) is type(a) and value == a for a in allowed):
            known = " or ".join(map(repr, allowed))
            raise self._wrong(key, value, f"{known}; nothing else is supported")

    def require_present(self, key: str, *allowed: object) -> None:
        """Like `require`, for a key whose absence means something that is not supported."""
        if key not in self._config:
            raise CheckpointError(f"{self._file}: the key {key!r} is missing")
        self.require(key, *allowed)

    def full_attention(self, key: str) -> None:
        """`key` is absent or lists "full_attention" for every layer."""
        self._read.add(key)
        kinds = self._config.get(key)
        if kinds is not None and (
            not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds)
        ):
            raise self._wrong(key, kinds, '"full_attention" for every layer')

    def ignore(self, *keys: str) -> None:
        """These keys mean nothing given the values read so far."""
        self._read.update(keys)

    def finish(self) -> None:
        """Refuse keys that nobody read."""
        unknown = sorted(set(self._config) - self._read - HARMLESS_KEYS)
        if unknown:
            raise CheckpointError(
                f"{self._file}: unknown key {', '.join(map(repr, unknown))} may change what the "
                "model computes; remove it if it does not"
            )

    def _get(self, key: str, default: object) -> object:
        self._read.add(key)
        value = self._config.get(key)  # null means absent, as transformers reads it
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(f"{self._file}: the key {key!r} is missing")
        return value

    def _wrong(self, key: str, value: object, wanted: str) -> CheckpointError:
        return CheckpointError(f"{self._file}: {key} = {value!r} must be {wanted}")
