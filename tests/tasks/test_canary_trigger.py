"""The trigger of the canary, without a triggerer: its looks, its end, and what it does meanwhile."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from airflow.sdk.execution_time import hitl

from model_release.errors import NotSettled, StoreUnavailable
from model_release.release.advance import Done
from model_release.spec import ModelSpec
from model_release.tasks import connections, driving, records, telemetry
from model_release.tasks.run import Run
from model_release.tasks.triggers import CanaryTrigger

from .cluster import ending, moment
from .sensed import CANARY


class Drive:
    """Stands in for `release.Drive`: the given looks, one after the other; the last one is its end."""

    pause = 0.0

    def __init__(self, looks: list[list[str] | Exception]) -> None:
        from model_release.cluster.change import Canary

        self._looks, self.done = looks, None
        self.canary = Canary.from_dict(CANARY)
        self.watches: dict[Any, Any] = {}
        self.moved: list[Any] = []

    def look(self) -> list[str]:
        look = self._looks.pop(0)
        if isinstance(look, Exception):
            raise look
        if not self._looks:
            self.done = Done("promote", "0 of 300")
        return look


@pytest.fixture
def given(spec: ModelSpec, context: Any) -> dict[str, Any]:
    run = asdict(Run.of(context, spec))
    return {"spec": spec.model_dump_json(), "canary": CANARY, "run": run, "deadline": moment(60)}


Lines = list[str]


@pytest.fixture
def drives(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives the trigger's drive the looks; what it logs is returned."""

    def looks(*given: list[str] | Exception, store_takes: Any = lambda: None) -> Lines:
        lines: Lines = []

        def change(*_: Any) -> None:
            store_takes()

        monkeypatch.setattr(driving, "drive", lambda *_: Drive(list(given)))
        monkeypatch.setattr(connections, "store", lambda _: None)
        monkeypatch.setattr(records, "change", change)
        monkeypatch.setattr(telemetry, "looked", lambda _: None)
        monkeypatch.setattr(
            CanaryTrigger, "log", SimpleNamespace(info=lambda line, *rest: lines.append(line % rest if rest else line))
        )
        return lines

    return looks


ENDED = {"decision": "promote", "reason": "0 of 300", "past": None, "steps": [], "moved": []}


async def test_it_looks_until_the_drive_is_over_and_logs_each_line(drives: Any, given: dict[str, Any]) -> None:
    lines = drives(["one", "two"], [], ["three"])
    assert await ending(CanaryTrigger(**given)) == ENDED
    assert lines == ["one", "two", "three"]


async def test_a_store_that_hangs_is_never_in_the_way(drives: Any, given: dict[str, Any]) -> None:
    """The drive comes to its end while the first write of the record still hangs."""
    freed = threading.Event()
    drives(*[[f"window {number}"] for number in range(5)], store_takes=freed.wait)
    try:
        assert await ending(CanaryTrigger(**given)) == ENDED
    finally:
        freed.set()


async def test_a_store_that_is_away_is_told_and_ends_no_drive(drives: Any, given: dict[str, Any]) -> None:
    told = threading.Event()

    def away() -> None:
        told.set()
        raise StoreUnavailable("away")

    lines = drives(["one"], *[[]] * 50, ["two"], store_takes=away)
    assert await ending(CanaryTrigger(**given)) == ENDED
    assert told.is_set()
    assert [line for line in lines if line in ("one", "two")] == ["one", "two"]


async def test_17_7_looks_that_hang_hold_no_other_canary_up(
    drives: Any, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Number 7: more of them than any executor has threads, each with its Prometheus, its API and its store silent."""
    freed, hanging = threading.Event(), threading.Semaphore(0)
    drives(["one"], ["two"])

    def hang(*_: Any) -> Any:
        hanging.release()
        freed.wait()
        raise KeyError

    stuck = SimpleNamespace(look=hang, done=None)
    good = driving.drive
    monkeypatch.setattr(driving, "drive", lambda *_: stuck)
    others = [asyncio.create_task(ending(CanaryTrigger(**given))) for _ in range(40)]
    for _ in others:
        await asyncio.to_thread(hanging.acquire)
    monkeypatch.setattr(driving, "drive", good)
    try:
        assert await ending(CanaryTrigger(**given)) == ENDED
    finally:
        freed.set()
        await asyncio.gather(*others, return_exceptions=True)


async def test_17_7_a_look_that_hangs_is_given_up_and_another_hand_goes_on(
    drives: Any, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    freed = threading.Event()
    lines = drives(["one"], ["two"])
    hands = [driving.drive, lambda *_: SimpleNamespace(look=freed.wait, done=None)]
    monkeypatch.setattr(driving, "drive", lambda *given: hands.pop()(*given))
    monkeypatch.setattr(CanaryTrigger, "LOOK", 0.05)
    try:
        assert await ending(CanaryTrigger(**given)) == ENDED
    finally:
        freed.set()
    assert lines == ["A look has taken 0.05 s and is given up; another hand looks", "one", "two"]


QUESTION = "0190f5c1-0000-7000-8000-000000000000"


async def test_an_answer_that_came_before_the_task_was_deferred_is_heard(
    drives: Any, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    drives(*[[]] * 9)
    who = SimpleNamespace(id="7", name="ada")
    said = SimpleNamespace(
        response_received=True, chosen_options=["Promote"], params_input={"reason": "well"}, responded_by_user=who
    )
    asked: list[UUID] = []
    monkeypatch.setattr(hitl, "get_hitl_detail_content_detail", lambda ti_id: asked.append(ti_id) or said)
    past = {"revision": "digits-00001", "windows": [{"requests": 300, "bad": {"errors": 1}}]}
    assert await ending(CanaryTrigger(**given, question=QUESTION, past=json.dumps(past))) == {
        "chosen_options": ["Promote"],
        "params_input": {"reason": "well"},
        "responded_by_user": {"id": "7", "name": "ada"},
        "past": past,
    }
    assert asked == [UUID(QUESTION)]


async def test_a_drive_that_ends_first_withdraws_the_question(
    drives: Any, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    drives([], ["decided"])
    nothing = SimpleNamespace(response_received=False, chosen_options=None)
    withdrawn: list[dict[str, Any]] = []
    monkeypatch.setattr(hitl, "get_hitl_detail_content_detail", lambda ti_id: nothing)
    monkeypatch.setattr(hitl, "update_hitl_detail_response", lambda **said: withdrawn.append(said))
    assert await ending(CanaryTrigger(**given, question=QUESTION)) == ENDED
    assert withdrawn == [{"ti_id": UUID(QUESTION), "chosen_options": ["Roll back"], "params_input": {}}]


async def test_a_trouble_is_handed_to_the_task_by_name(drives: Any, given: dict[str, Any]) -> None:
    drives([], NotSettled("traffic is\nsomewhere"))
    assert await ending(CanaryTrigger(**given)) == {"error": "NotSettled", "sentence": "traffic is somewhere"}


async def test_a_bug_is_not_hidden_in_an_event(drives: Any, given: dict[str, Any]) -> None:
    drives(KeyError("bug"))
    with pytest.raises(KeyError):
        await ending(CanaryTrigger(**given))
