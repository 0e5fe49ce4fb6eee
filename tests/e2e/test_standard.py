"""Releases in Standard mode (KServe 0.21, `spec.canary`), beside the services in Knative mode: a first version, a
better one, a bad one; what a user, the cluster and Airflow say of them, and what is left."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from threading import Event, Thread
from typing import Any

import pytest
import requests
import yaml
from tests.patience import LIMIT

from model_release.cluster.services import InferenceServices
from model_release.cluster.standard.routes import shares
from model_release.judging.record import Record
from sandbox.kube.rbac import needed, permissions

from .conftest import PROJECT, RELEASES, Story, tell, watched
from .models import candidate, model
from .test_rbac import BASIC, granted

pytestmark = [pytest.mark.e2e, pytest.mark.walk]

NAME = "upright"
DAG = f"release_{NAME}"
RATE = 40
# What the released predictor has, after each task that moves traffic.
TRAFFIC = {
    "first": [("stage", 100), ("go_live", 100), ("settle", 100)],
    "better": [("stage", 0), ("open_25", 25), ("open_50", 50), ("promote", 100), ("settle", 100)],
    "bad": [("stage", 0), ("open_25", 25), ("roll_back", 0), ("settle", 0)],
}


@dataclass(frozen=True)
class Spec:
    """The spec at one moment: the stable predictor's version, and each canary's version with its percent."""

    time: float
    stable: str
    canaries: tuple[tuple[str, int], ...]
    knative: bool  # whether it has the field by which Knative mode splits


@dataclass(eq=False)  # a thread is known by itself
class Cluster(Thread):
    """Reads the service and its routes, turn by turn."""

    url: str
    specs: list[Spec] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self._ended = Event()

    def run(self) -> None:
        with requests.Session() as http:
            http.trust_env = False
            while not self._ended.wait(0.2):
                found = self.read(http, "serving.kserve.io/v1beta1", f"inferenceservices/{NAME}")
                if found is not None:
                    self.specs.append(_seen(found["spec"]))

    def read(self, http: Any, group: str, path: str) -> Any:
        """An object of the namespace, or a list of them; None where there is none."""
        api = f"apis/{group}" if "/" in group else f"api/{group}"
        answer = http.get(f"{self.url}/{api}/namespaces/models/{path}", timeout=LIMIT)
        return answer.json() if answer.ok else None

    def end(self) -> None:
        self._ended.set()
        self.join(60)


def _seen(spec: dict[str, Any]) -> Spec:
    def version(predictor: dict[str, Any]) -> str:
        return str(predictor["model"]["storageUri"]).rstrip("/").rsplit("/", 1)[-1]

    canaries = tuple((version(one["predictor"]), int(one.get("trafficPercent", 0))) for one in spec.get("canary") or ())
    return Spec(time.time(), version(spec["predictor"]), canaries, "canaryTrafficPercent" in spec["predictor"])


@dataclass(frozen=True)
class Upright:
    """The three releases in Standard mode, told right after the last one ended."""

    story: Story
    cluster: Cluster

    def left(self, group: str, plural: str) -> list[dict[str, Any]]:
        """The objects of a kind that are of this service."""
        items: list[dict[str, Any]] = self.cluster.read(requests, group, plural)["items"]
        return [one for one in items if one["metadata"]["name"].startswith(NAME)]


@pytest.fixture(scope="module")
def upright(live: Any) -> Iterator[Upright]:
    rollout = {"steps": [25, 50], "window": "2s", "deadline": "30m", "bake": "6s", "ready_within": "10m"}
    live.sandbox("load", "--end")
    cluster = Cluster(live.status["parts"]["kubernetes"]["url"])
    candidate(live, NAME, "20261101T000000", RELEASES[0])
    model(live, NAME, service={"mode": "standard"}, rollout=rollout)
    live.airflow.wait_for_dag(DAG)
    cluster.start()
    try:
        with watched(live, NAME) as (user, observer):
            for day, release in enumerate(RELEASES, 1):
                if day > 1:
                    live.sandbox("load", "--service", f"models/{NAME}", "--rate", str(RATE))
                    candidate(live, NAME, f"202611{day:02d}T000000", release)
                live.finished(DAG, live.airflow.trigger(DAG))
            time.sleep(2)  # the load writes its counts once a second
    finally:
        cluster.end()
    yield Upright(tell(live, NAME, user, observer), cluster)
    live.sandbox("load", "--end")
    InferenceServices(live.cluster).delete(live.service(NAME))


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def changed(upright: Upright, name: str, task: str) -> float:
    """When a task of that release had moved the traffic."""
    (change,) = [one for one in upright.story.releases[name].record["traffic"] if one["task"] == task]
    return moment(change["time"])


def test_each_release_ends_as_its_story_says(upright: Upright) -> None:
    ends = {name: (told.run["state"], told.record["outcome"]) for name, told in upright.story.releases.items()}
    assert ends == {
        "first": ("success", "first"), "better": ("success", "promoted"), "bad": ("failed", "rolled_back")
    }  # fmt: skip
    failed = [name for name, task in upright.story.releases["bad"].tasks.items() if task["state"] == "failed"]
    assert failed == ["report"]


def test_a_revision_is_a_predictor_with_the_versions_name(upright: Upright) -> None:
    for name, told in upright.story.releases.items():
        assert upright.story.revision(name) == f"{NAME}-v{told.record['version'][:10]}-predictor"


@pytest.mark.parametrize("name", RELEASES)
def test_the_record_has_each_change_of_traffic(upright: Upright, name: str) -> None:
    changes, revision = upright.story.releases[name].record["traffic"], upright.story.revision(name)
    assert [(one["task"], one["revisions"].get(revision, 0)) for one in changes] == TRAFFIC[name]
    assert all(sum(one["revisions"].values()) == 100 for one in changes)
    assert all(one["percent"] == one["revisions"].get(revision, 0) for one in changes)


def test_the_cluster_saw_a_canary_in_the_spec_and_no_split_of_knatives(upright: Upright) -> None:
    first, better, bad = (upright.story.releases[name].record["version"] for name in RELEASES)
    seen = list(dict.fromkeys((one.stable, one.canaries) for one in upright.cluster.specs))
    known = {
        (first, ()): "first alone",
        (first, ((better, 0),)): "better at 0",
        (first, ((better, 25),)): "better at 25",
        (first, ((better, 50),)): "better at 50",
        (first, ((better, 100),)): "better at 100",
        (better, ()): "better alone",
        (better, ((bad, 0),)): "bad at 0",
        (better, ((bad, 25),)): "bad at 25",
    }
    assert [one for one in seen if one not in known] == []
    # All of the traffic lies on the canary for a moment only, and the same for a canary that is taken out.
    told = [known[one] for one in seen if known[one] != "better at 100"]
    assert told == [words for words in known.values() if words != "better at 100"]
    assert not any(one.knative for one in upright.cluster.specs)


def test_in_the_end_the_better_version_alone_is_there(upright: Upright) -> None:
    better, name = upright.story.releases["better"].record["version"], upright.story.revision("better")
    assert "canary" not in upright.story.service.raw["spec"]
    assert upright.story.service.storage_uri == f"s3://models/{NAME}/versions/{better}/"
    assert upright.story.service.serving == {name: 100}
    assert [one["metadata"]["name"] for one in upright.left("apps/v1", "deployments")] == [name]
    routes = upright.left("gateway.networking.k8s.io/v1", "httproutes")
    assert sorted(one["metadata"]["name"] for one in routes) == [NAME, f"{NAME}-predictor"]
    assert shares(tuple(routes)) == {name: 100}


def test_in_the_end_nobody_holds_the_service(upright: Upright) -> None:
    assert upright.story.lease is not None, "there was never a lease"
    assert upright.story.lease.holder is None


def test_no_user_met_a_failure_but_on_the_bad_canary(upright: Upright) -> None:
    story = upright.story
    first, better, bad = map(story.revision, RELEASES)
    assert set(story.load["answers"]) == {first, better, bad}, "an answer that no predictor gave"
    assert {answer.revision for answer in story.answers} == {first, better, bad}
    assert [set(story.statuses(one)) for one in (first, better, bad)] == [{"200"}, {"200"}, {"200", "503"}]


@pytest.mark.parametrize("name", ["better", "bad"])
def test_no_user_reached_a_canary_before_its_smoke_prediction(upright: Upright, name: str) -> None:
    smoke = upright.story.releases[name].tasks["smoke"]
    met = [answer.asked for answer in upright.story.answers if answer.revision == upright.story.revision(name)]
    assert smoke["state"] == "success"
    assert min(met) >= moment(smoke["end_date"])


def test_who_answers_at_the_front_door_after_each_end(upright: Upright) -> None:
    """From a promotion to the next canary the promoted one alone; after a roll-back the one that was stable before."""
    first, better, _ = map(upright.story.revision, RELEASES)
    spans = {
        first: (changed(upright, "first", "go_live"), changed(upright, "better", "stage")),
        better: (changed(upright, "better", "promote"), changed(upright, "bad", "stage")),
    }
    for revision, (begin, end) in spans.items():
        met = {answer.revision for answer in upright.story.answers if begin < answer.asked < end - 5}
        assert met == {revision}
    after = changed(upright, "bad", "roll_back")
    assert {answer.revision for answer in upright.story.answers if answer.asked > after} == {better}


@pytest.mark.parametrize(("name", "percent"), [("better", 25), ("better", 50), ("bad", 25)])
def test_a_canary_got_its_share_as_the_judge_counted(upright: Upright, name: str, percent: int) -> None:
    """The gateway draws for each request: 4 standard deviations, exceeded once in 16 000 releases."""
    (step,) = [one for one in upright.story.releases[name].record["steps"] if one["percent"] == percent]
    canary, stable = (sum(window[side]["requests"] for window in step["windows"]) for side in ("canary", "stable"))
    share = percent / 100
    assert canary >= 20
    assert abs(canary / (canary + stable) - share) < 4 * (share * (1 - share) / (canary + stable)) ** 0.5


def test_the_records_replay_to_the_same_verdicts(upright: Upright) -> None:
    last = {}
    for name, told in upright.story.releases.items():
        record = Record.from_dict(told.record)
        assert record.differences() == []
        last[name] = {look.percent: look.verdict.decision for look in record.replay() if look.percent < 100}
    assert last == {"first": {}, "better": {25: "open", 50: "promote"}, "bad": {25: "rollback"}}


@pytest.mark.parametrize(("name", "task"), [("better", "canary"), ("better", "bake"), ("bad", "canary")])
def test_a_watch_waits_in_the_triggerer_and_holds_no_worker(upright: Upright, name: str, task: str) -> None:
    seen = upright.story.observer.deferred[upright.story.releases[name].run["dag_run_id"], task]
    assert seen.trigger.endswith(".CanaryTrigger")
    assert all(tasks == [] for tasks in seen.running)


def test_the_role_in_the_documentation_is_what_was_called_beside_the_usual(upright: Upright) -> None:
    page = (PROJECT / "docs" / "standard-mode.md").read_text(encoding="utf-8")
    (role,) = [yaml.safe_load(found) for found in re.findall(r"```yaml\n(apiVersion.*?)```", page, re.DOTALL)]
    calls = requests.get(f"{upright.cluster.url}/-/calls", timeout=LIMIT).json()
    called = {one for name in ("worker", "triggerer") for one in needed(calls, f"model-release-{name}")}
    usual = granted("worker") | granted("triggerer") | BASIC
    assert sorted(map(str, called - usual)) == sorted(map(str, permissions(role, "models")))


def test_the_releases_page_tells_of_it_like_of_any_other(upright: Upright, live: Any) -> None:
    api = live.airflow
    api.call("GET", "/dags", params={"limit": 1})
    headers = {"Authorization": api._session.headers["Authorization"]}
    answer = requests.get(f"{api.url}/model-releases/api/fleet", headers=headers, timeout=LIMIT)
    (row,) = [one for one in answer.json()["services"] if one["service"] == f"models/{NAME}"]
    better = upright.story.releases["better"]
    assert row["stable"]["version"] == better.record["version"]
    assert row["canary"] is None
    assert row["trouble"] is None
