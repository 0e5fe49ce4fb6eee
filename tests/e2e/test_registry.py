"""Releases from a real MLflow registry, through a real Airflow: what docs/mlflow.md promises, from end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.mlflow_server import serving

from model_release.build.registry import Registry
from sandbox.digits import make_candidate

from .models import model, records

pytestmark = [pytest.mark.e2e, pytest.mark.walk]

DAG = "release_registered"


def test_the_candidate_of_a_registry_becomes_its_champion(live: Any, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        registry = Registry(server.address)
        host, _, port = server.address.removeprefix("http://").partition(":")
        connection = {"connection_id": "mlflow", "conn_type": "http", "schema": "http", "host": host, "port": int(port)}
        live.airflow.call("POST", "/connections", json=connection)

        def register(trained: str) -> str:
            done = live.state / "trained" / trained
            make_candidate(trained, done)
            number = server.put(done, "registered")
            registry.move("registered", "candidate", number)
            return number

        assert register("first") == "1"
        model(live, "registered", source={"mlflow": "models:/registered@candidate", "on_promotion": "champion"})
        live.airflow.wait_for_dag(DAG)
        assert live.finished(DAG, live.airflow.trigger(DAG))["state"] == "success"
        assert champion(registry) == "1"

        live.sandbox("load", "--service", "models/registered", "--rate", "60")
        try:
            assert register("better") == "2"
            run_id = live.airflow.trigger(DAG)
            assert live.finished(DAG, run_id)["state"] == "success"
            assert champion(registry) == "2"
            assert live.finished(DAG, live.airflow.trigger(DAG))["state"] == "success", "nothing new"
        finally:
            live.sandbox("load", "--end")

        first, better, again = records(live, "registered")
        assert [one["outcome"] for one in (first, better, again)] == ["first", "promoted", "nothing_new"]
        assert better["source"]["origin"] == "models:/registered/2"
        assert tags(server, "1")["model_release.outcome"] == "first"
        told = tags(server, "2")
        assert told["model_release.outcome"] == "promoted"
        assert told["model_release.version"] == better["version"]
        assert told["model_release.why"] == better["reason"]
        assert told["model_release.release"] == better["release"]
        assert better["release"] in told["model_release.link"]
        assert live.service("registered").storage_uri == f"s3://models/registered/versions/{better['version']}/"


def champion(registry: Registry) -> str | None:
    found = registry.at("registered", "champion")
    return found.version if found else None


def tags(server: Any, version: str) -> dict[str, str]:
    import requests

    asked = {"name": "registered", "version": version}
    answer = requests.get(f"{server.address}/api/2.0/mlflow/model-versions/get", params=asked, timeout=60)
    return {one["key"]: one["value"] for one in answer.json()["model_version"]["tags"]}
