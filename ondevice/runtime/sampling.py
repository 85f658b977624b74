"""How to choose tokens: od_sampling of ondevice.h, which says what each field does and where it
comes from. The C runtime checks the values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Sampling:
    """The defaults take the likeliest token each time.

    `temperature` 0 is greedy and skips the filters. The filters keep, in this order: `top_k`
    likeliest tokens (0: all), `top_p` of the probability, what is at least `min_p` times as likely
    as the likeliest, `typical_p` of the probability closest to the entropy.

    `repetition_penalty` looks at the last `penalty_tokens` of the conversation (0: all of them),
    `presence_penalty` and `frequency_penalty` at those of them that this answer has generated.
    `logit_bias` is added to the logits of tokens by their numbers.

    The answer ends before one of the strings `stop` or the tokens `stop_tokens` (None: those of the
    model), or after `timeout_s` seconds. `logprobs` are wanted of each generated token (0) and also
    of the n likeliest (n, at most 20); None: of none. Same `seed`, same tokens: on every device.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_tokens: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] | None = None
    logprobs: int | None = None
    timeout_s: float | None = None


GREEDY = Sampling()


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural logarithms of probabilities under the model's own distribution, before sampling.

    `top` holds (token, logprob), the likeliest first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
