"""From a request to the token ids of its prompt."""

from __future__ import annotations

from itertools import chain
from typing import Any

from jinja2 import TemplateError

from forethought.errors import EngineError
from forethought.sampling.stopping import unopened
from forethought.types import Request


def encode_prompt(tokenizer: Any, request: Request) -> tuple[int, ...]:
    """The prompt's token ids: given, or from the chat template and the assistant's prefix.

    The two are encoded apart, so that a prefix never changes the tokens before it; a think block
    that the template has opened is not opened again. Raises EngineError when the template refuses
    the messages.
    """
    if request.prompt_ids is not None:
        return request.prompt_ids
    messages = [dict(message) for message in request.messages or ()]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise EngineError(f"the model's chat template refuses the messages: {error}") from error
    prefix = unopened(request.prefix, str(text))
    # not as a list, which is encoded in threads: two short texts are not worth waking them
    parts = (tokenizer(x, add_special_tokens=False)["input_ids"] for x in (text, prefix) if x)
    return tuple(chain.from_iterable(parts))
