"""What answers say: held against scipy, against sums that must come out, and against cases counted by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from model_release.build import evaluate
from model_release.build.evaluation.answers import Subject
from model_release.build.evaluation.gates import check_limits, gates, percent, some
from model_release.build.evaluation.images import LabelledImages
from model_release.build.evaluation.measures import (
    BINS,
    LARGEST_SQUARE,
    LISTED,
    Answer,
    calibration,
    comparison,
    mcnemar,
    measures,
    skipped,
)
from model_release.build.evaluation.picture import confusion_png
from model_release.errors import SpecError
from model_release.spec import Evaluation

LABELS = ("cat", "dog", "cow")
COUNTS = st.integers(0, 400)

answer = st.one_of(
    st.builds(Answer, st.sampled_from(LABELS), st.floats(0, 1)),
    st.builds(Answer, st.none(), st.just(0.0), st.just("refused: no image")),
)
# (label of the image, the one model's answer, the other's)
rows = st.lists(st.tuples(st.sampled_from(LABELS), answer, answer), min_size=1, max_size=60)
Given = tuple[dict[str, str], dict[str, Answer], dict[str, Answer]]


def parts(drawn: list[tuple[str, Answer, Answer]]) -> Given:
    names = [f"{number}.png" for number in range(len(drawn))]
    return tuple(dict(zip(names, column, strict=True)) for column in zip(*drawn, strict=True))


@settings(deadline=None)  # how long one takes is the machine's affair
@given(COUNTS, COUNTS)
def test_mcnemar_is_scipys_two_sided_binomial_test(worse: int, better: int) -> None:
    expected = binomtest(worse, worse + better).pvalue if worse + better else 1.0
    assert mcnemar(worse, better) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(worse, better) == mcnemar(better, worse)


def test_mcnemar_by_hand_and_at_its_ends() -> None:
    assert mcnemar(0, 0) == mcnemar(7, 7) == 1.0
    assert mcnemar(1, 5) == 2 * (1 + 6) / 64
    assert mcnemar(10_000, 10_400) == pytest.approx(binomtest(10_000, 20_400).pvalue, rel=1e-6)
    assert mcnemar(0, 5000) == 0.0  # smaller than any float


@settings(deadline=None)
@given(rows)
def test_the_sums_of_one_model_come_out(drawn: list[tuple[str, Answer, Answer]]) -> None:
    truth, _, answers = parts(drawn)
    said = measures(LABELS, truth, answers)
    right = sum(answers[name].label == label for name, label in truth.items())
    assert said["images"] == len(truth) == sum(said["support"].values())
    assert said["accuracy"] == right / len(truth)
    assert sum(said["recall"][label] * n for label, n in said["support"].items()) == pytest.approx(right)
    answered = sum(map(sum, said["confusion"]))
    assert answered + said["unanswered"]["count"] == len(truth)
    assert sum(said["confusion"][i][i] for i in range(3)) == right
    bins = said["calibration"]["bins"]
    assert sum(part["count"] for part in bins) == answered
    ece = said["calibration"]["ece"]
    assert (ece is None) == (answered == 0)
    assert ece is None or 0 <= ece <= 1
    by_bins = sum(b["count"] * abs(b["confidence"] - b["accuracy"]) for b in bins if b["count"])
    assert ece is None or ece == pytest.approx(by_bins / answered)


@settings(deadline=None)
@given(rows)
def test_the_sums_of_two_models_come_out(drawn: list[tuple[str, Answer, Answer]]) -> None:
    truth, before, now = parts(drawn)
    said, back = comparison(truth, before, now), comparison(truth, now, before)
    accuracies = [measures(LABELS, truth, answers)["accuracy"] for answers in (before, now)]
    worse, better = said["mcnemar"]["worse"], said["mcnemar"]["better"]
    assert (better - worse) / len(truth) == pytest.approx(accuracies[1] - accuracies[0])
    assert (back["mcnemar"]["worse"], back["mcnemar"]["better"]) == (better, worse)
    assert back["mcnemar"]["p"] == said["mcnemar"]["p"] == mcnemar(worse, better)
    flips = said["negative_flips"]
    assert flips["count"] == worse
    assert len(flips["images"]) == min(worse, LISTED)
    assert all(flip["was"] == flip["label"] != flip["is"] for flip in flips["images"])
    assert (worse + better) / len(truth) <= said["churn"] == back["churn"] <= 1
    same = comparison(truth, now, now)
    assert (same["churn"], same["negative_flips"]["count"], same["mcnemar"]["p"]) == (0, 0, 1.0)


def test_by_hand() -> None:
    truth = {"1": "cat", "2": "cat", "3": "cat", "4": "dog"}
    answers = {
        "1": Answer("cat", 0.9),
        "2": Answer("dog", 0.6),
        "3": Answer(None, fault="refused: empty image"),
        "4": Answer("dog", 0.8),
    }
    said = measures(LABELS, truth, answers)
    assert said["accuracy"] == 0.5  # no answer is a wrong one
    assert said["recall"] == {"cat": 1 / 3, "dog": 1.0}
    assert said["support"] == {"cat": 3, "dog": 1}
    assert said["confusion"] == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert said["confused"] == [{"label": "cat", "as": "dog", "count": 1}]
    assert said["unanswered"] == {"count": 1, "images": [{"name": "3", "why": "refused: empty image"}]}
    assert said["calibration"]["ece"] == pytest.approx((0.1 + 0.6 + 0.2) / 3)


def test_nothing_is_said_of_no_images() -> None:
    with pytest.raises(ValueError, match="no images"):
        measures(LABELS, {}, {})


@pytest.mark.parametrize(("score", "place"), [(0.0, 0), (1 / 15, 0), (1 / 15 + 1e-9, 1), (0.5, 7), (1.0, 14)])
def test_bins_are_open_below_and_closed_above(score: float, place: int) -> None:
    bins = calibration({"1": "cat"}, {"1": Answer("cat", score)})["bins"]
    assert [part["count"] for part in bins] == [int(number == place) for number in range(BINS)]
    assert bins[place]["from"] <= score <= bins[place]["to"]


def test_perfect_confidence_has_no_error() -> None:
    truth = {str(number): "cat" for number in range(10)}
    answers = {name: Answer("cat" if int(name) < 7 else "dog", 0.7) for name in truth}
    assert calibration(truth, answers)["ece"] == pytest.approx(0)


def test_a_record_stays_small() -> None:
    labels = [f"label {number}" for number in range(LARGEST_SQUARE + 1)]
    truth = {str(number): labels[number % 7] for number in range(500)}
    said = measures(labels, truth, dict.fromkeys(truth, Answer(None, fault="refused")))
    assert said["confusion"] is None
    assert (said["unanswered"]["count"], len(said["unanswered"]["images"])) == (500, LISTED)
    flips = comparison(truth, {n: Answer(label) for n, label in truth.items()}, dict.fromkeys(truth, Answer("x")))
    assert (flips["negative_flips"]["count"], len(flips["negative_flips"]["images"])) == (500, LISTED)


MEASURED = {"accuracy": 0.9, "recall": {"cat": 0.95, "dog": 0.85}}


class Row(list[int]):
    """Counts how often it is gone through."""

    walks = 0

    def __iter__(self) -> Any:
        Row.walks += 1
        return super().__iter__()


def test_a_picture_of_many_labels_takes_no_minutes() -> None:
    """ImageNet's 1 000 labels took twenty seconds, when each cell summed its row."""
    confusion_png([f"label {number}" for number in range(50)], [Row([1] * 50) for _ in range(50)], "many")
    assert Row.walks <= 3 * 50


def test_of_more_labels_than_a_picture_has_room_for_the_commonest_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A square of ImageNet-21k's labels would be gigabytes."""
    drawn: list[Any] = []
    monkeypatch.setattr(evaluate, "confusion_png", lambda *given: drawn.append(given) or b"")
    labels = tuple(f"label {number}" for number in range(20_000))
    truth = {f"{number}.png": labels[10 * number] for number in range(50)}
    found = {name: Answer(labels[10 * number + number % 2], 0.9) for number, name in enumerate(truth)}
    monkeypatch.setattr(evaluate, "answers", lambda *_, **__: found)
    subject = Subject("v1", "0" * 64, labels, lambda _: pytest.fail("nothing is asked"))
    images = LabelledImages("faces", "0" * 64, "contents", truth, lambda *_: [])
    nobody: Any = None
    said, _ = evaluate.evaluate(Evaluation(data="faces"), images, subject, "there is none", nobody, log=print)
    ((names, square_, title),) = drawn
    assert len(names) == len(square_) == 75
    assert set(truth.values()) <= set(names)
    assert title == "v1: 50 % of 50 images right; the 75 commonest of 20000 labels"
    assert said["candidate"]["confusion"] is None


def compared(worse: int, share: float) -> Mapping[str, Any]:
    return {"skipped": None, "negative_flips": {"count": worse, "share": share}}


def asked(comparison: Mapping[str, Any] = skipped("there is no stable version"), **limits: Any) -> list[dict[str, Any]]:
    return gates(Evaluation(data="d", **limits), MEASURED, comparison)


def test_gates_in_the_order_of_the_model_file() -> None:
    found = asked(compared(2, 0.02), min_accuracy=0.9, max_regressions=0.01, min_recall=0.9)
    assert [(gate["name"], gate["passed"]) for gate in found] == [
        ("accuracy", True),
        ("regressions", False),
        ("recall of cat", True),
        ("recall of dog", False),
    ]
    assert [gate["sentence"] for gate in found if not gate["passed"]] == [
        "regressions are 2 % (images that only stable answers right: 2), above the limit of 1 %",
        "recall of dog is 85 %, below the limit of 90 %",
    ]


def test_floors_for_named_labels_only() -> None:
    assert [gate["name"] for gate in asked(min_recall={"dog": 0.8})] == ["recall of dog"]
    assert asked() == []


def test_regressions_that_nobody_counted_are_neither_passed_nor_failed() -> None:
    (gate,) = asked(max_regressions=0.01)
    assert (gate["passed"], gate["value"]) == (None, None)
    assert gate["sentence"].endswith("were not counted: there is no stable version")


@pytest.mark.parametrize(("share", "passed"), [(0.02, True), (0.0200001, False), (0.0, True)])
def test_a_value_on_the_limit_passes(share: float, passed: bool) -> None:
    assert asked(compared(2, share), max_regressions=0.02)[0]["passed"] is passed


def test_a_floor_that_could_never_fail_is_refused() -> None:
    with pytest.raises(SpecError, match="min_recall names 'cow', of which d has no images; it has images of cat, dog"):
        check_limits(Evaluation(data="d", min_recall={"cow": 0.5}), {"cat": 1, "dog": 2}, "d")
    check_limits(Evaluation(data="d", min_recall=0.5), {"cat": 1}, "d")


@pytest.mark.parametrize(
    ("share", "text"),
    [(1, "100 %"), (0.99999, "> 99.99 %"), (0.9125, "91.25 %"), (0.5, "50 %"), (1e-6, "< 0.01 %"), (0, "0 %")],
)
def test_percents(share: float, text: str) -> None:
    assert percent(share) == text


def test_long_lists_are_cut() -> None:
    assert some(["a", "b", "c"], 2) == "a, b and 1 more"
    assert some({"a": 1}) == "a"
