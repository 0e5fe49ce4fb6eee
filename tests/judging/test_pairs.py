"""What is said of pairs of answers: bounds that are exact, and a decision that stopping early does not change."""

from __future__ import annotations

import random
from typing import Any

import pytest
from scipy.stats import beta

from model_release.judging.pairs import SURE, Answer, Pairs, allowed, bounds, distance, least
from model_release.spec import Shadow

SAD, ANGRY = Answer({"sad": 0.9, "angry": 0.1}, 0.02), Answer({"angry": 0.7, "sad": 0.3}, 0.03)
FAILED, REFUSED = Answer({}, fault="failed"), Answer({}, fault="refused")


def pairs(limit: float | None, same: int, changed: int = 0, *, wanted: int | None = None, lost: int = 0) -> Pairs:
    """Pairs of which the changed ones come last."""
    found = Pairs(same + changed + lost if wanted is None else wanted, limit)
    for canary, many in ((ANGRY, same), (SAD, changed), (FAILED, lost)):
        for _ in range(many):
            found.add(".", ANGRY, canary)
    return found


@pytest.mark.parametrize(
    ("changed", "compared"), [(0, 1), (0, 500), (1, 500), (12, 500), (499, 500), (7, 7), (30, 9999)]
)
def test_the_bounds_are_clopper_and_pearsons(changed: int, compared: int) -> None:
    low = beta.ppf(1 - SURE, changed, compared - changed + 1) if changed else 0
    high = beta.ppf(SURE, changed + 1, compared - changed) if changed < compared else 1
    assert bounds(changed, compared) == pytest.approx((low, high), abs=1e-9)


def test_500_pairs_without_a_change_bound_it_below_0_6_percent() -> None:
    assert 0.005 < bounds(0, 500)[1] < 0.006


def test_of_nothing_nothing_is_known() -> None:
    assert bounds(0, 0) == (0, 1)
    assert (allowed(0, 0.5), Pairs(0, 0.5).over, Pairs(0, 0.5).decision) == (-1, True, "few")


@pytest.mark.parametrize("limit", [0.001, 0.01, 0.02, 0.1, 0.5, 0.9])
def test_the_least_number_is_the_first_that_allows_no_change(limit: float) -> None:
    assert (allowed(least(limit), limit), allowed(least(limit) - 1, limit)) == (0, -1)
    # The model file refuses by the same number, which it works out itself: it is parsed without NumPy.
    asked = {"from": "samples", "max_changed": limit}
    assert Shadow.model_validate({**asked, "requests": least(limit)}).requests == least(limit)
    with pytest.raises(ValueError, match=f"requests: {least(limit)} is the least"):
        Shadow.model_validate({**asked, "requests": least(limit) - 1})


@pytest.mark.parametrize(("compared", "limit"), [(500, 0.02), (500, 0.05), (149, 0.02), (2000, 0.3)])
def test_one_more_than_allowed_does_not_show_it(compared: int, limit: float) -> None:
    may = allowed(compared, limit)
    assert bounds(may, compared)[1] <= limit < bounds(may + 1, compared)[1]


def test_stopping_early_decides_as_all_pictures_would() -> None:
    chance = random.Random(1)
    early = 0
    for _ in range(100):
        share = chance.choice([0.0, 0.01, 0.03, 0.1])
        said = [
            (chance.choices([ANGRY, FAILED], [0.95, 0.05])[0], SAD if chance.random() < share else ANGRY)
            for _ in range(200)
        ]
        stopped, whole = Pairs(200, 0.03), Pairs(200, 0.03)
        for stable, canary in said:
            whole.add(".", stable, canary)
            if not stopped.over:
                stopped.add(".", stable, canary)
        assert stopped.decision == whole.decision
        early += stopped.asked < 200
    assert early > 30


@pytest.mark.parametrize(
    ("given", "decision", "sentence"),
    [
        (
            pairs(0.02, 500),
            "within",
            "0 of 500 pictures got another answer than stable's: with 95 % confidence at most 0.6 % of all would, and "
            "2 % may.",
        ),
        (
            pairs(0.02, 488, 9, lost=3),
            "beyond",
            "12 of 500 pictures got another answer than stable's, and 4 of 500 may (a share below 2 % is to be shown); "
            "angry became sad 9 times, the canary gave no answer to 3 pictures.",
        ),
        (
            pairs(0.02, 56, 5, wanted=500),
            "beyond",
            "5 of the first 61 pictures got another answer than stable's, and 4 of 500 may (a share below 2 % is to be "
            "shown); angry became sad 5 times.",
        ),
        (
            pairs(0.02, 40),
            "few",
            "Not shown that less than 2 % of the answers change: stable answered 40 of 40 pictures, and 149 are the "
            "least that can show it. 0 of 40 pictures got another answer than stable's.",
        ),
        (
            pairs(0.02, 10, 30),
            "beyond",
            "30 of 40 pictures got another answer than stable's, and 0 of 40 may (a share below 2 % is to be shown); "
            "angry became sad 30 times.",
        ),
        (
            pairs(None, 99, 1),
            "observed",
            "1 of 100 pictures got another answer than stable's: with 95 % confidence at most 4.7 % of all would; "
            "angry became sad once.",
        ),
    ],
)
def test_the_decision_and_its_sentence(given: Pairs, decision: str, sentence: str) -> None:
    assert given.over
    assert (given.decision, given.sentence) == (decision, sentence)


def test_a_stable_that_gives_no_answers_any_more_is_no_evidence() -> None:
    found = Pairs(500, 0.02)
    for number in range(210):
        found.add(".", ANGRY if number < 200 else FAILED, ANGRY)
    assert found.over
    assert (found.decision, found.won) == ("few", 10)
    assert "stable gave no answer to the last 10 pictures" in found.sentence


def test_a_canary_that_gives_no_answers_any_more_has_failed_whatever_may_change() -> None:
    found = Pairs(500, 0.5)
    for number in range(210):
        found.add(".", ANGRY, ANGRY if number < 200 else FAILED)
    assert found.over
    assert found.decision == "beyond", "if_missing: go must not let it on"
    assert found.sentence.endswith("; the canary gave no answer to the last 10 pictures.")


def test_what_stable_refuses_is_no_pair() -> None:
    found = Pairs(300, 0.02)
    for number in range(300):
        found.add(".", REFUSED if number % 3 == 0 else ANGRY, ANGRY)
    assert (found.asked, found.compared, found.changed, found.won, found.decision) == (300, 200, 0, 100, "within")
    assert found.to_dict()["stable"] == {"answered": 200, "refused": 100, "failed": 0, "p50_ms": 30.0, "p95_ms": 30.0}


def test_the_folder_in_which_most_changed_is_named() -> None:
    found = Pairs(400, 0.05)
    for number in range(400):
        phone = number % 10 == 0
        found.add("phone" if phone else "scan", ANGRY, SAD if phone else ANGRY)
    assert found.sentence.endswith("angry became sad 40 times, 40 of them in phone/.")
    assert found.to_dict()["folders"] == [
        {"folder": "phone", "compared": 40, "changed": 40},
        {"folder": "scan", "compared": 360, "changed": 0},
    ]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"a": 1.0}, {"a": 1.0}, 0.0),
        ({"a": 1.0}, {"b": 1.0}, 1.0),
        ({"a": 0.7, "b": 0.3}, {"b": 0.6, "a": 0.4}, 0.3),
        ({"a": 0.5, "b": 0.2}, {"a": 0.5, "c": 0.2}, 0.0),  # b may have what the other leaves
        ({"a": 0.9, "b": 0.8}, {"a": 0.1, "b": 0.1}, 1.0),  # each label for itself: not more than 1
    ],
)
def test_the_distance_of_two_answers(one: Any, other: Any, expected: float) -> None:
    assert distance(one, other) == pytest.approx(expected)
    assert distance(other, one) == pytest.approx(expected)


def test_the_record_holds_counts_alone() -> None:
    found = pairs(0.02, 488, 9, lost=3).to_dict()
    assert found["became"] == [{"label": "angry", "as": "sad", "count": 9}]
    assert found["distance"] == {"mean": pytest.approx(9 * 0.6 / 497), "largest": pytest.approx(0.6)}
    assert (found["lost"], found["canary"]["failed"], found["folders"]) == (3, 3, [])
    assert (found["lower"], found["upper"]) == bounds(12, 500)
