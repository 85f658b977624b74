"""Which special token a tokenizer puts in front of a text."""

from __future__ import annotations

from tokenizers import Tokenizer

from ondevice.errors import CheckpointError


def leading_token(tokenizer_json: bytes) -> int | None:
    """The id of the token that tokenizer.json puts before every text, None where it puts none.

    Found by asking the tokenizer itself: config.json names a bos_token_id for many models that
    were trained without one. Raises CheckpointError where tokenizer.json cannot be read.
    """
    try:
        tokenizer = Tokenizer.from_buffer(tokenizer_json)
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"cannot read tokenizer.json: {error}") from error
    whole, bare = (tokenizer.encode("a", add_special_tokens=flag).ids for flag in (True, False))
    return int(whole[0]) if whole[:1] != bare[:1] else None
