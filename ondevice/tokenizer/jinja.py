"""Chat templates as transformers renders them: Jinja in a sandbox, with the same extras."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
from jinja2.parser import Parser

from ondevice.tokenizer.components import TokenizerError

Message = Mapping[str, str]


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what the model has said; it writes its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """json.dumps: the filter of Jinja itself would escape HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


class ChatTemplate:
    """The template of a tokenizer_config.json; `special` are its special tokens by name."""

    def __init__(self, source: str, special: Mapping[str, str]) -> None:
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, jinja2.ext.loopcontrols],
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        self._environment = environment
        try:
            self._template = environment.from_string(source)
            self._tree = environment.parse(source)
            # Strings that the template may look for in a message, such as </think>.
            self.markers = self._find_markers()
        except jinja2.TemplateError as error:
            raise TokenizerError(f"the chat template is no Jinja: {error}") from error
        self._special = dict(special)
        self.knows_thinking = "enable_thinking" in source

    def render(
        self,
        messages: Sequence[Message],
        *,
        generate: bool,
        thinking: bool,
        strftime_now: Callable[[str], str],
    ) -> str | None:
        """The prompt, or None where the template refuses the conversation.

        `thinking=False` sets enable_thinking to false; otherwise it is left undefined.
        """
        self._environment.globals["strftime_now"] = strftime_now
        options = {} if thinking else {"enable_thinking": False}
        try:
            return self._template.render(
                messages=[dict(m) for m in messages],
                tools=None,
                documents=None,
                add_generation_prompt=generate,
                **self._special,
                **options,
            )
        except Exception:  # a template may fail like any program: it has no answer then
            return None

    def _find_markers(self) -> list[str]:
        found: dict[str, None] = {}
        for call in self._tree.find_all(jinja2.nodes.Call):
            if isinstance(call.node, jinja2.nodes.Getattr):
                found |= {a.value: None for a in call.args if isinstance(a, jinja2.nodes.Const)}
        for compare in self._tree.find_all(jinja2.nodes.Compare):
            if isinstance(compare.expr, jinja2.nodes.Const):
                found[compare.expr.value] = None
        return [m for m in found if isinstance(m, str) and m.strip()]
