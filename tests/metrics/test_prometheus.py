"""The client against a real Prometheus; faults that a real one cannot be brought to come from a tiny server."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from model_release.errors import MetricsRefused, MetricsUnavailable
from model_release.judging import Side, Window
from model_release.metrics import Prometheus, ValueReader
from model_release.metrics.prometheus import milliseconds, selector
from model_release.spec import Value
from sandbox.ports import free_port

from .conftest import History, at

Serve = Callable[[History], Prometheus]


class Stub(http.server.ThreadingHTTPServer):
    """Answers every request alike, and remembers what it was asked."""

    status, body, content_type = 200, b"", "application/json"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen: list[Any] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def says(self, status: int, content: Any) -> None:
        self.status, self.body = status, json.dumps(content).encode()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Stub

    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.headers.get("Authorization")))
        self.send_response(self.server.status)
        self.send_header("Content-Type", self.server.content_type)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def stub() -> Iterator[Stub]:
    server = Stub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


AWKWARD = 'a"b\\c\nd{e}|f.*'


def test_any_text_is_only_itself(serve: Serve) -> None:
    history = History()
    escaped = AWKWARD.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    history.add("one", {"name": escaped}, {0: 1})
    history.add("one", {"name": "other"}, {0: 2})
    prometheus = serve(history)
    for query in (
        selector("one", {"name": AWKWARD}),
        selector("one", {}, {"name": [AWKWARD]}),
        selector("one", {}, beginning={"name": [AWKWARD[:8]]}),
    ):
        found = prometheus.query(query, at(0)).series
        assert [series.labels["name"] for series in found] == [AWKWARD]
    assert prometheus.query(selector("one", {}, {"name": ["o.her"]}), at(0)).series == []


def test_raw_samples_are_exact_and_without_the_left_end(serve: Serve) -> None:
    history = History()
    history.add("one", {"job": "a"}, {0: 1e9, 0.25: 1e9 + 1, 1.001: 2**53})
    begin = milliseconds(at(0))
    (series,) = serve(history).raw("one", begin, begin + 1001)
    assert series.samples == [(begin + 250, 1e9 + 1), (begin + 1001, 2**53)]


def test_a_long_query_is_answered(serve: Serve) -> None:
    history = History()
    history.add("one", {"name": "name-4999"}, {0: 1})
    names = [f"name-{number}" for number in range(5000)]
    assert len(serve(history).query(selector("one", {}, {"name": names}), at(0)).series) == 1


def test_a_query_that_is_none_is_refused_in_prometheus_words(serve: Serve) -> None:
    prometheus = serve(History())
    with pytest.raises(MetricsRefused, match=r"refuses the query \(400\).*parse error.*query: sum\(") as caught:
        prometheus.query("sum(")
    assert "\n" not in str(caught.value)


def test_a_query_that_cannot_be_executed_is_refused(serve: Serve) -> None:
    """422 of a real Prometheus: two series match on the side that must be one."""
    history = History()
    for side in ("a", "b"):
        history.add("one", {"side": side}, {0: 1})
        history.add("two", {"side": side}, {0: 1})
    with pytest.raises(MetricsRefused, match=r"\(422\).*many-to-many.*query: one \* on") as caught:
        serve(history).query("one * on () two", at(0))
    assert not caught.value.transient


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_passes_is_unavailable(stub: Stub, status: int) -> None:
    stub.says(status, {"status": "error", "error": "too busy"})
    with pytest.raises(MetricsUnavailable, match=f"{status}.*too busy.*query: up") as caught:
        Prometheus(stub.url).query("up")
    assert caught.value.transient


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials(stub: Stub, status: int) -> None:
    stub.says(status, {"error": "who are you"})
    with pytest.raises(MetricsRefused, match=f"refuses the credentials.*{status}.*who are you"):
        Prometheus(stub.url, token="t").query("up")


def test_credentials_are_sent(stub: Stub) -> None:
    stub.says(200, {"status": "success", "data": {"resultType": "vector", "result": []}})
    Prometheus(f"{stub.url}/behind/", token="secret").query("up")
    Prometheus(stub.url, basic=("me", "pass")).query("up")
    assert stub.seen == [
        ("/behind/api/v1/query?query=up", "Bearer secret"),
        ("/api/v1/query?query=up", "Basic bWU6cGFzcw=="),
    ]


def test_unreachable_and_silent() -> None:
    with pytest.raises(MetricsUnavailable, match=r"cannot be reached: .*Connection refused; query: up"):
        Prometheus(f"http://127.0.0.1:{free_port()}").query("up")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(MetricsUnavailable, match=r"does not answer within 0\.2 s; query: up"):
            Prometheus(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.2).query("up")


def test_what_is_no_prometheus(stub: Stub) -> None:
    stub.body, stub.content_type = b"<html>sign in</html>", "text/html"
    with pytest.raises(MetricsRefused, match=r"is not Prometheus' API.*text/html"):
        Prometheus(stub.url).query("up")
    stub.says(200, {"status": "success", "data": {"resultType": "vector", "result": [{"value": ["x", "1"]}]}})
    with pytest.raises(MetricsRefused, match="answers what is no result"):
        Prometheus(stub.url).query("up")


@pytest.mark.parametrize(
    ("partly", "why"),
    [
        ({"warnings": ["store b is down"]}, "store b is down"),
        ({"isPartial": True}, "isPartial is true"),
        ({"isPartial": False, "warnings": []}, None),
    ],
)
def test_17_10_half_an_answer_is_no_counts_and_no_value(stub: Stub, partly: dict[str, Any], why: str | None) -> None:
    """Number 10 and P3: Prometheus and Thanos say `warnings`, VictoriaMetrics' cluster `isPartial`."""
    one = {"metric": {}, "values": [[0.5, "1"]], "value": [0.5, "1"]}
    stub.says(200, {"status": "success", "data": {"resultType": "matrix", "result": [one]}, **partly})
    prometheus = Prometheus(stub.url)
    for ask in (lambda: prometheus.raw("up", 0, 1000), lambda: prometheus.query("up").series):
        if why is None:
            assert [series.samples for series in ask()] == [[(500, 1.0)]]
        else:
            with pytest.raises(MetricsUnavailable, match=f"only in part: {why}"):
                ask()
    values = ValueReader(
        prometheus, [Value(name="depth", query="sum(depth)", max=5)],
        namespace="models", service="digits", canary="b", stable=None,
    )  # fmt: skip
    stub.says(200, {"status": "success", "data": {"resultType": "vector", "result": [one]}, **partly})
    measured = values.measured(Window(canary=Side(1, {}), stable=None, end="2026-01-01T00:00:10+00:00"))
    assert measured.values == {"depth": {"canary": None if why else 1.0, "stable": None}}
    assert (why or "None") in str(measured.error)


def drips(seconds: float) -> Iterator[tuple[str, list[float]]]:
    """A server whose answer begins at once and never ends: a byte every so many seconds."""
    server, seen = socket.create_server(("127.0.0.1", 0)), list[float]()

    def serve() -> None:
        with suppress(OSError):
            while True:
                one, _ = server.accept()
                seen.append(time.monotonic())
                threading.Thread(target=drip, args=[one], daemon=True).start()

    def drip(one: socket.socket) -> None:
        with suppress(OSError):
            one.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n")
            while True:
                one.sendall(b" ")
                time.sleep(seconds)

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}", seen
    server.close()


def test_17_7_an_answer_that_drips_is_no_answer_and_a_look_has_so_much_time_in_all() -> None:
    """Number 7: a socket's timeout is for each part of an answer, and each query's for that query alone."""
    for url, seen in drips(0.02):
        slow = Prometheus(url, timeout=0.2)
        with pytest.raises(MetricsUnavailable, match=r"does not answer within 0\.2 s; query: up"):
            slow.query("up")
        slow.begin(0.3)
        for _ in range(2):
            with pytest.raises(MetricsUnavailable, match="does not answer within"):
                slow.query("up")
        with pytest.raises(MetricsUnavailable, match="the time for a look is over; query: up"):
            slow.query("up")
        assert len(seen) == 3
        slow.begin()
        with pytest.raises(MetricsUnavailable, match="does not answer within"):
            slow.query("up")


@pytest.mark.parametrize("address", ["prometheus:9090", "ftp://x", "http://", "http://a:b@prometheus:9090"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(MetricsRefused, match="address"):
        Prometheus(address)
