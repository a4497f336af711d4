"""The vLLM engine against the local one, on SmolLM2: same prompts, same greedy ids, same rules."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
import torch

from forethought.models.heads import token_logprobs
from forethought.models.load import LoadedModel, load_model
from forethought.sampling.local import LocalEngine
from forethought.types import Completion, Request, SamplingParams
from vllm_peer import CONTEXT, PYTHON, ROOT, environment, smollm2_folder

pytestmark = pytest.mark.integration

FREE = {"stop_at_boxed": False, "detect_loops": False, "max_tokens": 16}
GREEDY = FREE | {"temperature": 0.0}
ASKED: dict[str, dict[str, Any]] = {
    "greedy": {"text": "What is 17 + 25?", "params": GREEDY},
    "prefixed": {"text": "What is 2 + 3?", "prefix": "The answer is", "params": GREEDY},
    "stopped": {"text": "Name three colours.", "params": GREEDY | {"stop": [" the", "."]}},
    "boxed": {
        "text": "What is 2 + 3?",
        "prefix": "\\boxed{5",
        "params": {"max_tokens": 200, "temperature": 0.0},
    },
    "warm": {"text": "Tell a story.", "params": FREE | {"temperature": 0.7, "n": 4, "seed": 3}},
    "sure": {"text": "What is 2 + 3?", "params": GREEDY | {"top_logprobs": 5}},
    "unsure": {
        "text": "Tell a story.",
        "params": FREE | {"top_logprobs": 5, "min_confidence": 1e9, "confidence_window": 3},
    },
    "late": {"text": "Tell a story.", "params": FREE | {"max_seconds": 1e-9}},
}


def request_of(asked: dict[str, Any]) -> Request:
    params = {k: tuple(v) if k == "stop" else v for k, v in asked["params"].items()}
    return Request(
        messages=({"role": "user", "content": asked["text"]},),
        prefix=asked.get("prefix", ""),
        params=SamplingParams(**params),
    )


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(str(smollm2_folder()), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def local(loaded: LoadedModel) -> dict[str, list[Completion]]:
    engine = LocalEngine(loaded.model, loaded.tokenizer)
    groups = engine.generate([request_of(asked) for asked in ASKED.values()])
    return dict(zip(ASKED, groups, strict=True))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("vllm")
    entries = [
        {
            "messages": [{"role": "user", "content": asked["text"]}],
            "prefix": asked.get("prefix", ""),
            "params": asked["params"],
        }
        for asked in ASKED.values()
    ]
    (folder / "asked.json").write_text(json.dumps(entries), encoding="utf-8")
    command = [str(PYTHON), str(ROOT / "tests" / "vllm_samples.py"), str(smollm2_folder())]
    command += [str(CONTEXT), "asked.json", "found.json"]
    with (folder / "log").open("wb") as log:
        code = subprocess.run(
            command,
            cwd=folder,
            env=environment(PYTHONPATH=str(ROOT / "src")),
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=500,
        ).returncode
    assert code == 0, (folder / "log").read_text(errors="replace")[-3000:]
    written: dict[str, Any] = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    return written


@pytest.fixture(scope="module")
def vllm(found: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    return dict(zip(ASKED, found["groups"], strict=True))


@pytest.mark.parametrize("name", ["greedy", "prefixed", "stopped", "boxed", "sure"])
def test_greedy_completions_are_those_of_the_local_engine(
    name: str, vllm: dict[str, list[dict[str, Any]]], local: dict[str, list[Completion]]
) -> None:
    [mine], [theirs] = local[name], vllm[name]
    assert theirs["prompt_ids"] == list(mine.prompt_ids)
    assert theirs["token_ids"] == list(mine.token_ids)
    assert theirs["text"] == mine.text
    assert theirs["finish_reason"] == mine.finish_reason.value
    assert theirs["logprobs"] == pytest.approx(mine.logprobs, abs=1e-3)
    assert theirs["confidences"] == pytest.approx(mine.confidences, abs=1e-2)
    assert theirs["usage"]["sampled_tokens"] == mine.usage.sampled_tokens


def test_log_probabilities_are_those_of_the_distribution_sampled_from(
    vllm: dict[str, list[dict[str, Any]]], loaded: LoadedModel
) -> None:
    for completion in vllm["warm"]:
        prompt, ids = completion["prompt_ids"], completion["token_ids"]
        row = torch.tensor([prompt + ids])
        places = torch.arange(len(prompt) - 1, len(prompt) + len(ids) - 1)
        with torch.inference_mode():
            expected = token_logprobs(loaded.model, row, places, torch.tensor(ids), 0.7)
        assert completion["logprobs"] == pytest.approx(expected.tolist(), abs=2e-3)


def test_siblings_differ_and_come_again(
    vllm: dict[str, list[dict[str, Any]]], found: dict[str, Any]
) -> None:
    ids = [completion["token_ids"] for completion in vllm["warm"]]
    assert len({tuple(row) for row in ids}) == 4
    assert found["again"][list(ASKED).index("warm")] == ids


def test_a_completion_ends_by_our_rules(vllm: dict[str, list[dict[str, Any]]]) -> None:
    [unsure], [late] = vllm["unsure"], vllm["late"]
    assert unsure["finish_reason"] == "aborted"
    assert unsure["usage"]["cancelled_tokens"] == len(unsure["token_ids"]) == 3
    assert late["finish_reason"] == "budget"
    assert len(late["token_ids"]) < 16


def test_it_counts_and_tells_as_the_local_engine_does(
    found: dict[str, Any], vllm: dict[str, list[dict[str, Any]]]
) -> None:
    assert found["heard"] == sorted(
        index for index, group in enumerate(found["groups"]) for _ in group
    )
    texts = {
        f"{index}/{sibling}": completion["text"]
        for index, group in enumerate(found["groups"])
        for sibling, completion in enumerate(group)
    }
    assert found["told"] == {name: text for name, text in texts.items() if text}
    assert found["prompts"] == [len(group[0]["prompt_ids"]) for group in found["groups"]]
    assert found["capabilities"]["context"] == CONTEXT
    assert [c["usage"]["num_calls"] for c in vllm["warm"]] == [1, 0, 0, 0]
