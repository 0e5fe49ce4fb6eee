"""Models of a real MLflow server, which runs in an environment of its own; docs/mlflow.md, command by command."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from tests.mlflow_server import CONNECT, FILE, LOOK, REGISTER, SCRIPT, Server, serving
from tests.patience import LIMIT

from model_release.build.registry import Registry, split
from model_release.build.source import fetch
from model_release.errors import CheckpointError, SourceUnavailable, SpecError
from model_release.judging.record import Record
from model_release.spec import ModelSpec
from model_release.store.store import Store

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Any) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("mlflow")
    shutil.copytree(make_checkpoint(), folder / "checkpoint")
    (folder / "register.py").write_text(SCRIPT)
    with serving(folder) as server:
        yield server


@pytest.fixture
def registry(mlflow: Server) -> Registry:
    return Registry(mlflow.address)


def test_the_page_from_its_first_command_to_its_last(
    mlflow: Server, s3: Any, make_checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_release.tasks import connections
    from model_release.tasks import registry as told
    from model_release.tasks.build import Resolve
    from model_release.tasks.which import Choice

    mlflow.run(REGISTER)
    spec = ModelSpec.model_validate(yaml.safe_load(FILE))
    name, address = mlflow.said(CONNECT).removeprefix("export ").strip().split("=")
    monkeypatch.setenv(name, address)
    store = Store(s3.client, spec.store)
    monkeypatch.setattr(connections, "s3", lambda: s3.client)

    # What the alias stands at when the release begins is released, wherever it goes then.
    resolve = Resolve(task_id="resolve", spec=spec, root=PROJECT, build="export", built="publish")
    found = resolve.find(Choice(None, None, datetime.now(UTC), "the newest by now"))
    second = mlflow.put(make_checkpoint("deit", "deit"), "digits")
    mlflow.call("registered-models/alias", name="digits", alias="candidate", version=second)
    assert (found["source"]["origin"], second) == ("models:/digits/1", "2")
    store.unstash(f"{found['build']}/checkpoint", mlflow.folder / "unstashed")
    config = json.loads((mlflow.folder / "unstashed/config.json").read_text())
    assert config["architectures"] == ["ViTForImageClassification"]

    # The registry is away when it is promoted: the promotion stands, and the registry is told later.
    record = Record.new("digits-1", model="digits", service="models/digits", version="0123456789abcdef", started=now())
    record.source = found["source"]
    record.finish("promoted", "Promoted: 0 of 300.", now())
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    told.note(spec, record, "http://airflow/releases/digits-1")
    assert store.read_json("registry/digits.json")[0]["alias"]["told"] is False
    monkeypatch.setenv(name, address)
    told.write(spec)
    champion = json.loads(mlflow.run(LOOK))["model_version"]
    assert champion["version"] == "1"
    tags = {one["key"]: one["value"] for one in champion["tags"]}
    assert tags == {
        "model_release.outcome": "promoted",
        "model_release.why": "Promoted: 0 of 300.",
        "model_release.version": "0123456789abcdef",
        "model_release.service": "models/digits",
        "model_release.release": "digits-1",
        "model_release.link": "http://airflow/releases/digits-1",
    }

    # The next candidate is promoted, and rolled back in its bake.
    next_one = Record.new("digits-2", model="digits", service="models/digits", version="f" * 16, started=now())
    next_one.source = resolve.find(Choice(None, None, datetime.now(UTC), "the newest by now"))["source"]
    for outcome, stands in (("promoted", "2"), ("rolled_back", "1")):
        next_one.finish(outcome, f"{outcome}.", now())
        told.note(spec, next_one, "")
        assert json.loads(mlflow.run(LOOK))["model_version"]["version"] == stands
    found_tags = requests.get(
        f"{mlflow.address}/api/2.0/mlflow/model-versions/get",
        params={"name": "digits", "version": "2"},
        timeout=LIMIT,
    ).json()["model_version"]["tags"]
    assert {"key": "model_release.outcome", "value": "rolled_back"} in found_tags


def now() -> str:
    return datetime.now(UTC).isoformat()


def test_each_way_to_name_a_version(mlflow: Server, registry: Registry, make_checkpoint: Any, tmp_path: Path) -> None:
    vit, deit = make_checkpoint(), make_checkpoint("deit", "deit")
    mlflow.put(vit, "two words", as_transformers=True)
    first = registry.version("two words", "1")
    assert first is not None
    mlflow.put(deit, "two words")
    mlflow.call("registered-models/alias", name="two words", alias="candidate", version="2")

    def architecture(uri: str, *, until: datetime | None = None, **more: str) -> str:
        source = {"mlflow": uri, **more}
        return fetch(source, tmp_path / "x", mlflow=registry, not_later_than=until).architecture

    vits, deits = "ViTForImageClassification", "DeiTForImageClassification"
    assert architecture("models:/two words/1") == vits
    assert architecture("models:/two words@candidate") == architecture("models:/two words/latest") == deits
    assert architecture("models:/two words/latest", until=first.time) == vits
    assert architecture("models:/two words@candidate", revision="1") == vits
    assert architecture("models:/two words/1", revision="candidate") == deits
    found = fetch({"mlflow": "models:/two words/1"}, tmp_path / "x", mlflow=registry)
    assert (found.origin, found.commit, found.time) == ("models:/two words/1", first.source, first.time)
    assert found.fingerprint == fetch({"directory": str(vit)}, tmp_path / "y").fingerprint

    long_ago = first.time - timedelta(hours=1)
    refused = {
        "models:/nobody@candidate": r"models:/nobody@candidate at http://127\.0\.0\.1:\d+: MLflow knows no such",
        "models:/two words@champion": "knows no such version",
        "models:/two words/9": "knows no such version",
        "models:/nobody/latest": "knows no such version",
    }
    for uri, line in refused.items():
        with pytest.raises(CheckpointError, match=line):
            architecture(uri)
    with pytest.raises(CheckpointError, match=r"is version 2, .* where an alias stood earlier MLflow does not"):
        architecture("models:/two words@candidate", until=long_ago)
    with pytest.raises(CheckpointError, match="knows no such version"):
        architecture("models:/two words/latest", until=long_ago)


def test_files_that_a_release_cannot_read_are_told_by_their_place(
    mlflow: Server, registry: Registry, tmp_path: Path
) -> None:
    mlflow.call("registered-models/create", name="elsewhere")
    mlflow.call("model-versions/create", name="elsewhere", source="gs://bucket/model")
    with pytest.raises(CheckpointError, match="its files are at gs://bucket/model, where a release cannot read them"):
        fetch({"mlflow": "models:/elsewhere/1"}, tmp_path / "x", mlflow=registry)


def test_files_in_s3_are_read_there(
    mlflow: Server, registry: Registry, s3: Any, make_checkpoint: Any, tmp_path: Path
) -> None:
    folder = make_checkpoint()
    for path in folder.iterdir():
        s3.client.upload_file(str(path), "models", f"mlflow/1/{path.name}")
    mlflow.call("registered-models/create", name="in-s3")
    mlflow.call("model-versions/create", name="in-s3", source="s3://models/mlflow/1")
    found = fetch({"mlflow": "models:/in-s3/1"}, tmp_path / "x", mlflow=registry, reach=lambda _: s3.client)
    assert found.fingerprint == fetch({"directory": str(folder)}, tmp_path / "y").fingerprint


@pytest.mark.parametrize(
    ("status", "body", "kind", "line"),
    [
        (200, b"<html>sign in</html>", SourceUnavailable, "no answer of MLflow's"),
        (503, b"busy", SourceUnavailable, "MLflow answers 503"),
        (429, b"", SourceUnavailable, "MLflow answers 429"),
        (401, b"who are you", CheckpointError, r"refuses .*registered-models/alias.*401.*mend the Airflow connection"),
        (403, b'{"error_code": "PERMISSION_DENIED", "message": "no"}', CheckpointError, "403.*: no; mend the Airflow"),
        (200, b'{"model_version": {"name": "digits"}}', SourceUnavailable, "in a form that is none"),
    ],
)
def test_what_a_server_may_say_instead(status: int, body: bytes, kind: Any, line: str, tmp_path: Path) -> None:
    seen: list[str | None] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers["Authorization"])
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        registry = Registry(f"http://127.0.0.1:{server.server_address[1]}", "Bearer secret-token")
        with pytest.raises(kind, match=line) as raised:
            fetch({"mlflow": "models:/digits@candidate"}, tmp_path / "x", mlflow=registry)
        server.shutdown()
    assert seen == ["Bearer secret-token"]
    assert "secret-token" not in f"{raised.value}{registry!r}"


def test_a_server_that_is_away_or_that_nobody_named(tmp_path: Path) -> None:
    source = {"mlflow": "models:/digits@candidate"}
    with pytest.raises(SourceUnavailable, match="MLflow does not answer"):
        fetch(source, tmp_path / "x", mlflow=Registry("http://127.0.0.1:9"))
    with pytest.raises(CheckpointError, match="needs the address of an MLflow server; mend the Airflow connection"):
        fetch(source, tmp_path / "x")


@pytest.mark.parametrize(
    "uri", ["digits", "models:/digits", "models:/digits@a b", "models:/a/b/1", "runs:/1/model", "models:/x'y/1"]
)
def test_what_is_no_model_of_a_registry(uri: str) -> None:
    with pytest.raises(SpecError, match="is no model of a registry; models:/name@alias"):
        split(uri)
