"""The plugin in Airflow's own API server, with its own sign-in and an auth manager that knows DAGs apart."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from tests.patience import LIMIT, until

from model_release.web.app import HEADERS
from sandbox.ports import free_port

PROJECT = Path(__file__).resolve().parents[2]
# SimpleAuthManager gives a role all DAGs; this one keeps one DAG from one user, as FAB or Keycloak would.
MANAGER = """
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

class Apart(SimpleAuthManager):
    def is_authorized_dag(self, *, method, user, access_entity=None, details=None):
        if user.get_name() == "eve" and details is not None and details.id == "release_digits":
            return False
        return super().is_authorized_dag(method=method, user=user, access_entity=access_entity, details=details)
"""
MODEL = """
model: {name}
source: {{directory: candidates/{name}}}
service: {{name: {name}, namespace: models}}
store: s3://models/{name}/
judge: {{metrics: [{{name: errors, max_rate: 0.02}}]}}
"""


@dataclass
class Server:
    url: str

    def token(self, user: str) -> str:
        answer = requests.post(f"{self.url}/auth/token", json={"username": user, "password": user}, timeout=LIMIT)
        return str(answer.json()["access_token"])

    def get(self, path: str, user: str | None = None, **more: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {self.token(user)}"} if user else {}
        return requests.get(f"{self.url}{path}", headers=headers | more.pop("headers", {}), timeout=LIMIT, **more)


@pytest.fixture(scope="module")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Airflow's API server alone, with this project's plugin and two model files; no store, cluster or Prometheus."""
    home = tmp_path_factory.mktemp("airflow")
    for part in ("home", "dags", "include/models", "more"):
        (home / part).mkdir(parents=True)
    shutil.copytree(PROJECT / "plugins", home / "plugins", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("digits", "faces"):
        (home / f"include/models/{name}.yaml").write_text(MODEL.format(name=name))
    (home / "more/apart.py").write_text(MANAGER)
    (home / "passwords.json").write_text(json.dumps({"ada": "ada", "eve": "eve"}))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")} | {
        "AIRFLOW_HOME": str(home / "home"),
        "PYTHONPATH": os.pathsep.join([str(home / "plugins"), str(home / "more")]),
        "AIRFLOW__CORE__AUTH_MANAGER": "apart.Apart",
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(home / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "ada:admin,eve:viewer",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords.json"),
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API_AUTH__JWT_SECRET": "x" * 64,
        "AIRFLOW_CONN_PROMETHEUS": json.dumps({"conn_type": "http", "host": "127.0.0.1", "port": 9}),
    }
    airflow = [sys.executable, "-m", "airflow"]
    subprocess.run([*airflow, "db", "migrate"], env=env, check=True, capture_output=True)
    # In the database, and nowhere else: the page must find it as a person made it in the UI.
    words = [
        "connections",
        "add",
        "grafana",
        "--conn-type",
        "http",
        "--conn-host",
        "grafana.test",
        "--conn-port",
        "3000",
    ]
    subprocess.run([*airflow, *words], env=env, check=True, capture_output=True)
    with (home / "log").open("w") as log:
        command = [*airflow, "api-server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    try:

        def answers() -> bool:
            assert server.poll() is None, (home / "log").read_text()[-2000:]
            try:
                return requests.get(f"{url}/api/v2/version", timeout=LIMIT).ok
            except requests.RequestException:
                return False

        until(answers, lambda: (home / "log").read_text()[-2000:])
        yield Server(url)
    finally:
        os.killpg(server.pid, 15)
        server.wait()


def test_airflow_asks_for_a_sign_in_on_every_page(api_server: Server) -> None:
    for path in ("/", "/releases", "/services/models/digits", "/api/fleet", "/dags/release_digits"):
        answer = api_server.get(f"/model-releases{path}", headers={"Accept": "text/html"})
        assert answer.status_code == 401, path
        assert answer.headers["Content-Security-Policy"] == HEADERS["Content-Security-Policy"]
    page = api_server.get("/model-releases/", headers={"Accept": "text/html"}).text
    assert "/auth/login" in page
    assert "next=%2Fmodel-releases%2F" in page
    forged = requests.get(f"{api_server.url}/model-releases/", headers={"Authorization": "Bearer x.y.z"}, timeout=LIMIT)
    assert forged.status_code in (401, 403)


def test_the_cookie_of_the_ui_signs_in_too(api_server: Server) -> None:
    cookie = {"_token": api_server.token("ada")}
    answer = requests.get(f"{api_server.url}/model-releases/", cookies=cookie, timeout=LIMIT)
    assert answer.status_code == 200
    assert "models/digits" in answer.text


def test_airflow_says_whose_dags_one_may_see(api_server: Server) -> None:
    seen = {row["service"] for row in api_server.get("/model-releases/api/fleet", "ada").json()["services"]}
    assert seen == {"models/digits", "models/faces"}
    seen = {row["service"] for row in api_server.get("/model-releases/api/fleet", "eve").json()["services"]}
    assert seen == {"models/faces"}
    for path in ("/api/services/models/digits", "/dags/release_digits", "/releases/digits-20260101T000000-00000000"):
        assert api_server.get(f"/model-releases{path}", "eve").status_code == 403, path


def test_missing_connections_are_told_by_name_and_the_page_is_there(api_server: Server) -> None:
    page = api_server.get("/model-releases/", "ada")
    assert page.status_code == 200
    assert "there is no Airflow connection" in page.text
    assert "kubernetes" in page.text
    assert "The store (s3://models/digits/)" in page.text, "with no connection, whatever the machine itself may use"
    told = api_server.get("/model-releases/api/services/models/digits/traffic", "ada").json()
    assert "Prometheus at http://127.0.0.1:9" in told["trouble"]


def test_a_connection_made_in_the_ui_is_found(api_server: Server) -> None:
    told = api_server.get("/model-releases/api/services/models/digits", "ada").json()
    assert told["links"]["grafana"].startswith("http://grafana.test:3000/d/model-release-service-knative-otel?")


def test_airflow_lists_the_views(api_server: Server) -> None:
    plugins = api_server.get("/api/v2/plugins", "ada").json()["plugins"]
    ours = next(plugin for plugin in plugins if plugin["name"] == "model_release")
    views = {view["destination"]: view for view in ours["external_views"]}
    assert set(views) == {"nav", "dag", "dag_run"}
    assert views["dag_run"]["href"] == "/model-releases/dags/{DAG_ID}/runs/{RUN_ID}"
    assert api_server.get(views["nav"]["icon"]).status_code == 200
    assert not api_server.get("/api/v2/plugins/importErrors", "ada").json()["import_errors"]
