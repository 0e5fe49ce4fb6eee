"""A ramp on what is real but for the model: the API server with the sandbox's controllers, a Prometheus that scrapes,
users who follow the split; and the hand that drives it is made anew every few looks."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.metrics.conftest import Server
from tests.metrics.test_live import Process, until_scraped

from model_release.cluster.release import Cause
from model_release.judging import Past
from model_release.judging.record import Record
from model_release.metrics import Prometheus
from model_release.release.drive import Drive
from model_release.spec import ModelSpec
from model_release.tasks import connections, driving

from .driven import NEW, STABLE, Scene, scene

__all__ = ["scene"]
pytestmark = pytest.mark.stack

RATE = 40  # requests a second
METRICS = [
    {"name": "errors", "max_rate": 0.02},
    {"name": "slow", "above": "500ms", "max_ratio": 1.5, "floor": 0.02},
]


class Users:
    """Requests by the split that the gateway has; the canary's are `slower` times as slow as stable's."""

    def __init__(self, scene: Scene, page: Process, slower: float) -> None:
        self._scene, self._page, self._slower = scene, page, slower
        self._over, self._thread = threading.Event(), threading.Thread(target=self._ask, daemon=True)

    def __enter__(self) -> Users:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask(self) -> None:
        chance, asked = random.Random(1), 0
        while not self._over.wait(1 / RATE):
            if asked % 10 == 0:
                shares = self._scene.serving
            asked += 1
            (who,) = chance.choices(list(shares), list(shares.values()))
            self._page.answer(who, 200, chance.choice([20, 40, 60, 90]) * (self._slower if who == NEW else 1))


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    """The gateway's counters, scraped."""
    one = Process("istio", (STABLE, NEW))
    timing = {"scrape_interval": "200ms", "scrape_timeout": "190ms"}
    jobs = [{"job_name": "models/istio", "static_configs": [one.scraped_as()]}]
    server = Server(tmp_path, json.dumps({"global": timing, "scrape_configs": jobs}))
    server.start()
    monkeypatch.setattr(connections, "prometheus", lambda: Prometheus(server.url))
    until_scraped(server, 1)
    yield one
    server.stop()
    one.server.shutdown()
    one.server.server_close()


@pytest.mark.parametrize("slower", [1.0, 4.0], ids=["as good", "slower, below the limit"])
def test_a_ramp_comes_to_its_end_by_real_counts(scene: Scene, page: Process, spec: ModelSpec, slower: float) -> None:
    judge = {"profile": "istio", "design_effect": 1, "no_data_limit": 100, "metrics": METRICS}
    # A small one for the slower: it is found before it is promoted on a busy machine, too, which sends fewer requests.
    budget = 20 if slower == 1 else 5
    rollout = {"ramp": {"budget": budget, "most": 50}, "window": "2s", "deadline": "1h", "bake": "0s"}
    ramped = ModelSpec.model_validate({**spec.model_dump(mode="json"), "judge": judge, "rollout": rollout})
    record = Record.new("r", model="m", service="models/m", version=None, started=datetime.now(UTC).isoformat())

    def drive() -> Drive:
        return replace(
            scene.drive(),
            rules=driving.rules(ramped),
            watch=driving.Watches(ramped, scene.canary, Past()),
            window=timedelta(seconds=2),
            watches={},
            moved=[],
        )

    one, looks, pause = drive(), 0, threading.Event()
    with Users(scene, page, slower):
        while one.done is None:
            one.look()
            looks += 1
            driving.put(record, ramped, driving.counted(one))
            if looks % 9 == 0 and one.done is None:
                one = drive()
            pause.wait(min(one.pause, 0.5))
    claim, moved = scene.claim, [move.percent for move in one.moved]
    assert moved == [*sorted(moved[:-1]), moved[-1]], "never less than before, until its end"
    assert [one.percent for one in claim.watches] == moved[:-1]
    assert record.differences() == []
    assert sum(len(step["windows"]) for step in record.steps) == record.steps[-1]["verdict"]["windows_used"]
    if slower == 1:
        assert (one.done.decision, moved[0], moved[-1]) == ("promote", 1, 100)
        assert scene.serving == {NEW: 100}
    else:
        assert (one.done.decision, claim.cause, moved[-1]) == ("rollback", Cause.EVIDENCE, 0)
        assert "canary requests took longer than " in one.done.reason
        assert scene.serving == {STABLE: 100}
