"""A training by hand in the live stack: its candidate starts a release, which takes that very candidate."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest

pytestmark = pytest.mark.e2e


def test_a_trained_candidate_starts_a_release_of_its_own(live: Any) -> None:
    airflow = live.airflow
    airflow.wait_for_dag("retrain_digits")
    airflow.wait_for_dag("release_digits")
    run = airflow.trigger("retrain_digits")
    assert live.finished("retrain_digits", run)["state"] == "success"

    asked = {"source_dag_id": "retrain_digits", "source_run_id": run}
    (event,) = eventually(lambda: started_by(airflow.call("GET", "/assets/events", params=asked)["asset_events"]))
    told = event["extra"]
    kept = json.loads((live.project / "candidates/digits" / told["candidate"] / "training.json").read_text())
    assert (event["name"], event["uri"]) == ("candidate_digits", "x-model-release://candidates/digits")
    assert told == {
        "candidate": kept["candidate"],
        "origin": f"directory:candidates/digits/{kept['candidate']}",
        "digest": kept["fingerprint"],
        "metrics": kept["metrics"],
        "duration": kept["seconds"],
    }
    assert kept["metrics"]["accuracy"] > 0.9
    assert len(kept["learning_curve"]) == kept["arguments"]["epochs"] == 26
    log = list(airflow.log("retrain_digits", run, "train"))
    assert any("epoch 26/26" in line for line in log), "as it comes"

    (release,) = [made["run_id"] for made in event["created_dagruns"]]
    assert airflow.run("release_digits", release)["run_type"] == "asset_triggered"
    # What a release does is held elsewhere; this one is ended by hand as soon as it knows what it releases.
    resolved = eventually(lambda: airflow.xcom("release_digits", release, "resolve", "resolved"))
    assert resolved["source"]["candidate"] == told["candidate"]
    airflow.call("PATCH", f"/dags/release_digits/dagRuns/{quote(release, safe='')}", json={"state": "failed"})
    assert live.finished("release_digits", release)["state"] == "failed"


def started_by(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events that have started a run; the scheduler does it a moment later."""
    return [event for event in events if event["created_dagruns"]]


def eventually(look: Callable[[], Any], patience: float = 60) -> Any:
    """What `look` returns, once that is something."""
    end = time.monotonic() + patience
    while not (found := look()):
        assert time.monotonic() < end, f"nothing came in {patience:.0f} s"
        time.sleep(0.3)
    return found
