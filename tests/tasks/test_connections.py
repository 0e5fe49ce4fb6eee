"""What the connections say, in each form that Airflow takes them."""

from __future__ import annotations

import json
import re
import shlex
from argparse import Namespace
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from model_release.cluster.smoke import Gateway
from model_release.commands import surroundings
from model_release.errors import SpecError
from model_release.spec import ModelSpec
from model_release.tasks import connections

from .conftest import SPEC

PROJECT = Path(__file__).resolve().parents[2]


class Prometheus(HTTPServer):
    """Answers every query with nothing, and remembers who asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.authorization: list[str | None] = []
        self.port = self.server_address[1]


class _Answer(BaseHTTPRequestHandler):
    server: Prometheus

    def do_GET(self) -> None:
        self.server.authorization.append(self.headers["Authorization"])
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        body = json.dumps({"status": "success", "data": {"resultType": "vector", "result": []}}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Not on the terminal."""


@pytest.fixture
def prometheus() -> Iterator[Prometheus]:
    with Prometheus() as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def given(monkeypatch: pytest.MonkeyPatch, name: str, connection: str | dict[str, Any]) -> None:
    text = connection if isinstance(connection, str) else json.dumps(connection)
    monkeypatch.setenv(f"AIRFLOW_CONN_{name}", text)


@pytest.mark.parametrize(
    ("connection", "address"),
    [
        ({"conn_type": "http", "host": "prometheus", "port": 9090}, "http://prometheus:9090"),
        ({"conn_type": "http", "host": "prometheus", "port": 9090, "schema": "https"}, "https://prometheus:9090"),
        ({"conn_type": "http", "host": "https://prometheus.example"}, "https://prometheus.example"),
        ({"conn_type": "http", "host": "https://prometheus.example/"}, "https://prometheus.example"),
        ({"conn_type": "http", "host": "http://prometheus.example", "schema": "https"}, "http://prometheus.example"),
        ({"conn_type": "http", "host": "http://10.0.0.7", "port": 9090}, "http://10.0.0.7:9090"),
        ("http://prometheus:9090", "http://prometheus:9090"),
        ("http://prometheus:9090/https", "https://prometheus:9090"),
    ],
)
def test_an_address_is_read_with_and_without_scheme_and_port(
    monkeypatch: pytest.MonkeyPatch, connection: str | dict[str, Any], address: str
) -> None:
    given(monkeypatch, "PROMETHEUS", connection)
    assert connections.prometheus_address() == address


def test_a_cluster_whose_host_names_resolve_needs_no_ingress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_INGRESS", raising=False)
    assert connections.ingress() == Gateway()
    given(monkeypatch, "INGRESS", "http://127.0.0.1:8080")
    assert connections.ingress() == Gateway("http://127.0.0.1:8080")


def test_k3_the_gateway_is_signed_in_to_and_what_nobody_reads_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """K3: login, password and token were thrown away silently. K2: `verify`."""
    where = {"conn_type": "http", "host": "https://10.0.0.1"}
    given(monkeypatch, "INGRESS", {**where, "extra": {"token": "s3cr3t", "verify": "/etc/ca.pem"}})
    found = connections.ingress()
    assert found == Gateway("https://10.0.0.1", "Bearer s3cr3t", "/etc/ca.pem")
    assert "s3cr3t" not in repr(found)
    given(monkeypatch, "INGRESS", {**where, "login": "a", "password": "b"})
    assert connections.ingress() == Gateway("https://10.0.0.1", "Basic YTpi")
    given(monkeypatch, "INGRESS", {"conn_type": "http", "extra": {"token": "t"}})
    assert connections.ingress() == Gateway(None, "Bearer t")
    for extra, why in (({"tokn": "x"}, "'tokn' is unknown; known are token, verify"), ({"token": "x"}, "give one")):
        given(monkeypatch, "INGRESS", {**where, "login": "a", "extra": extra})
        with pytest.raises(SpecError, match=why):
            connections.ingress()


def test_the_link_to_prometheus_is_left_out_where_there_is_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_PROMETHEUS", raising=False)
    assert connections.prometheus_address() is None


@pytest.mark.parametrize(
    ("said", "header"),
    [
        ({}, None),
        ({"login": "reader", "password": "p:w"}, "Basic cmVhZGVyOnA6dw=="),
        ({"extra": {"token": "abc"}}, "Bearer abc"),
    ],
)
def test_prometheus_gets_the_credentials_of_its_connection(
    monkeypatch: pytest.MonkeyPatch, prometheus: Prometheus, said: dict[str, Any], header: str | None
) -> None:
    given(monkeypatch, "PROMETHEUS", {"conn_type": "http", "host": "127.0.0.1", "port": prometheus.port, **said})
    connections.prometheus().query("up", datetime(2026, 3, 1, tzinfo=UTC))
    assert prometheus.authorization == [header]


def test_a_store_is_reached_by_the_kind_of_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    google = {"conn_type": "google_cloud_platform", "extra": {"endpoint_url": "http://127.0.0.1:9", "project": "p"}}
    given(monkeypatch, "MODEL_STORE_GCS", google)
    key = "a2V5"  # what a key is: base64
    given(monkeypatch, "MODEL_STORE_AZURE", {"conn_type": "wasb", "password": key, "host": "10.0.0.1/team7"})
    given(monkeypatch, "MODEL_STORE", {"conn_type": "aws", "extra": {"region_name": "eu-north-1"}})
    assert connections.reach("gs://models/faces/").client.project == "p"
    azure = connections.reach("abfss://models@team7.dfs.core.windows.net/faces/")
    assert (azure.url, azure.credential.account_name) == ("https://10.0.0.1/team7/", "team7")
    assert key not in repr(vars(connections._given("model_store_azure")).keys())
    assert key not in repr(connections._given("model_store_azure"))
    assert connections.reach("s3://models/faces/").meta.region_name == "eu-north-1"
    assert connections.store("gs://models/faces/").uri == "gs://models/faces/"

    # The same for commands, outside of Airflow.
    options = Namespace(sandbox=None, endpoint_url=None)
    assert surroundings.reach(options, "gs://models/faces/").client.project == "p"
    found = surroundings.reach(options, "abfs://models@team7.dfs.core.windows.net/faces/")
    assert (found.url, found.credential.account_name) == ("https://10.0.0.1/team7/", "team7")


def test_without_a_connection_the_machines_own_credentials_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "absent.json"))
    with pytest.raises(SpecError, match=r"connection model_store_gcs: no credentials .*absent\.json was not found"):
        connections.reach("gs://models/faces/")
    azure = connections.reach("abfss://models@team7.dfs.core.windows.net/faces/")
    assert azure.url == "https://team7.blob.core.windows.net/"
    assert type(azure.credential).__name__ == "DefaultAzureCredential"


@pytest.mark.parametrize(
    ("name", "uri", "connection", "why"),
    [
        ("GCS", "gs://models/", {"extra": {"keyfile": "x"}}, "extra 'keyfile' is unknown; known are project, key_path"),
        ("GCS", "gs://models/", {"extra": {"keyfile_dict": "{}"}}, "no credentials for Google's storage"),
        ("GCS", "gs://models/", {"extra": {"key_path": "/absent.json"}}, "No such file.*/absent.json"),
        (
            "AZURE",
            "abfs://models@team.dfs.core.windows.net/",
            {"extra": {"tenant_id": "x"}},
            "needs a service principal",
        ),
    ],
)
def test_what_a_stores_connection_cannot_say(
    monkeypatch: pytest.MonkeyPatch, name: str, uri: str, connection: dict[str, Any], why: str
) -> None:
    given(monkeypatch, f"MODEL_STORE_{name}", {"conn_type": "generic", **connection})
    with pytest.raises(SpecError, match=why):
        connections.reach(uri)


def test_the_page_of_stores_says_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```(\w+)\n(.*?)```", (PROJECT / "docs/stores.md").read_text(encoding="utf-8"), re.DOTALL)
    exports, install = (text for kind, text in blocks if kind == "bash")
    (file,) = (text for kind, text in blocks if kind == "yaml")
    spec = ModelSpec.model_validate({**SPEC, **yaml.safe_load(file)})
    assert spec.store == "gs://models/faces/"
    for line in exports.splitlines():
        name, _, value = shlex.split(line)[1].partition("=")
        monkeypatch.setenv(name, value)
    assert connections._given("model_store_gcs").extra == {"key_path": "/keys/release.json"}
    assert connections._given("model_store_azure").password == "the account key"
    listed = (PROJECT / "requirements.txt").read_text(encoding="utf-8")
    packages = shlex.split(install)[4:]
    assert len(packages) == 3
    assert all(re.search(rf"^{package}==", listed, re.MULTILINE) for package in packages)
