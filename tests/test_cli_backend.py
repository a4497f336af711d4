"""`ask` and `eval` on a server: the same commands and output, clear sentences when it fails."""

from __future__ import annotations

import json
import sys

import pytest

from fault_server import Body, Dialect, Fault, FaultServer
from forethought.cli.app import main

KEY = "sk-secret"


def says_five(_body: Body, _index: int) -> list[str]:
    return ["<think>", "two and three", "</think>", "It is", " \\boxed{5}"]


def test_ask_on_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    with FaultServer(say=says_five) as server:
        code = main(["ask", "2 + 3?", "--backend", server.url, "--model", "fake", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert (found["answer"], found["finish_reason"]) == ("5", "eos")
    assert found["reasoning"] == "two and three"
    assert found["usage"]["sampled_tokens"] == 5
    assert server.counted.bodies[-1]["model"] == "fake"


def test_eval_on_a_server_measures_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", "--model", "fake", "--task", "sum", "--limit", "6", "--samples", "2"]
    with FaultServer(say=says_five, dialect=Dialect(logprobs=False)) as server:
        code = main([*command, "--backend", server.url, "--concurrency", "2", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert found["num_problems"] == 6
    assert found["mean_tokens"] == 5
    assert found["usage"]["sampled_tokens"] == 6 * 2 * 5
    assert 0 < server.counted.most_at_once <= 2


def test_problems_the_server_fails_on_are_ungraded_and_said_to_be(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from forethought.sampling import openai, retries

    quick = openai.Limits(retries=retries.RetryPolicy(max_retries=1, first_wait_seconds=0.001))
    monkeypatch.setattr(openai, "Limits", lambda **_: quick)  # the same, in less time
    seen: list[str] = []

    def plan(_call: int, body: Body) -> Fault:
        prompt = body["messages"][-1]["content"]
        seen.append(prompt)
        first = next((p for p in seen if p != "Hello"), None)
        return Fault.BROKEN if prompt == first else Fault.NONE

    with FaultServer(plan, say=says_five) as server:
        command = ["eval", "--model", "fake", "--task", "sum", "--limit", "40", "--json"]
        code = main([*command, "--backend", server.url])
    shown = capsys.readouterr()
    assert code == 0
    assert json.loads(shown.out)["num_ungraded"] == 1
    assert "1 requests were given up" in shown.err


def test_a_strategy_under_a_budget_on_a_server_that_fails(
    capsys: pytest.CaptureFixture[str],
) -> None:
    faults = iter([Fault.BUSY, Fault.CUT])

    def plan(_call: int, body: Body) -> Fault:
        is_probe = body["messages"][-1]["content"] == "Hello"
        return Fault.NONE if is_probe else next(faults, Fault.NONE)

    command = ["ask", "2 + 3?", "--strategy", "majority:n=4", "--budget", "400", "--json"]
    command += ["--max-tokens", "20"]
    with FaultServer(plan, say=says_five) as server:
        code = main([*command, "--backend", server.url, "--model", "fake"])
    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert found["answer"] == "5"
    assert found["votes"] == [{"answer": "5", "count": 4, "weight": 4.0}]
    usage, answered = found["usage"], [b for b in server.counted.bodies if "n" in b][-1]
    assert answered["n"] == 4
    assert (usage["num_calls"], usage["num_retries"]) == (1, 2)
    assert (usage["prompt_tokens"], usage["sampled_tokens"]) == (3 + 4 + 2, 20)


def test_what_a_server_does_not_count_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    bare = Dialect(n=False, seed=False, logprobs=False, usage=False)
    command = ["ask", "2 + 3?", "--model", "fake", "--json", "--backend"]
    with FaultServer(say=says_five, dialect=bare) as server:
        assert main([*command, server.url]) == 0
        shown = capsys.readouterr()
        assert json.loads(shown.out)["usage"]["sampled_tokens"] == 0
        assert "the server did not count the tokens of" in shown.err
        assert main([*command, server.url, "--budget", "500"]) == 2
    assert "no budget of tokens can be kept on it" in capsys.readouterr().err


def test_strategies_are_compared_on_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", "--model", "fake", "--task", "sum", "--limit", "4", "--json"]
    command += ["--strategy", "sample", "--strategy", "majority:n=3", "--budget", "64,512"]
    with FaultServer(say=says_five) as server:
        assert main([*command, "--backend", server.url]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["curves"]) == 4
    assert all(row["total_tokens"] <= row["budget"] for row in found["curves"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--backend", "localhost:1"], "give http://HOST:PORT/v1"),
        (["--backend", "http://127.0.0.1:9/v1"], "is a server running at that address?"),
        (["--backend", "http://127.0.0.1:9", "--api-key-env", "NO_KEY"], "NO_KEY is empty"),
        (["--api-key-env", "NO_KEY"], "--api-key-env goes with --backend"),
    ],
)
@pytest.mark.parametrize("verb", [["ask", "2 + 3?"], ["eval", "--task", "sum"]])
def test_a_wrong_backend_is_one_sentence_and_exit_code_2(
    verb: list[str], options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*verb, "--model", "fake", *options]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert words in shown.err
    assert len(shown.err.strip().splitlines()) == 1


def test_a_server_that_wants_a_key_says_how_to_give_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(reply: object) -> object:
        return {"error": {"message": f"no entry for {KEY}"}}

    monkeypatch.setenv("SERVER_KEY", KEY)
    options = ["--api-key-env", "SERVER_KEY"]
    with FaultServer(reply=refuse, status=401) as server:
        command = ["ask", "2 + 3?", "--model", "fake", "--backend", server.url, *options]
        assert main(command) == 2
    shown = capsys.readouterr().err
    assert "HTTP 401, no entry for ***; name the environment variable" in shown
    assert KEY not in shown


def test_without_vllm_or_an_http_client_the_extra_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert main(["ask", "2 + 3?", "--model", "bundled:seedling", "--backend", "vllm"]) == 2
    assert "pip install 'forethought[vllm]'" in capsys.readouterr().err
    monkeypatch.delitem(sys.modules, "forethought.sampling.openai_client", raising=False)
    monkeypatch.setitem(sys.modules, "httpx2", None)
    assert main(["ask", "2 + 3?", "--model", "fake", "--backend", "http://127.0.0.1:9"]) == 2
    assert "pip install 'forethought[openai]'" in capsys.readouterr().err
