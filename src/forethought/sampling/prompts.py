"""From a request to the token ids of its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from forethought.errors import EngineError
from forethought.sampling.stopping import unopened
from forethought.types import Request


def encode_prompt(tokenizer: Any, request: Request) -> tuple[int, ...]:
    """The prompt's token ids: see `encode_prompts`."""
    [prompt] = encode_prompts(tokenizer, [request])
    return prompt


def encode_prompts(tokenizer: Any, requests: Sequence[Request]) -> list[tuple[int, ...]]:
    """The token ids of each request's prompt: given, or from the chat template and the assistant's
    prefix; all texts are encoded together, which a tokenizer does in threads.

    Template and prefix are encoded apart, so that a prefix never changes the tokens before it; a
    think block that the template has opened is not opened again. Raises EngineError when the
    template refuses the messages.
    """
    asked = [i for i, request in enumerate(requests) if request.prompt_ids is None]
    texts: list[tuple[int, str]] = []  # and whose they are
    rendered = _render(tokenizer, [requests[i] for i in asked])
    for i, text in zip(asked, rendered, strict=True):
        prefix = unopened(requests[i].prefix, text)
        texts += [(i, part) for part in (text, prefix) if part]
    found = [list(request.prompt_ids or ()) for request in requests]
    if texts:
        parts = tokenizer([text for _, text in texts], add_special_tokens=False)["input_ids"]
        for (i, _), ids in zip(texts, parts, strict=True):
            found[i] += ids
    return [tuple(ids) for ids in found]


def _render(tokenizer: Any, requests: Sequence[Request]) -> list[str]:
    """The texts of their messages, by the chat template."""
    if not requests:
        return []
    messages = [[dict(message) for message in request.messages or ()] for request in requests]
    try:
        return [
            str(text)
            for text in tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        ]
    except TemplateError as error:
        raise EngineError(f"the model's chat template refuses the messages: {error}") from error
