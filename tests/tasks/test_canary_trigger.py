"""The watch of a canary, without a triggerer: its looks, its end, and what it does meanwhile."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, ClassVar
from uuid import UUID

import pytest
from airflow.sdk.execution_time import hitl
from model_release.tasks.look import Look

from model_release.errors import MetricsRefused, StoreUnavailable
from model_release.tasks import look
from model_release.tasks.triggers import CanaryTrigger

from .cluster import ending, moment


class Watch:
    """Stands in for `look.Watch`: the given looks, one after the other."""

    pause = 0.01
    shown = 0
    store_takes = 0.0
    refused: Exception | None = None

    def __init__(self, looks: list[Look | Exception]) -> None:
        self._looks = looks

    def look(self) -> Look:
        look = self._looks.pop(0)
        if isinstance(look, Exception):
            raise look
        return look

    def show(self) -> None:
        self.shown += 1
        time.sleep(self.store_takes)
        if self.refused:
            raise self.refused

    def outcome(self) -> dict[str, Any]:
        return {"windows": [], "final": len(self._looks) == 0, "trouble": ""}


class TestCanary:
    GIVEN: ClassVar[dict[str, Any]] = {
        "spec": "{}", "canary": {}, "percent": None, "opened": moment(0), "deadline": moment(60), "run": {},
    }  # fmt: skip

    def looks(self, monkeypatch: pytest.MonkeyPatch, *looks: Look | Exception) -> dict[str, Any]:
        begun: dict[str, Any] = {}

        def begin(**given: Any) -> Watch:
            begun.update(given)
            return Watch(list(looks))

        monkeypatch.setattr(look.Watch, "begin", begin)
        return begun

    async def test_it_looks_until_a_look_is_the_last_and_logs_each_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        begun = self.looks(monkeypatch, Look(("one", "two")), Look(), Look(("three",), over=True))
        trigger, lines = CanaryTrigger(**self.GIVEN), list[str]()
        monkeypatch.setattr(type(trigger), "log", SimpleNamespace(info=lines.append))
        assert await ending(trigger) == {"windows": [], "final": True, "trouble": ""}
        assert lines == ["one", "two", "three"]
        assert begun == self.GIVEN

    async def test_the_record_is_shown_beside_the_watch_and_never_in_its_way(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looks = [*(Look((f"window {number}",)) for number in range(5)), Look(("decided",), over=True)]
        self.looks(monkeypatch, *looks)
        monkeypatch.setattr(Watch, "store_takes", 1.0)
        began = time.monotonic()
        assert await ending(CanaryTrigger(**self.GIVEN)) == {"windows": [], "final": True, "trouble": ""}
        assert time.monotonic() - began < 0.9, "the watch waited for the store"

    async def test_a_store_that_is_away_is_told_and_ends_no_watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looks(monkeypatch, Look(("one",)), Look(), Look(), Look(("two",), over=True))
        monkeypatch.setattr(Watch, "refused", StoreUnavailable("away"))
        trigger, lines = CanaryTrigger(**self.GIVEN), list[str]()
        monkeypatch.setattr(type(trigger), "log", SimpleNamespace(info=lambda line, *rest: lines.append(line % rest)))
        await ending(trigger)
        assert lines == ["one", "Not shown in the record meanwhile: away", "two"]

    ASKING: ClassVar = {**GIVEN, "question": "0190f5c1-0000-7000-8000-000000000000"}

    async def test_an_answer_that_came_before_the_task_was_deferred_is_heard(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        begun = self.looks(monkeypatch, *[Look()] * 9)
        who = SimpleNamespace(id="7", name="ada")
        said = SimpleNamespace(
            response_received=True, chosen_options=["Promote"], params_input={"reason": "well"}, responded_by_user=who
        )
        asked: list[UUID] = []
        monkeypatch.setattr(hitl, "get_hitl_detail_content_detail", lambda ti_id: asked.append(ti_id) or said)
        assert await ending(CanaryTrigger(**self.ASKING)) == {
            "chosen_options": ["Promote"],
            "params_input": {"reason": "well"},
            "responded_by_user": {"id": "7", "name": "ada"},
        }
        assert asked == [UUID(self.ASKING["question"])]
        assert begun == self.GIVEN

    async def test_a_watch_that_ends_first_withdraws_the_question(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looks(monkeypatch, Look(), Look(("decided",), over=True))
        nothing = SimpleNamespace(response_received=False, chosen_options=None)
        withdrawn: list[dict[str, Any]] = []
        monkeypatch.setattr(hitl, "get_hitl_detail_content_detail", lambda ti_id: nothing)
        monkeypatch.setattr(hitl, "update_hitl_detail_response", lambda **said: withdrawn.append(said))
        assert (await ending(CanaryTrigger(**self.ASKING)))["final"] is True
        assert withdrawn == [
            {"ti_id": UUID(self.ASKING["question"]), "chosen_options": ["Roll back"], "params_input": {}}
        ]

    async def test_a_refusal_is_handed_to_the_task_by_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looks(monkeypatch, Look(), MetricsRefused("422: parse\nerror"))
        assert await ending(CanaryTrigger(**self.GIVEN)) == {
            "error": "MetricsRefused",
            "sentence": "422: parse error",
        }

    async def test_a_bug_is_not_hidden_in_an_event(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looks(monkeypatch, KeyError("bug"))
        with pytest.raises(KeyError):
            await ending(CanaryTrigger(**self.GIVEN))
