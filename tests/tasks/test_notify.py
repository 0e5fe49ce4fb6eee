"""Who is told what, once: by Airflow's own notifiers, to real servers on loopback."""

from __future__ import annotations

import asyncio
import json
import logging
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from model_release.errors import StoreUnavailable
from model_release.judging.record import Record
from model_release.spec import ModelSpec
from model_release.tasks import late, notify, records
from model_release.tasks.run import Run

PROJECT = Path(__file__).resolve().parents[2]
HOSTILE = "5 < 6 & <b>7</b> {{ conf }} *bold* <!channel>"


class Mailbox(socketserver.StreamRequestHandler):
    """As much of SMTP (RFC 5321) as a client needs that has one mail to deliver."""

    mails: list[str]

    def handle(self) -> None:
        def say(line: str) -> None:
            self.wfile.write(f"{line}\r\n".encode())

        say("220 mailbox")
        while line := self.rfile.readline().decode().strip():
            word = line.split()[0].upper()
            if word == "DATA":
                say("354 go on")
                text = b""
                while (part := self.rfile.readline()) != b".\r\n":
                    text += part
                self.mails.append(text.decode())
            say("221 bye" if word == "QUIT" else "250 ok")
            if word == "QUIT":
                return


@pytest.fixture
def mailbox() -> Iterator[tuple[int, list[str]]]:
    mails: list[str] = []
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), type("Box", (Mailbox,), {"mails": mails})) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], mails
        server.shutdown()


@pytest.fixture
def web() -> Iterator[tuple[int, list[tuple[str, Any]], list[int]]]:
    """A server that keeps what is posted, and answers with the given states first."""
    posts: list[tuple[str, Any]] = []
    states: list[int] = []

    class Post(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            posts.append((self.path, json.loads(body)))
            self.send_response(states.pop(0) if states else 200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(b'{"ok": true}')

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Post) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], posts, states
        server.shutdown()


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Record:
    one = Record.new("r", model="digits", service="models/digits", version="0123456789abcdef", started="2026-03-01")
    one.record_traffic("2026-03-01T02:00:00+00:00", "open_25", 25, {"digits-00001": 75, "digits-00002": 25})

    def change(spec: ModelSpec, run: Any, edit: Any) -> Record:
        edit(one)
        return one

    monkeypatch.setattr(records, "change", change)
    return one


def telling(spec: ModelSpec, **ways: Any) -> ModelSpec:
    return ModelSpec.model_validate({**json.loads(spec.model_dump_json(exclude_none=True)), "notify": ways})


def connect(monkeypatch: pytest.MonkeyPatch, name: str, **said: Any) -> None:
    monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps(said))


def test_a_webhook_gets_the_sentence_the_figures_and_the_link_once(
    spec: ModelSpec, context: Any, record: Record, web: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, posts, _ = web
    connect(monkeypatch, "hook", conn_type="http", host="127.0.0.1", port=port, schema="http")
    one, run = telling(spec, webhook={"connection": "hook"}), Run.of(context, spec)
    for attempt in (1, 2):
        notify.tell(one, run, notify.ROLLED_BACK, HOSTILE, attempt=attempt)
    ((_, said),) = posts
    assert said == {
        "event": "rolled back",
        "model": "digits",
        "service": "models/digits",
        "version": "0123456789abcdef",
        "sentence": HOSTILE,
        "traffic": {"digits-00001": 75, "digits-00002": 25},
        "page": run.page,
        "run": run.url,
    }


def test_each_question_is_told_and_none_twice(
    spec: ModelSpec, context: Any, record: Record, web: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, posts, _ = web
    connect(monkeypatch, "hook", conn_type="http", host="127.0.0.1", port=port, schema="http")
    one, run = telling(spec, webhook={"connection": "hook"}), Run.of(context, spec)
    for which in ("ask_50 0", "ask_50 1", "ask_50 1"):
        notify.tell(one, run, notify.NEEDS_YOU, "…", which=which)
    assert len(posts) == 2


def test_what_could_not_be_sent_is_sent_by_the_retry(
    spec: ModelSpec, context: Any, record: Record, web: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, posts, states = web
    connect(monkeypatch, "hook", conn_type="http", host="127.0.0.1", port=port, schema="http")
    states.append(500)
    one, run = telling(spec, webhook={"connection": "hook"}), Run.of(context, spec)
    notify.tell(one, run, notify.PROMOTED, "…")
    assert record.notices == []
    notify.tell(one, run, notify.PROMOTED, "…", attempt=2)
    notify.tell(one, run, notify.PROMOTED, "…", attempt=3)
    assert (len(posts), record.notices) == (2, ["promoted"])


def test_a_note_whose_answer_was_lost_is_not_taken_for_one_of_before(
    spec: ModelSpec, context: Any, record: Record, web: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store wrote it and told of a failure: the second try finds the note that the first one made."""
    port, posts, _ = web
    connect(monkeypatch, "hook", conn_type="http", host="127.0.0.1", port=port, schema="http")

    def change(spec: ModelSpec, run: Any, edit: Any) -> Record:
        edit(record)
        edit(record)
        return record

    monkeypatch.setattr(records, "change", change)
    one, run = telling(spec, webhook={"connection": "hook"}), Run.of(context, spec)
    for attempt in (1, 2):
        notify.tell(one, run, notify.ROLLED_BACK, "…", attempt=attempt)
    assert (len(posts), record.notices) == (1, ["rolled back"])


def test_while_the_store_is_away_the_first_try_tells_and_no_other(
    spec: ModelSpec, context: Any, web: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, posts, _ = web
    connect(monkeypatch, "hook", conn_type="http", host="127.0.0.1", port=port, schema="http")

    def away(*_: Any) -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr(records, "change", away)
    one, run = telling(spec, webhook={"connection": "hook"}), Run.of(context, spec)
    for attempt in (1, 2, 3):
        notify.tell(one, run, notify.FAILED, "task settle failed", attempt=attempt)
    assert [said["sentence"] for _, said in posts] == ["task settle failed"]


def test_a_mail_is_html_in_which_nothing_is_markup_but_ours(
    spec: ModelSpec, context: Any, record: Record, mailbox: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import email
    import email.policy

    port, mails = mailbox
    extra = {"disable_tls": True, "disable_ssl": True, "from_email": "releases@example.org"}
    connect(monkeypatch, "post", conn_type="smtp", host="127.0.0.1", port=port, extra=extra)
    notify.tell(
        telling(spec, email={"connection": "post", "to": ["team@example.org"]}),
        Run.of(context, spec),
        notify.INCONCLUSIVE,
        HOSTILE,
    )
    (text,) = mails
    mail = email.message_from_string(text, policy=email.policy.default)
    assert mail["Subject"] == "digits: inconclusive"
    (part,) = [part for part in mail.walk() if part.get_content_type() == "text/html"]
    body = part.get_content()
    assert "5 &lt; 6 &amp; &lt;b&gt;7&lt;/b&gt; {{ conf }}" in body
    assert "<b>7</b>" not in body
    assert "digits-00002: 25 %" in body


def test_a_slack_message_pings_nobody_by_what_a_form_said(
    spec: ModelSpec, context: Any, record: Record, web: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, posts, _ = web
    base = f"http://127.0.0.1:{port}/"
    connect(monkeypatch, "slack", conn_type="slack", password="xoxb-1", extra={"base_url": base})
    notify.tell(
        telling(spec, slack={"connection": "slack", "channel": "#models"}), Run.of(context, spec), "started", HOSTILE
    )
    ((path, said),) = posts
    assert path == "/chat.postMessage"
    assert said["channel"] == "#models"
    assert "&lt;!channel&gt;" in said["text"]
    assert "<!channel>" not in said["text"]


def test_nobody_to_be_reached_is_a_line_in_the_log_and_no_trouble(
    spec: ModelSpec, context: Any, record: Record, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, "hook", conn_type="http", host="127.0.0.1", port=9, schema="http", password="geheim-7731")
    with caplog.at_level(logging.WARNING, "model_release"):
        notify.tell(telling(spec, webhook={"connection": "hook"}), Run.of(context, spec), notify.FAILED, "…")
    assert "Webhook was not told of 'failed'" in caplog.text
    assert "geheim-7731" not in caplog.text


# As a task's process logs, and its supervisor masks what it writes (airflow.sdk.execution_time.supervisor).
TELLS = """
import json, sys
from airflow.sdk.log import configure_logging
configure_logging(log_level="DEBUG", output=sys.stdout)
from model_release.judging.record import Record
from model_release.spec import ModelSpec
from model_release.tasks import notify, records
from model_release.tasks.run import Run
one = Record.new("r", model="digits", service="models/digits", version=None, started="2026-03-01")
records.change = lambda spec, run, edit: (edit(one), one)[1]
run = Run(**json.loads(sys.argv[2]))
notify.tell(ModelSpec.model_validate_json(sys.argv[1]), run, notify.FAILED, "it failed")
print("record:", one.to_json())
"""


@pytest.mark.parametrize("fails", ["404", "unreachable", "500"])
def test_17_16_the_secret_of_a_webhook_is_in_no_sink(
    spec: ModelSpec, context: Any, web: Any, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """Number 16: an address that is a secret by itself, a key in its query, a header and a password, in all that a
    failing notification leaves: every logger at its most talkative, behind Airflow's mask as in a task, standard output
    and error, and the decision record. Nothing of it is rendered, or an XCom."""
    port, posts, states = web
    secrets = ("B0secretB0secret", "s3cr3tkey", "h34d3rs3cret", "passw0rdpassw0rd")
    said = {"X-Key": secrets[2], "Content-Type": "application/json"}
    where = f"http://127.0.0.1:{9 if fails == 'unreachable' else port}/services/T0/{secrets[0]}?key={secrets[1]}"
    connect(monkeypatch, "hook", conn_type="http", host=where, password=secrets[3], login="x", extra=said)
    states += [] if fails == "unreachable" else [int(fails)] * 9
    one, run = telling(spec, webhook={"connection": "hook"}), Run.of(context, spec)
    words = [one.model_dump_json(), json.dumps(asdict(run))]
    done = subprocess.run([sys.executable, "-c", TELLS, *words], capture_output=True, text=True, check=True)
    written = done.stdout + done.stderr
    assert "Webhook was not told of 'failed'" in written
    assert "record: {" in written
    assert "***" in written, "nobody logged the address at all: this shows nothing"
    assert bool(posts) is (fails != "unreachable")
    assert [line for line in written.splitlines() if any(one in line for one in secrets)] == []
    assert not any(one in " ".join(words) for one in secrets)


def test_without_a_word_in_the_model_file_nothing_is_written(spec: ModelSpec, context: Any, record: Record) -> None:
    notify.tell(spec, Run.of(context, spec), notify.PROMOTED, "…")
    assert record.notices == []


def late_context(**of_run: Any) -> dict[str, Any]:
    """What Airflow's scheduler hands to the callback of a DeadlineAlert (airflow.models.deadline, `handle_miss`)."""
    run = {
        "dag_run_id": "manual__1",
        "dag_id": "release_digits",
        "run_type": "manual",
        "run_after": "2026-03-01T02:00:00Z",
        "conf": {},
        **of_run,
    }
    return {"dag_run": run, "deadline": {"id": "0190f5c1", "deadline_time": datetime(2026, 3, 1, 4, 0, tzinfo=UTC)}}


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("absent", "; it has not begun: the DAG is paused, or another run of the model is before it."),
        ("building", "; no traffic was moved yet."),
        ("open", "; the traffic: digits-2 25 %, digits-1 75 %."),
        ("ended", None),
        ("away", "."),
    ],
)
def test_a_run_that_takes_too_long_is_told_once(
    spec: ModelSpec,
    context: Any,
    web: Any,
    record: Record,
    monkeypatch: pytest.MonkeyPatch,
    state: str,
    says: str | None,
) -> None:
    port, posts, _ = web
    connect(monkeypatch, "hook", conn_type="http", host="127.0.0.1", port=port)
    one = telling(spec, webhook={"connection": "hook"}, after="2h")
    asked: list[Run] = []

    def read(_: ModelSpec, run: Run) -> Record | None:
        asked.append(run)
        if state == "away":
            raise StoreUnavailable("S3 does not answer")
        return None if state == "absent" else record

    monkeypatch.setattr(records, "read", read)
    if state == "building":
        record.traffic.clear()
    if state == "open":
        record.record_traffic("2026-03-01T03:00:00Z", "open_25", 25, {"digits-2": 25, "digits-1": 75})
    if state == "ended":
        record.finish("promoted", "…", "2026-03-01T03:59:59Z")
    alert = late.alert(one)
    assert alert is not None
    assert (alert.interval, alert.callback.path) == (timedelta(hours=2), "model_release.tasks.late.tell_late")
    given = json.loads(json.dumps(alert.callback.kwargs))  # it waits in Airflow's database
    for _ in range(2):  # a triggerer that died begins again
        asyncio.run(late.tell_late(**given, context=late_context()))
    assert [run.release for run in asked] == [Run.of(context, spec).release] * 2, "the release that its tasks know"
    told = [message["sentence"] for _, message in posts]
    assert told == ([] if says is None else [f"2h after it was queued it has not ended{says}"])


def test_a_model_file_that_says_no_time_has_no_alert(spec: ModelSpec) -> None:
    assert late.alert(spec) is None
    assert late.alert(telling(spec, webhook={"connection": "hook"})) is None


def test_the_triggerer_calls_it_with_what_the_scheduler_stored(
    spec: ModelSpec, web: Any, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Airflow's own parts: the DAG as it is stored, the trigger of the callback, the form of its context."""
    from airflow.api_fastapi.core_api.datamodels.dag_run import DAGRunResponse
    from airflow.serialization.serialized_objects import DagSerialization
    from airflow.triggers.callback import CallbackTrigger

    from model_release.tasks.dag import release_dag

    port, posts, _ = web
    connect(monkeypatch, "hook", conn_type="http", host="127.0.0.1", port=port)
    monkeypatch.setattr(records, "read", lambda *_: record)
    dag = release_dag(telling(spec, webhook={"connection": "hook"}, after="2h"), PROJECT)
    stored = json.loads(json.dumps(DagSerialization.to_dict(dag)))["dag"]["deadline"]
    assert "model_release.tasks.late.tell_late" in json.dumps(stored)
    assert late_context()["dag_run"].keys() <= DAGRunResponse.model_fields.keys()
    (alert,) = dag.deadline if isinstance(dag.deadline, list) else [dag.deadline]
    trigger = CallbackTrigger(alert.callback.path, {**alert.callback.kwargs, "context": late_context()})

    async def events() -> list[str]:
        return [str(event.payload["state"]) async for event in trigger.run()]

    assert asyncio.run(events()) == ["running", "success"]
    ((_, said),) = posts
    assert said["event"] == "takes long"
