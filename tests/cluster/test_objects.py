"""What the Kubernetes API's troubles become: told in one line, and sorted by who can mend them."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.client import ApiClient, Configuration
from tests.patience import LIMIT

from model_release.cluster import objects
from model_release.cluster.leases import Leases
from model_release.cluster.objects import WriteConflict
from model_release.cluster.release import Owner
from model_release.cluster.services import InferenceServices
from model_release.errors import ClusterRefused, ClusterUnavailable, ReleaseError
from sandbox.ports import free_port

ROOT = Path(__file__).parents[2]
ROLE = ROOT / "include" / "manifests" / "role.yaml"
PARSING = {"PYTHONPATH": str(ROOT / "plugins")}


def client(port: int) -> ApiClient:
    configuration = Configuration()
    configuration.host = f"http://127.0.0.1:{port}"
    configuration.retries = False
    return ApiClient(configuration)


@pytest.fixture
def answering() -> Iterator[Callable[[int, str], InferenceServices]]:
    """An API server that gives one answer to everything."""
    servers: list[ThreadingHTTPServer] = []

    def start(status: int, body: str) -> InferenceServices:
        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body.encode())))
                self.end_headers()
                self.wfile.write(body.encode())

            do_GET = do_POST = do_PATCH = do_DELETE = answer

            def log_message(self, *args: Any) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return InferenceServices(client(server.server_address[1]))

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def status(code: int, message: str, **more: Any) -> str:
    return json.dumps({"kind": "Status", "apiVersion": "v1", "code": code, "message": message, **more})


@pytest.mark.parametrize(
    ("code", "body", "error", "words"),
    [
        (401, status(401, "Unauthorized"), ClusterRefused, "does not accept the credentials"),
        (404, "404 page not found\n", ClusterRefused, "KServe is not installed in this cluster"),
        (
            404,
            status(404, "the server could not find the requested resource"),
            ClusterRefused,
            "KServe is not installed",
        ),
        (
            403,
            status(403, 'admission webhook "inferenceservice.kserve-webhook-server.validator" denied the request: no'),
            ClusterRefused,
            "refused with 403: admission webhook",
        ),
        (422, status(422, "spec.predictor: Required value"), ClusterRefused, "refused with 422: spec.predictor: Req"),
        (400, status(400, "strict decoding error"), ClusterRefused, "refused with 400: strict decoding error"),
        (409, status(409, "the object has been modified"), WriteConflict, "the object has been modified"),
        (429, status(429, "too many requests"), ClusterUnavailable, "answered 429: too many requests"),
        (500, status(500, "etcdserver: leader changed"), ClusterUnavailable, "answered 500: etcdserver"),
        (503, "<html>upstream</html>", ClusterUnavailable, "answered 503"),
    ],
)
def test_answers(
    answering: Callable[[int, str], InferenceServices], code: int, body: str, error: type[ReleaseError], words: str
) -> None:
    with pytest.raises(error) as raised:
        answering(code, body).get("models", "digits")
    assert words in str(raised.value)
    assert "get inferenceservices models/digits" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.transient is issubclass(error, ClusterUnavailable)


def test_a_403_names_the_missing_rule(answering: Callable[[int, str], InferenceServices]) -> None:
    said = (
        'inferenceservices.serving.kserve.io "digits" is forbidden: User "airflow" cannot create resource '
        '"inferenceservices" in API group "serving.kserve.io" in the namespace "models"'
    )
    with pytest.raises(ClusterRefused) as raised:
        answering(403, status(403, said)).create({"metadata": {"name": "digits", "namespace": "models"}})
    assert "needs verb create on inferenceservices.serving.kserve.io in namespace models" in str(raised.value)
    assert "include/manifests/role.yaml" in str(raised.value)


def test_no_such_object_is_none(answering: Callable[[int, str], InferenceServices]) -> None:
    body = status(404, 'inferenceservices "digits" not found', details={"name": "digits"})
    assert answering(404, body).get("models", "digits") is None


def test_no_such_namespace_is_told(answering: Callable[[int, str], InferenceServices]) -> None:
    body = status(404, 'namespaces "models" not found', details={"name": "models", "kind": "namespaces"})
    with pytest.raises(ClusterRefused, match="namespace models does not exist"):
        answering(404, body).create({"metadata": {"name": "digits", "namespace": "models"}})


def test_unreachable() -> None:
    with pytest.raises(ClusterUnavailable, match="does not answer"):
        InferenceServices(client(free_port())).get("models", "digits")


def test_a_server_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "TIMEOUTS", (0.2, 0.2))
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        with pytest.raises(ClusterUnavailable, match="does not answer"):
            InferenceServices(client(mute.getsockname()[1])).get("models", "digits")


def test_17_7_a_read_that_hangs_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Number 7: urllib3 would repeat it three times, which holds a look for 40 s. A heartbeat is not repeated at all:
    the next look is its repetition."""
    monkeypatch.setattr("model_release.cluster.objects.TIMEOUTS", (1.0, 0.1))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(LIMIT)
        configuration = Configuration()  # with the client's own repetitions, as Airflow's hook makes it
        configuration.host = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for asked in (
            lambda: InferenceServices(ApiClient(configuration)).get("models", "digits"),
            lambda: Leases(ApiClient(configuration)).renew("models", "digits", Owner("d", "r", "", ""), "me"),
        ):
            with pytest.raises(ClusterUnavailable, match="does not answer"):
                asked()
            silent.accept()
        silent.setblocking(False)
        with pytest.raises(BlockingIOError):
            silent.accept()


def test_a_changed_object_is_not_overwritten(live: Any) -> None:
    live.released("v1")
    old = live.get()
    live.services.patch(old, {"spec": {"predictor": {"maxReplicas": 2}}})
    with pytest.raises(WriteConflict):
        live.services.patch(old, {"spec": {"predictor": {"maxReplicas": 3}}})
    assert live.get().template["maxReplicas"] == 2


def test_one_made_anew_is_not_deleted(live: Any) -> None:
    live.released("v1")
    old = live.get()
    live.services.delete(old)
    while live.services.get("models", "digits") is not None:
        pass
    live.services.delete(old)
    live.released("v1")
    with pytest.raises(WriteConflict):
        live.services.delete(old)
    assert live.get().uid != old.uid


def test_the_role_has_what_is_called_and_no_more(live: Any) -> None:
    """A release, a roll-back and a first deployment undone, and what the API server saw of them."""
    owner = live.owner("run-1")
    live.leases.acquire("models", "digits", owner)
    baseline, canary = live.stage("v1")
    live.settle(baseline, canary.revision)
    live.released("v1")
    baseline, canary = live.stage("v2")
    live.shift(canary, 10)
    live.services.delete_revision(live.services.revision("models", canary.revision))
    live.settle(baseline, canary.revision)
    live.leases.give_free("models", "digits", owner)
    assert [lease.service for lease in live.leases.all(["models"])] == ["digits"]
    seen: dict[str, set[str]] = {}
    for call in live.cluster.faults.calls():
        seen.setdefault(f"{call['resource']}.{call['group']}", set()).add(call["verb"])
    allowed = {
        f"{resource}.{group}": set(rule["verbs"])
        for rule in yaml.safe_load(ROLE.read_text())["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    # In Standard mode alone: tests/manifests/test_rbac.py.
    assert allowed.pop("httproutes.gateway.networking.k8s.io") == {"get"}
    assert seen == allowed


def test_importing_the_room_imports_neither_kubernetes_nor_airflow() -> None:
    code = (
        "import sys; from model_release.cluster import lease, manifest, rollout, settle; "
        "print([m for m in ('kubernetes', 'airflow', 'torch') if m in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=PARSING)
    assert told.stdout.strip() == "[]"
