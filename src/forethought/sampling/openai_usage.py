"""Completions of what a server replied, with its own count of tokens shared out among them."""

from __future__ import annotations

from forethought.grading.answers import THINK_CLOSE, THINK_OPEN, split_think
from forethought.sampling.openai_client import Tries
from forethought.sampling.openai_reply import Choice, Reply, share
from forethought.types import Completion, FinishReason, Request, Usage


def completions_of(
    reply: Reply, request: Request, num_siblings: int, tries: Tries, *, is_again: bool
) -> list[Completion]:
    """One completion for each sibling, or for the first of them when the server sent fewer.

    What the siblings share goes to the first: the call (a retry when `is_again`, as an earlier one
    brought too few), the prompt, the seconds, and the tokens of choices beyond those asked for,
    which are discarded.
    """
    prompt_tokens = reply.counts.prompt or len(reply.prompt_ids)
    tokens = _by_choice(reply)
    kept = reply.choices[:num_siblings]
    found = []
    for place, choice in enumerate(kept):
        surplus = sum(tokens[len(kept) :]) if place == 0 else 0
        aborted = tokens[place] if choice.finish_reason is FinishReason.ABORTED else 0
        usage = Usage(
            sampled_tokens=tokens[place] + surplus,
            reasoning_tokens=_reasoning(choice, tokens[place], request.prefix, reply),
            discarded_tokens=aborted + surplus,
            cancelled_tokens=aborted,
            peak_context=prompt_tokens + tokens[place],
        )
        if place == 0:
            usage += Usage(
                prompt_tokens=prompt_tokens,
                cached_tokens=min(reply.counts.cached or 0, prompt_tokens),
                seconds=tries.seconds,
            )
            usage += _calls(tries, is_again=is_again)
        found.append(
            Completion(
                prompt_ids=reply.prompt_ids,
                token_ids=choice.token_ids,
                logprobs=choice.logprobs,
                text=choice.text,
                finish_reason=choice.finish_reason,
                usage=usage,
                confidences=choice.confidences,
            )
        )
    return found


def without_tokens(
    reason: FinishReason, num_siblings: int, tries: Tries, *, is_again: bool
) -> list[Completion]:
    """Completions that never came; `tries` may be none."""
    return [
        Completion(
            prompt_ids=(),
            token_ids=(),
            logprobs=(),
            text="",
            finish_reason=reason,
            usage=Usage() if place else _calls(tries, is_again=is_again),
        )
        for place in range(num_siblings)
    ]


def _calls(tries: Tries, *, is_again: bool) -> Usage:
    """One call and its retries; all are retries when an earlier call brought too few."""
    num_calls = 0 if is_again else min(1, tries.count)
    return Usage(num_calls=num_calls, num_retries=tries.count - num_calls)


def _by_choice(reply: Reply) -> list[int]:
    """Sampled tokens of each choice: they add up to the server's count where there is one."""
    known = [choice.num_tokens for choice in reply.choices]
    total = reply.counts.sampled
    each = [count for count in known if count is not None]
    if total is None:
        return [count or 0 for count in known]
    if len(each) == len(known) and sum(each) == total:
        return each
    return share(total, [len(choice.text) for choice in reply.choices])


def _reasoning(choice: Choice, num_tokens: int, prefix: str, reply: Reply) -> int:
    """Tokens of the think block: the server's count where it is of this choice alone, else the
    block's share of the text."""
    if len(reply.choices) == 1 and reply.counts.reasoning is not None:
        return min(reply.counts.reasoning, num_tokens)
    is_open = prefix.rfind(THINK_OPEN) > prefix.rfind(THINK_CLOSE)
    text = THINK_OPEN + choice.text if is_open else choice.text
    _, visible = split_think(text)
    return share(num_tokens, [len(text) - len(visible), len(visible)])[0] if text else 0
