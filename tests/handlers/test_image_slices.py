"""Slices of the traffic, as the handler counts them: bounded and plain, whatever a client sends."""

from __future__ import annotations

import importlib
from collections import Counter
from typing import Any

import pytest

SURE = Counter({"0.95": 2, "0.40": 1})


def slices(names: str | None = "country") -> Any:
    return importlib.import_module("image_slices").SliceCounter(names)


def values(counted: Any) -> set[str]:
    return {value for _, value, _ in counted}


def test_answers_are_counted_by_what_the_header_says() -> None:
    counted = slices("country,user_group").count({"X-Slice-Country": "fr", "x-slice-user-group": "b.2"}, SURE)
    assert counted == {
        ("country", "fr", "0.95"): 2,
        ("country", "fr", "0.40"): 1,
        ("user_group", "b.2", "0.95"): 2,
        ("user_group", "b.2", "0.40"): 1,
    }


@pytest.mark.parametrize("headers", [{}, {"x-slice-country": ""}, {"x-slice-country": "  "}, {"x-slice-device": "a"}])
def test_a_request_that_says_nothing_is_a_slice_of_its_own(headers: dict[str, str]) -> None:
    assert values(slices().count(headers, SURE)) == {"none"}


@pytest.mark.parametrize(
    "said", ["a b", 'a"}', "a,b", "a|#b", "a\nb", "a:b", "-a", "a" * 41, "é", "[a]", b"\xff\xfe", "\u0661"]
)
def test_what_a_metric_cannot_carry_is_other(said: Any) -> None:
    assert values(slices().count({"x-slice-country": said}, SURE)) == {"other"}


def test_bytes_are_read_as_text() -> None:
    assert values(slices().count({"x-slice-country": b"fr"}, SURE)) == {"fr"}


def test_a_header_with_a_million_values_costs_fifty_of_them() -> None:
    one = slices()
    seen = Counter[tuple[str, str, str]]()
    for number in range(100_000):
        seen += one.count({"x-slice-country": f"c{number}"}, Counter({"0.95": 1}))
    assert len(seen) == 51
    assert seen["country", "other", "0.95"] == 100_000 - 50
    assert len(one._met["country"]) == 50
    assert values(one.count({"x-slice-country": "c49"}, SURE)) == {"c49"}


def test_without_a_list_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODEL_SLICES", raising=False)
    assert not slices(None)
    assert slices(None).count({"x-slice-country": "fr"}, SURE) == {}
    monkeypatch.setenv("MODEL_SLICES", "country")
    assert values(slices(None).count({"x-slice-country": "fr"}, SURE)) == {"fr"}
