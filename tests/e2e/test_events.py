"""A release that nobody starts: a candidate comes, the triggerer sees it, and another DAG follows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tests.patience import until

from .models import candidate, model, records

pytestmark = pytest.mark.e2e
PAGE = Path(__file__).resolve().parents[2] / "docs" / "assets.md"


def runs(live: Any, dag: str) -> list[dict[str, Any]]:
    found = live.airflow.call("GET", f"/dags/{dag}/dagRuns", params={"order_by": "run_after"})
    return list(found["dag_runs"])


def ended(live: Any, dag: str, count: int) -> list[dict[str, Any]]:
    """The DAG's runs, when that many have ended."""
    until(
        lambda: sum(one["state"] in ("success", "failed") for one in runs(live, dag)) >= count, lambda: runs(live, dag)
    )
    return runs(live, dag)


def test_a_candidate_that_comes_is_released_once_and_another_dag_follows(live: Any) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    # Behind a file that Airflow has seen: for a new one it looks every five minutes.
    with (live.project / "dags" / "sweep.py").open("a") as file:
        file.write(code.replace("faces", "seen"))
    (live.project / "candidates" / "seen").mkdir(parents=True)
    model(live, "seen", source={"directory": "candidates/seen", "watch": "2s"})
    for dag in ("release_seen", "score_with_seen"):
        live.airflow.wait_for_dag(dag)
    candidate(live, "seen", "20261101T000000", "first")
    (run,) = ended(live, "release_seen", 1)
    assert (run["run_type"], run["state"]) == ("asset_triggered", "success")
    (record,) = records(live, "seen")
    assert record["outcome"] == "first"
    assert record["source"]["candidate"] == "20261101T000000"
    assert record["run"]["bundle"] == "dags-folder"

    (follower,) = ended(live, "score_with_seen", 1)
    assert follower["state"] == "success"
    uri = f"s3://models/seen/versions/{record['version']}/"
    assert live.airflow.xcom("score_with_seen", follower["dag_run_id"], "which") == uri

    # The same event again, as after a triggerer that died.
    (asset,) = live.airflow.call("GET", "/assets", params={"name_pattern": "candidate_seen"})["assets"]
    live.airflow.call("POST", "/assets/events", json={"asset_id": asset["id"], "extra": {}})
    assert [one["state"] for one in ended(live, "release_seen", 2)] == ["success", "success"]
    first, second = records(live, "seen")
    assert second["outcome"] == "nothing_new"
    assert second["reason"].endswith(f"was taken by the release {first['release']} already; nothing new.")
