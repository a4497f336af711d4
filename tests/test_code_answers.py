"""Code answers: read out of completions, joined to a prompt, and compared by value and type."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forethought.grading.child.values import UnsupportedType, decode, encode
from forethought.grading.code import (
    extract_code,
    extract_continuation,
    join_code,
    same_output,
    same_value,
)
from forethought.types import GradeStatus

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
        | st.frozensets(st.integers() | st.text(), max_size=4)
    ),
    max_leaves=12,
)


@given(plain)
def test_encoding_keeps_value_and_type(value: object) -> None:
    data = json.loads(json.dumps(encode(value)))
    assert repr(decode(data)) == repr(value) or decode(data) == value
    assert same_value(encode(value), data)


@given(plain, plain)
def test_values_agree_only_when_equal_type_by_type(one: object, other: object) -> None:
    if same_value(encode(one), encode(other)):
        assert type(one) is type(other)
        assert repr(one) == repr(other) or one == other


@pytest.mark.parametrize(
    ("expected", "found", "agree"),
    [
        (1, True, False),
        (1, 1.0, False),
        (0, "0", False),
        (0.3, 0.1 + 0.2, True),
        (0.3, 0.3001, False),
        (float("nan"), float("nan"), True),
        ([1, 2], [2, 1], False),
        ((1, 2), [1, 2], False),
        ({1, 2}, {2, 1}, True),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ({"a": 1}, {"a": 2}, False),
        (None, 0, False),
        ([], [[]], False),
    ],
)
def test_what_counts_as_the_same(expected: object, found: object, agree: bool) -> None:
    assert same_value(encode(expected), encode(found)) is agree


def test_json_has_no_tuples() -> None:
    assert same_value(encode([[1], 2]), encode(([1], 2)), from_json=True)
    assert not same_value(encode([1, 2]), encode({1, 2}), from_json=True)


def test_colliding_keys_cost_no_time() -> None:
    """Integers of one hash would take a dict minutes; they are compared as text."""
    modulus = 2**61 - 1
    found = {"set": [{"int": hex(number * modulus)} for number in range(30_000)]}
    began = time.perf_counter()
    assert not same_value(encode(set(range(30_000))), found)
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize("data", [{}, {"int": "x"}, {"set": [[]]}, {"dict": [1]}, {"eval": "1"}])
def test_what_is_no_encoded_value_is_refused(data: object) -> None:
    with pytest.raises(UnsupportedType):
        decode(data)


def test_output_may_differ_in_spaces_at_the_end_only() -> None:
    assert same_output("1 2\n3", "1 2 \n3\n\n")
    assert not same_output("1 2", "1  2")
    assert not same_output("1\n2", "1\n\n2")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("```python\nx = 1\n```", "x = 1"),
        ("so\n```py\nx = 1\n```\nor better\n```Python\nx = 2\n```\nprints\n```\n2\n```", "x = 2"),
        ("```\nx = 1\n```", "x = 1"),
        ("~~~python\nx = '```'\n~~~", "x = '```'"),
        ("<think>```python\nx = 1\n```</think>```python\nx = 2\n```", "x = 2"),
        ("```python\nx = 1\n```\n```bash\nls\n```", "x = 1"),
    ],
)
def test_the_last_python_block_is_the_answer(text: str, answer: str) -> None:
    assert extract_code(text).answer == answer


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("", GradeStatus.NO_ANSWER),
        ("x = 1", GradeStatus.NO_ANSWER),
        ("```python\nx = 1", GradeStatus.NO_ANSWER),
        ("```python\nx = 1\n```\n```python\nx = 2", GradeStatus.NO_ANSWER),
        ("```python\n\n```", GradeStatus.NO_ANSWER),
        ("```python\n" + "x" * 10**7 + "\n```", GradeStatus.NO_ANSWER),
        ("```json\n{}\n```", GradeStatus.NO_ANSWER),
        ("<think>```python\nx = 1\n```", GradeStatus.UNCLOSED_THINK),
        ("```python\nx = 1\n```</think>", GradeStatus.NO_ANSWER),
    ],
)
def test_without_a_closed_block_there_is_no_answer(text: str, status: GradeStatus) -> None:
    found = extract_code(text)
    assert (found.answer, found.status) == (None, status)


@given(st.text(alphabet="`~pyth\n x<>/ink"))
def test_reading_code_never_raises(text: str) -> None:
    for found in (extract_code(text), extract_code(text, opened=True), extract_continuation(text)):
        assert (found.answer is None) != (found.status is None)


def test_a_continuation_ends_where_the_function_does() -> None:
    text = "    y = x\n\n    return y\n\ndef other(): pass\n    z = 1"
    assert extract_continuation(text).answer == "    y = x\n\n    return y\n"
    assert extract_continuation("def other(): pass").status is GradeStatus.NO_ANSWER


def test_future_imports_come_first() -> None:
    joined = join_code("import math\n", "from __future__ import annotations\nx = 1")
    assert joined.splitlines() == ["from __future__ import annotations", "import math", "x = 1"]
