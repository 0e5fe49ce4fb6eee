"""A version that is quick, without errors, and wrong for the larger pictures of live traffic: a shadow ends its release
before any user met it; only shown, or left out, it is promoted."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .models import candidate, model, records
from .witnesses import User

pytestmark = [pytest.mark.e2e, pytest.mark.walk]

NAME = "shadowed"
DAG = f"release_{NAME}"
SAMPLES = f"s3://models/{NAME}/samples/"
SHADOW = {"from": SAMPLES, "requests": 400, "max_changed": 0.1}
# R2 is the version that the shadow ends, R3 the stable one's template written back, R4 the version again.
R1, R2, R3, R4 = (f"{NAME}-predictor-0000{number}" for number in (1, 2, 3, 4))


@dataclass(frozen=True)
class Told:
    run: dict[str, Any]
    tasks: dict[str, dict[str, Any]]
    record: dict[str, Any]
    report: str


@dataclass(frozen=True)
class Story:
    first: Told
    ended: Told
    shown: Told
    users: set[tuple[str, str, int]]  # after which release, revision and status


def write(live: Any, shadow: dict[str, Any] | None) -> None:
    rollout = {"steps": [50], "window": "2s", "deadline": "30m", "bake": "0s", "ready_within": "10m"}
    model(live, NAME, rollout=rollout | {"if_too_slow": "go"} | ({"shadow": shadow} if shadow else {}))


def release(live: Any) -> Told:
    run_id = live.airflow.trigger(DAG, {})
    run = live.finished(DAG, run_id)
    (record,) = [one for one in records(live, NAME) if one["run"]["run_id"] == run_id]
    return Told(run, live.airflow.tasks(DAG, run_id), record, str(live.airflow.xcom(DAG, run_id, "report")))


@pytest.fixture(scope="module")
def story(live: Any, tmp_path_factory: pytest.TempPathFactory) -> Story:
    from sandbox.digits import images, make_candidate, make_samples

    folder: Path = tmp_path_factory.mktemp("samples") / "samples"
    make_samples(folder)
    client = live.store(f"s3://models/{NAME}/")._client
    for path in folder.rglob("*.*"):
        key = f"{NAME}/samples/{path.relative_to(folder).as_posix()}"
        client.put_object(Bucket="models", Key=key, Body=path.read_bytes())
    write(live, SHADOW)
    make_candidate("wrong", live.state / "trained" / "wrong")  # before there are users: a training takes their cores
    candidate(live, NAME, "20260101T000000", "better")
    live.airflow.wait_for_dag(DAG)
    met: set[tuple[str, str, int]] = set()
    first = release(live)
    live.sandbox("load", "--service", f"models/{NAME}", "--rate", "20")
    user = User(live.status["parts"]["envoy"]["url"], images(1)[0], NAME)
    user.start()
    try:
        candidate(live, NAME, "20260201T000000", "wrong")
        ended = release(live)
        met |= {("ended", answer.revision, answer.status) for answer in user.answers}
        write(live, {**SHADOW, "max_changed": None})
        shown = release(live)
        met |= {("shown", answer.revision, answer.status) for answer in user.answers}
    finally:
        user.end()
        live.sandbox("load", "--end")
    return Story(first, ended, shown, met)


def test_a_first_version_has_nothing_beside_it(story: Story) -> None:
    assert (story.first.run["state"], story.first.record["shadow"]) == ("success", None)


def test_it_ends_before_any_user_and_says_what_changed(story: Story) -> None:
    told = story.ended
    print(told.report)
    print(told.record["shadow"])
    assert told.run["state"] == "failed"
    assert (told.record["outcome"], told.record["cause"]) == ("failed", "before traffic")
    assert re.search(
        r"task smoke failed: \d+ of (the first )?\d+ pictures got another answer than stable's", told.report
    )
    assert "No user met the canary" in told.report
    assert [entry["percent"] for entry in told.record["traffic"]] == [0, 0]
    assert told.tasks["canary"]["state"] in ("upstream_failed", "skipped")
    assert {met for met in story.users if met[0] == "ended"} <= {("ended", R1, 200), ("ended", R3, 200)}
    shadow = told.record["shadow"]
    assert (shadow["passed"], shadow["decision"]) == (False, "beyond")
    assert shadow["canary"]["failed"] == shadow["canary"]["refused"] == 0, "it answers everything"
    shares = {one["folder"]: one["changed"] / one["compared"] for one in shadow["folders"]}
    assert shares["phone"] > 0.5 > 0.2 > shares["ordinary"]


def test_only_shown_it_is_promoted_and_the_record_has_what_changed(story: Story) -> None:
    told = story.shown
    print(told.report)
    print(told.record["shadow"])
    assert (told.run["state"], told.record["outcome"]) == ("success", "promoted")
    shadow = told.record["shadow"]
    assert (shadow["decision"], shadow["passed"], shadow["asked"]) == ("observed", True, 400)
    assert shadow["changed"] > 40
    assert {status for _, revision, status in story.users} == {200}
    assert {revision for _, revision, _ in story.users} == {R1, R3, R4}
