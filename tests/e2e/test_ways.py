"""The other ways into a release, in the same stack: by date, by backfill, by a person's word, by a training."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote

import pytest
from tests.patience import until

from .conftest import Story
from .models import candidate, model, records

pytestmark = pytest.mark.e2e


class Told:
    """A webhook of the test's own."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        messages = self.messages

        class Post(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Post)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def of(self, model: str) -> list[str]:
        return [one["event"] for one in self.messages if one["model"] == model]


@pytest.fixture(scope="module")
def told(live: Any) -> Iterator[Told]:
    one = Told()
    port = one.server.server_address[1]
    live.airflow.call(
        "POST",
        "/connections",
        json={"connection_id": "told", "conn_type": "http", "host": "127.0.0.1", "port": port, "schema": "http"},
    )
    yield one
    one.server.shutdown()


class TestByDate:
    """A schedule and a backfill: each date has its candidate, and only the schedule moves traffic by itself."""

    DAG = "release_dated"

    @pytest.fixture(scope="class")
    def dated(self, live: Any, story: Story) -> dict[str, dict[str, Any]]:
        """Every run by its type and date, when all have ended."""
        candidate(live, "dated", "20260715T000000", "better")
        candidate(live, "dated", "20261015T000000", "first")
        # The scheduler makes the run of the last month's first day as soon as it sees the DAG.
        model(live, "dated", schedule="0 0 1 * *")
        live.airflow.wait_for_dag(self.DAG)
        until(lambda: live.service("dated") and live.service("dated").rolled_out, "no first version")
        live.airflow.call(
            "POST",
            "/backfills",
            json={
                "dag_id": self.DAG,
                "from_date": "2026-08-01T00:00:00Z",
                "to_date": "2026-10-01T00:00:00Z",
                "max_active_runs": 1,
                "reprocess_behavior": "none",
            },
        )
        path = f"/dags/{self.DAG}/dagRuns"

        def ended() -> list[dict[str, Any]]:
            runs: list[dict[str, Any]] = live.airflow.call("GET", path, params={"order_by": "logical_date"})["dag_runs"]
            done = [run for run in runs if run["state"] in ("success", "failed")]
            return done if len(done) == len(runs) == 4 else []

        runs = until(ended, lambda: live.airflow.call("GET", path))
        return {f"{run['run_type']} {run['logical_date'][:10]}": run for run in runs}

    def test_each_run_released_the_newest_candidate_of_its_date(self, live: Any, dated: dict[str, Any]) -> None:
        assert {name: run["state"] for name, run in dated.items()} == {
            "backfill 2026-08-01": "success",
            "backfill 2026-09-01": "success",
            "backfill 2026-10-01": "success",
            "scheduled 2026-11-01": "success",
        }
        sources = {
            record["run"]["run_id"]: (record["outcome"], record["source"]["candidate"])
            for record in records(live, "dated")
        }
        assert {name: sources[run["dag_run_id"]] for name, run in dated.items()} == {
            "backfill 2026-08-01": ("published", "20260715T000000"),
            "backfill 2026-09-01": ("published", "20260715T000000"),
            "backfill 2026-10-01": ("published", "20260715T000000"),
            "scheduled 2026-11-01": ("first", "20261015T000000"),
        }

    def test_the_rule_is_told_and_kept(self, live: Any, dated: dict[str, Any]) -> None:
        run = dated["backfill 2026-09-01"]["dag_run_id"]
        said = "the newest not later than 2026-09-01T00:00:00Z, the end of the run's data interval"
        assert any(said in line for line in live.airflow.log(self.DAG, run, "resolve"))
        (record,) = [one for one in records(live, "dated") if one["run"]["run_id"] == run]
        assert record["source"]["rule"] == said

    def test_dates_with_one_source_have_one_version_built_once(self, live: Any, dated: dict[str, Any]) -> None:
        backfilled = [run for name, run in dated.items() if name.startswith("backfill")]
        versions = {live.airflow.xcom(self.DAG, run["dag_run_id"], "publish")["version"] for run in backfilled}
        assert len(versions) == 1
        built = [
            run["dag_run_id"]
            for run in backfilled
            if live.airflow.tasks(self.DAG, run["dag_run_id"])["export"]["state"] == "success"
        ]
        assert len(built) == 1
        assert len(live.store("s3://models/dated/").versions()) == 2

    def test_no_backfill_moved_traffic(self, live: Any, dated: dict[str, Any]) -> None:
        service = live.service("dated")
        assert service.serving == {"dated-predictor-00001": 100}
        assert service.latest_created == "dated-predictor-00001", "no backfill wrote to the service"
        scheduled = dated["scheduled 2026-11-01"]["dag_run_id"]
        version = live.airflow.xcom(self.DAG, scheduled, "publish")["version"]
        assert service.storage_uri == f"s3://models/dated/versions/{version}/"

    def test_a_backfill_says_what_the_judge_would_have_said(self, live: Any, dated: dict[str, Any]) -> None:
        for name, run in dated.items():
            (record,) = [one for one in records(live, "dated") if one["run"]["run_id"] == run["dag_run_id"]]
            if name.startswith("backfill"):
                assert record["retrospect"]["sentence"] == f"{record['version']} never was a canary."
            else:
                assert record["retrospect"] is None


class TestAPersonsWord:
    """`approval: before_promote`: the question, an answer, and evidence that goes before any answer."""

    DAG = "release_asked"

    @pytest.fixture(scope="class")
    def asked(self, live: Any, story: Story, told: Told) -> Iterator[Any]:
        """The service with its first version, and users."""
        more = {"approval": "before_promote", "answer_within": "4m", "notify": {"webhook": {"connection": "told"}}}
        candidate(live, "asked", "20261101T000000", "first")
        model(live, "asked", **more)
        live.airflow.wait_for_dag(self.DAG)
        assert live.finished(self.DAG, live.airflow.trigger(self.DAG))["state"] == "success"
        live.sandbox("load", "--service", "models/asked", "--rate", "60")
        candidate(live, "asked", "20261102T000000", "better")
        yield live
        live.sandbox("load", "--end")

    def question(self, live: Any, run_id: str) -> dict[str, Any]:
        """The open question of the run, as Airflow's own page of required actions lists it."""

        found: dict[str, Any] = until(lambda: self.open_question(live, run_id), f"no question of {run_id}")
        return found

    def open_question(self, live: Any, run_id: str) -> Any:
        found = live.airflow.call(
            "GET", f"/dags/{self.DAG}/dagRuns/~/hitlDetails", params={"response_received": "false"}
        )["hitl_details"]
        return next((one for one in found if one["task_instance"]["dag_run_id"] == run_id), None)

    def answer(self, live: Any, run_id: str, chosen: str, reason: str) -> None:
        path = f"/dags/{self.DAG}/dagRuns/{run_id}/taskInstances/canary/-1/hitlDetails"
        live.airflow.call("PATCH", path, json={"chosen_options": [chosen], "params_input": {"reason": reason}})

    def answered(self, live: Any, run_id: str, chosen: str, reason: str) -> Any:
        """The run, ended. The question is answered as a person does: once more, where it is asked once more, since
        Airflow loses a task that is resumed before its scheduler has heard that it waits (apache/airflow#72716)."""

        def ended() -> Any:
            if self.open_question(live, run_id) is not None:
                self.answer(live, run_id, chosen, reason)
            run = live.airflow.run(self.DAG, run_id)
            return run if run["state"] in ("success", "failed") else None

        return until(ended, f"{run_id} does not end")

    def test_evidence_against_it_withdraws_the_question(self, asked: Any, told: Told) -> None:
        run_id = asked.airflow.trigger(self.DAG)
        question = self.question(asked, run_id)
        assert question["subject"] == "asked: promote asked-predictor-00002?"
        assert "The judge would promote it: 0 of" in question["body"]
        assert question["options"] == ["Promote", "Roll back", "Watch longer"]
        asked.sandbox("kill", "models/asked-predictor-00002")
        run = asked.finished(self.DAG, run_id)
        assert run["state"] == "failed"
        sentence = str(asked.airflow.xcom(self.DAG, run_id, "report"))
        # Dead for a look or, started again at once, bad enough: either is evidence.
        assert "asked-predictor-00002 is dead: " in sentence or "canary requests failed" in sentence
        serving = asked.service("asked").serving
        assert "asked-predictor-00002" not in serving
        path = f"/dags/{self.DAG}/dagRuns/{run_id}/taskInstances/canary/-1/hitlDetails"
        assert asked.airflow.call("GET", path)["response_received"], "nobody can answer what is decided"
        assert told.of("asked")[-3:] == ["started", "needs you", "rolled back"]

    def test_who_says_promote_is_heard_and_remembered(self, asked: Any, told: Told) -> None:
        run_id = asked.airflow.trigger(self.DAG)
        question = self.question(asked, run_id)
        split = asked.service("asked").serving
        assert sorted(split.values()) == [50, 50], "the canary is open while the question is"
        run = self.answered(asked, run_id, "Promote", "looks well")
        assert run["state"] == "success"
        record = records(asked, "asked")[-1]
        assert record["outcome"] == "promoted"
        (approval,) = record["approvals"]
        assert (approval["who"], approval["decision"], approval["reason"]) == ("admin", "promote", "looks well")
        canary = question["subject"].removeprefix("asked: promote ").removesuffix("?")
        assert asked.service("asked").serving == {canary: 100}
        *before, last = told.of("asked")
        assert (last, before[-1]) == ("promoted", "needs you")


class TestALateRun:
    """`notify.after`: the scheduler sees that a run has not ended, and the triggerer tells."""

    def test_people_are_told_of_a_run_that_does_not_even_begin(self, live: Any, told: Told) -> None:
        model(live, "late", notify={"webhook": {"connection": "told"}, "after": "1s"})
        live.airflow.wait_for_dag("release_late")
        live.airflow.call("PATCH", "/dags/release_late", json={"is_paused": True})  # its runs stay in the queue
        run_id = live.airflow.trigger("release_late")

        def messages() -> list[dict[str, Any]]:
            return [one for one in told.messages if one["model"] == "late"]

        until(messages, lambda: live.airflow.run("release_late", run_id))
        (message,) = messages()
        assert message["event"] == "takes long"
        assert message["sentence"] == (
            "1s after it was queued it has not ended; it has not begun: the DAG is paused, or another run of the model "
            "is before it."
        )
        assert (message["service"], message["version"], message["traffic"]) == ("models/late", None, {})
        assert message["run"] == f"{live.airflow.url}/dags/release_late/runs/{quote(run_id)}"


@pytest.mark.walk
class TestByTraining:
    """`retrain_<model>` makes a candidate, and its asset starts the release."""

    def test_a_training_starts_the_release_of_what_it_made(self, live: Any) -> None:
        training = {"run": "sandbox.training:digits", "arguments": {"epochs": 2, "seed": 7}}
        (live.project / "candidates" / "trained").mkdir(parents=True)
        model(live, "trained", training=training)
        live.airflow.wait_for_dag("retrain_trained")
        live.airflow.wait_for_dag("release_trained")
        run = live.finished("retrain_trained", live.airflow.trigger("retrain_trained"))
        assert run["state"] == "success"
        path = "/dags/release_trained/dagRuns"
        started = until(lambda: live.airflow.call("GET", path)["dag_runs"], "no run came")[0]
        assert started["run_type"] == "asset_triggered"
        assert live.finished("release_trained", started["dag_run_id"])["state"] == "success"
        (record,) = records(live, "trained")
        assert record["outcome"] == "first"
        made = live.project / "candidates" / "trained" / record["source"]["candidate"]
        assert json.loads((made / "training.json").read_text())["arguments"]["epochs"] == 2
        assert live.service("trained").serving == {"trained-predictor-00001": 100}


class TestCommands:
    """`python -m model_release …` beside a running stack."""

    def test_the_doctor_finds_a_release_possible(self, live: Any, story: Story) -> None:
        done = command(live, "doctor", "--model", "digits", "--json")
        findings = json.loads(done.stdout[done.stdout.index("{\n") :])["digits"]
        assert [one for one in findings if one["level"] == "error"] == []
        assert done.returncode == 0
        seen = [one["sentence"] for one in findings if one["check"] == "metrics"]
        assert any("istio_requests_total" in one and "series" in one for one in seen)

    def test_versions_and_releases_tell_what_the_story_left(self, live: Any, story: Story) -> None:
        versions = json.loads(command(live, "versions", "digits", "--json").stdout)["versions"]
        releases = json.loads(command(live, "releases", "digits", "--json").stdout)["releases"]
        assert {one["version"] for one in versions} >= {told.record["version"] for told in story.releases.values()}
        outcomes = {one["release"]: one["outcome"] for one in releases}
        for told in story.releases.values():
            assert outcomes[told.record["release"]] == told.record["outcome"]


def command(live: Any, *words: str) -> Any:
    import os
    import subprocess
    import sys

    path = os.pathsep.join(str(live.project / part) for part in ("plugins", "include"))
    return subprocess.run(
        [sys.executable, "-m", "model_release", *words, "--sandbox-state", str(live.state)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
