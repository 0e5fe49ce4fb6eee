"""The same pictures asked of stable and of the canary, through a real gateway that answers as a test says."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import pytest
from tests.answering import CANARY, STABLE, Answering, Said, answering, labels

from model_release.cluster import pairs as asking
from model_release.cluster.pairs import AT_ONCE, TRIES, compare
from model_release.cluster.smoke import Gateway, Line
from model_release.errors import RolledBack
from model_release.judging.pairs import Pairs

THREE, EIGHT = labels(three=0.9, eight=0.1), labels(eight=0.8, three=0.2)


@pytest.fixture(autouse=True)
def _asks_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "PAUSE", 0.0)


def asked(gateway: Answering, many: int, limit: float | None = None, look: Any = lambda: None) -> Pairs:
    """Picture 7 is `b"7"`, in the folder of its last digit's parity."""
    found = Pairs(many, limit)
    stable, canary = (
        partial(Line, f"http://{host}", "digits", Gateway(gateway.url, "Bearer s3cr3t")) for host in (STABLE, CANARY)
    )
    pictures = ((("even", "odd")[number % 2], partial(str.encode, str(number))) for number in range(many))
    compare(pictures, stable, canary, found, look)
    return found


def changing(share: int) -> Any:
    """The canary answers every so many-th picture otherwise."""
    return lambda host, picture: EIGHT if host == CANARY and int(picture) % share == 0 else THREE


def test_both_are_asked_for_each_picture_once_and_compared() -> None:
    with answering(changing(20)) as gateway:
        found = asked(gateway, 100)
    assert (found.asked, found.compared, found.changed) == (100, 100, 5)
    assert found.became == {("three", "eight"): 5}
    assert found.folders == {"even": [50, 5], "odd": [50, 0]}
    assert max(found.distances) == pytest.approx(0.7)
    assert gateway.seen == {STABLE: 100, CANARY: 100}


def test_a_few_at_once_and_no_more() -> None:
    def slow(host: str, picture: bytes) -> Said:
        time.sleep(0.002)
        return THREE

    with answering(slow) as gateway:
        asked(gateway, 60)
    assert gateway.most[STABLE] <= AT_ONCE
    assert gateway.most[CANARY] <= AT_ONCE


def test_it_ends_as_soon_as_the_rest_can_change_nothing() -> None:
    with answering(changing(2)) as gateway:
        found = asked(gateway, 500, 0.02)
    assert (found.decision, found.changed) == ("beyond", 5)
    assert found.asked == 9
    assert gateway.seen[STABLE] <= 9 + AT_ONCE


def test_what_is_away_for_a_moment_is_asked_again_and_what_stays_so_has_failed() -> None:
    tries = dict[bytes, int]()

    def says(host: str, picture: bytes) -> Said:
        if host == STABLE:
            return THREE
        tries[picture] = tries.get(picture, 0) + 1
        again = {0: 1, 1: TRIES}.get(int(picture), 0)
        return (503, {"error": "no healthy upstream"}) if tries[picture] <= again else THREE

    with answering(says) as gateway:
        found = asked(gateway, 5)
    assert (found.changed, found.lost, found.canary.failed, found.canary.answered) == (1, 1, 1, 4)
    assert (tries[b"0"], tries[b"1"]) == (2, TRIES)


@pytest.mark.parametrize(
    ("said", "counted"),
    [
        ((400, {"error": "bad input"}), "refused"),
        ((500, b"boom"), "failed"),
        ((307, b""), "failed"),
        ((200, b"<html>"), "failed"),
        ((200, {"predictions": []}), "failed"),
        ((200, {"predictions": [[]]}), "failed"),
        ((200, {"predictions": [[{"label": "3", "score": float("nan")}]]}), "failed"),
        ((200, b" " * (asking.LARGEST_ANSWER + 1)), "failed"),
    ],
)
def test_what_is_no_answer(said: Said, counted: str) -> None:
    with answering(lambda host, _: said if host == CANARY else THREE) as gateway:
        found = asked(gateway, 3)
    assert (getattr(found.canary, counted), found.lost, found.changed) == (3, 3, 3)


def test_a_label_is_a_word_in_a_line() -> None:
    said = (200, {"predictions": [{"label": "sad\n\x1b[31m" + "x" * 200, "score": 0.9}]})
    with answering(lambda host, _: said if host == CANARY else THREE) as gateway:
        found = asked(gateway, 1)
    assert list(found.became) == [("three", "sad??[31m" + "x" * 91)]


def test_a_side_that_says_nothing_any_more_is_not_asked_further() -> None:
    with answering(lambda host, _: (503, b"") if host == STABLE else THREE) as gateway:
        found = asked(gateway, 500)
    assert (found.asked, found.compared) == (10, 0)
    assert found.silent == "stable gave no answer to the last 10 pictures"
    assert gateway.seen[STABLE] <= (10 + AT_ONCE) * TRIES


def test_who_ends_the_release_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "LOOK", 0.0)

    def look() -> None:
        raise RolledBack("Rolled back by ada: wrong model")

    with answering(changing(2)) as gateway, pytest.raises(RolledBack, match="by ada"):
        asked(gateway, 500, None, look)
    assert gateway.seen[STABLE] <= 1 + AT_ONCE
