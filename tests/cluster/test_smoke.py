"""The smoke prediction, against a gateway that answers what a test says."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from model_release.cluster.inference_service import InferenceService
from model_release.cluster.smoke import Gateway as Way
from model_release.cluster.smoke import smoke, smoke_url, stable_url
from model_release.errors import SmokeFailed
from sandbox.ports import free_port

SAMPLE = {
    "instances": [{"data": "aW1hZ2U="}, {"data": "b3RoZXI="}],
    "expected": [{"label": "3", "score": 0.93}, {"label": "7", "score": 0.8}],
}
GOOD = {
    "predictions": [[{"label": "3", "score": 0.931}, {"label": "5", "score": 0.05}], [{"label": "7", "score": 0.79}]]
}


class Gateway:
    def __init__(self) -> None:
        self.answers: list[tuple[int, object]] = [(200, GOOD)]
        self.requests: list[tuple[str, str, Any]] = []
        self.location = ""
        self.authorizations: list[str | None] = []
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                gateway.requests.append((self.path, self.headers["Host"], body))
                status, answer = gateway.answers.pop(0) if len(gateway.answers) > 1 else gateway.answers[0]
                text = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
                self.send_response(status)
                self.send_header("Location", gateway.location or f"http://{self.headers['Host']}/elsewhere:predict")
                gateway.authorizations.append(self.headers["Authorization"])
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *args: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    made = Gateway()
    yield made
    made.server.shutdown()
    made.server.server_close()


def ask(gateway: Gateway, **more: Any) -> Any:
    url = "http://latest-digits-predictor.models.localhost:8081"
    return smoke(url, "digits", SAMPLE, ingress=gateway.url, sleep=lambda _: None, **more)


def test_asks_the_tag_host_through_the_gateway(gateway: Gateway) -> None:
    told = ask(gateway)
    assert told.answers == ({"label": "3", "score": 0.931}, {"label": "7", "score": 0.79})
    assert (told.attempts, told.seconds < 5) == (1, True)
    body = {"instances": SAMPLE["instances"]}
    assert gateway.requests == [("/v1/models/digits:predict", "latest-digits-predictor.models.localhost:8081", body)]


def test_labels_that_are_equally_likely_may_come_in_either_order(gateway: Gateway) -> None:
    tie = [{"label": "8", "score": 0.935}, {"label": "3", "score": 0.93}]
    gateway.answers = [(200, {"predictions": [tie, GOOD["predictions"][1]]})]
    assert ask(gateway).answers[0] == {"label": "3", "score": 0.93}


def test_without_a_gateway_the_address_itself(gateway: Gateway) -> None:
    assert smoke(gateway.url, "digits", SAMPLE).attempts == 1
    assert gateway.requests[0][1] == gateway.url.removeprefix("http://")


def test_a_proxy_of_the_worker_is_not_asked(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert ask(gateway).attempts == 1


def test_an_answer_from_elsewhere_is_not_the_revisions(gateway: Gateway) -> None:
    gateway.answers = [(307, ""), (200, GOOD)]
    with pytest.raises(SmokeFailed, match="answered 307"):
        smoke(gateway.url, "digits", SAMPLE, sleep=lambda _: None)
    assert len(gateway.requests) == 1


@pytest.mark.parametrize(
    ("status", "location", "why"),
    [
        (
            301,
            "https://latest-digits/v1/models/digits:predict",
            "the gateway wants https; say so in the connection ingress",
        ),
        (
            302,
            "/dex/auth?client_id=x",
            r"to /dex/auth\?client_id=x: a sign-in page answered; connection ingress takes a",
        ),
        (401, "", "answered 401: Bearer \\*\\*\\* is not known .connection ingress takes a token"),
    ],
)
def test_k2_k3_what_a_gateway_wants_is_told_at_once(gateway: Gateway, status: int, location: str, why: str) -> None:
    """K2: http that redirects to https. K3: Dex or oauth2-proxy before the models. Neither gets better by waiting."""
    gateway.answers, gateway.location = [(status, "Bearer s3cr3t is not known")], location
    with pytest.raises(SmokeFailed, match=why) as failed:
        smoke("http://latest-digits", "digits", SAMPLE, ingress=Way(gateway.url, "Bearer s3cr3t"))
    assert "s3cr3t" not in str(failed.value)
    assert gateway.authorizations == ["Bearer s3cr3t"]


def test_k2_tls_at_an_address_is_of_the_tags_host(gateway: Gateway, tmp_path: Path) -> None:
    """K2: a private authority, and the certificate that SNI finds: the address is the gateway's, the name is not."""
    from tests.metrics.test_auth import Authority

    authority, asked = Authority(tmp_path), list[str | None]()
    certificate, key = authority.issue("latest-digits.models.localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.sni_callback = lambda _, name, __: asked.append(name)
    gateway.server.socket = context.wrap_socket(gateway.server.socket, server_side=True)
    secure = gateway.url.replace("http:", "https:")

    def ask(host: str, verify: bool | str = str(authority.file)) -> Any:
        return smoke(f"https://{host}", "digits", SAMPLE, ingress=Way(secure, verify=verify), deadline=0)

    assert ask("latest-digits.models.localhost").attempts == 1
    assert asked == ["latest-digits.models.localhost"]
    assert gateway.requests[0][1] == "latest-digits.models.localhost"
    with pytest.raises(SmokeFailed, match=r"TLS: .*extra verify, is the file of the authorities"):
        ask("latest-digits.models.localhost", verify=True)
    with pytest.raises(SmokeFailed, match=r"TLS: .*other\.localhost"):
        ask("other.localhost")
    assert ask("other.localhost", verify=False)


def test_a_route_that_is_not_in_place_yet_is_asked_again(gateway: Gateway) -> None:
    gateway.answers = [(404, "no route"), (503, "no healthy upstream"), (200, GOOD)]
    assert ask(gateway).attempts == 3


@pytest.mark.parametrize(
    ("status", "answer", "words"),
    [
        (503, {"error": "Model with name digits is not ready."}, r"answered 503: .*is not ready.*\(tried \d+ times"),
        (400, {"error": "row 0: no image"}, "answered 400: .*row 0: no image"),
        (500, "boom", "answered 500: boom"),
        (200, "<html>", r"is not \{predictions: .*<html>"),
        (200, {"predictions": [[]]}, "is not {predictions"),
        (
            200,
            {"predictions": [[{"label": "8", "score": 0.96}, {"label": "3", "score": 0.93}], GOOD["predictions"][1]]},
            "image 0: 8 0.9600",
        ),
        (200, {"predictions": [[{"label": "3", "score": "high"}]]}, "is not {predictions"),
        (200, {"predictions": [[{"label": "3", "score": 10**400}]]}, "is not {predictions"),
        (200, {"predictions": [GOOD["predictions"][0]]}, "has 1 answers to 2 instances"),
        (
            200,
            {"predictions": [[{"label": "8", "score": 0.93}], GOOD["predictions"][1]]},
            r"image 0: 8 0\.9300, where the archive answered 3 0\.9300",
        ),
        (
            200,
            {"predictions": [GOOD["predictions"][0], [{"label": "7", "score": 0.75}]]},
            r"image 1: 7 0\.7500, where the archive answered 7 0\.8000 \(tolerance 0\.02\)",
        ),
        (200, {"predictions": [GOOD["predictions"][0], [{"label": "7", "score": float("nan")}]]}, "image 1: 7 nan"),
    ],
)
def test_wrong_answers(gateway: Gateway, status: int, answer: object, words: str) -> None:
    gateway.answers = [(status, answer)]
    with pytest.raises(SmokeFailed, match=words) as failed:
        ask(gateway, deadline=0.05)
    assert "latest-digits-predictor.models.localhost" in str(failed.value)


def test_nobody_answers() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(SmokeFailed, match=r"no answer: .*\(tried \d+ times in 0.1 s\)"):
        smoke(url, "digits", SAMPLE, deadline=0.1, sleep=lambda _: None)


def test_the_address_comes_from_the_status(live: Any) -> None:
    live.stage("v1")
    assert smoke_url(live.get()) == "http://latest-digits-predictor.models.localhost"
    live.stage("v2")
    assert smoke_url(live.get()) == "http://latest-digits-predictor.models.localhost"
    assert stable_url(live.get()) == "http://prev-digits-predictor.models.localhost"


def test_no_address_at_0_percent_is_told() -> None:
    traffic = [{"latestRevision": True, "percent": 0, "revisionName": "r2"},
               {"percent": 100, "revisionName": "r1", "tag": "prev", "url": "http://prev"}]  # fmt: skip
    status = {"url": "http://digits", "components": {"predictor": {"traffic": traffic, "latestCreatedRevision": "r2"}}}
    metadata = {"name": "digits", "namespace": "models"}
    with pytest.raises(SmokeFailed, match="enable-tag-routing"):
        smoke_url(InferenceService({"metadata": metadata, "status": status}))
