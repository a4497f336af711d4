"""System 2 Attention (arXiv 2311.11829): rewrite the question without what misleads, then answer.

What opinion or irrelevance there is in a context sways every token that attends to it, so the model
first writes the context anew and then sees only that. The prompts here say what the paper's say, in
words of our own; `brief` ones are for small models trained to rewrite, such as the bundled one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from forethought.strategies.base import Part, ask, num_sampled, one_of, require_able
from forethought.strategies.guard import find_damage
from forethought.strategies.plain import Sample
from forethought.types import Message, Problem, Purpose, Request, Solution, Steps, Strategy

_FIELDS = re.compile(
    r"unbiased text context[^:\n]*:(?P<context>.*?)question/query[^:\n]*:(?P<question>.*)",
    re.IGNORECASE | re.DOTALL,
)
_UNBIASED = "Answer in a way that is free of opinion and bias, and not swayed by what others think."
VARIANTS = ("two_step", "single", "keep_original", "no_debias", "instructed", "relevance")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """What is asked: `split`, `whole` and `relevance` for the rewrite, of {text}; `answer` after
    it, of {question}; `both` with the original kept, of {original} and {question}; `instructed`
    with no rewrite, of {text}; `plain` without any instruction, of {question}."""

    split: str
    whole: str
    relevance: str
    answer: str
    both: str
    instructed: str
    plain: str = "{question}"


PROMPTS: Mapping[str, Prompts] = {
    "standard": Prompts(
        split=(
            "Below is a text that a user wrote. Take from it only what is unbiased and is not "
            "anybody's opinion, so that it can serve as context for an unbiased answer to what the "
            "text asks. Include the question that the user actually asks, without its bias. Give "
            'it in two parts, labelled "Unbiased text context (all content except user\'s bias):" '
            'and "Question/Query (no user bias):".\n\nText by the user: {text}'
        ),
        whole=(
            "Rewrite the text below, which a user wrote, so that what remains is unbiased and is "
            "not anybody's opinion. Keep the question that it asks, and everything needed to "
            "answer it. Write nothing but the new text.\n\nText by the user: {text}"
        ),
        relevance=(
            "Rewrite the text below without what has nothing to do with the question that it asks. "
            "Keep that question, and everything needed to answer it, word for word. Write nothing "
            "but the new text.\n\nText by the user: {text}"
        ),
        answer="{question}\n\n" + _UNBIASED,
        both="{original}\n\nThe same without bias:\n{question}\n\n" + _UNBIASED,
        instructed="{text}\n\n" + _UNBIASED,
    ),
    "brief": Prompts(
        split="Rewrite without what is irrelevant: {text}",
        whole="Rewrite without what is irrelevant: {text}",
        relevance="Rewrite without what is irrelevant: {text}",
        answer="{question}",
        both="{original} {question}",
        instructed="Leave out what is irrelevant. {text}",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class System2Attention:
    """Rewrite the last message of the user, then let `inner` answer what is left.

    `variant`: two_step parts context and question; single rewrites the whole; keep_original shows
    both texts; no_debias adds no instruction to the answer; instructed adds it and rewrites
    nothing; relevance drops what is irrelevant rather than what is biased. With `guard` a rewrite
    whose numbers or names did not survive gives way to the original. The rewrite is greedy.
    """

    variant: str = "two_step"
    prompts: str = "standard"
    guard: bool = True
    inner: Strategy | None = None

    def __post_init__(self) -> None:
        one_of("variant", self.variant, VARIANTS)
        one_of("prompts", self.prompts, tuple(PROMPTS))

    def solve(self, problem: Problem) -> Steps:
        require_able(self.inner, problem.capabilities)
        prompts, text = PROMPTS[self.prompts], problem.messages[-1]["content"]
        discarded = 0
        if self.variant == "instructed":
            asked = prompts.instructed.replace("{text}", text)
        else:
            rewritten, discarded = yield from self._rewrite(problem, text)
            asked = text if rewritten is None else self._question(text, rewritten)
        inner = self.inner or Sample()
        found: Solution = yield from inner.solve(_with_last(problem, asked))
        return replace(found, discarded_tokens=found.discarded_tokens + discarded)

    def _rewrite(self, problem: Problem, text: str) -> Part[tuple[str | None, int]]:
        """The text written anew, None when it cannot be used, and how many tokens that threw
        away."""
        prompts = PROMPTS[self.prompts]
        templates = {"single": prompts.whole, "relevance": prompts.relevance}
        asked = templates.get(self.variant, prompts.split).replace("{text}", text)
        params = replace(problem.params, temperature=0.0, n=1, stop_at_boxed=False)
        completions = yield from ask(
            Request(
                messages=_with_last(problem, asked).messages,
                params=params,
                purpose=Purpose.REWRITE,
            )
        )
        if not completions:
            return None, 0
        rewritten = read_rewrite(completions[0].text)
        is_broken = completions[0].finish_reason.is_truncated or not rewritten
        if is_broken or (self.guard and find_damage(text, rewritten) is not None):
            return None, num_sampled(completions)
        return rewritten, 0

    def _question(self, original: str, rewritten: str) -> str:
        prompts = PROMPTS[self.prompts]
        if self.variant == "keep_original":
            return prompts.both.replace("{original}", original).replace("{question}", rewritten)
        plain = self.variant in ("no_debias", "relevance")
        return (prompts.plain if plain else prompts.answer).replace("{question}", rewritten)


def read_rewrite(text: str) -> str:
    """Context and question of a rewrite in two labelled parts, or all of it when it has none;
    without any thinking."""
    text = text.rpartition("</think>")[2]
    if match := _FIELDS.search(text):
        parts = (match["context"].strip(), match["question"].strip())
        return "\n\n".join(part for part in parts if part)
    return text.strip()


def _with_last(problem: Problem, content: str) -> Problem:
    *before, last = problem.messages
    message = Message(role=last["role"], content=content)
    return replace(problem, messages=(*before, message))
