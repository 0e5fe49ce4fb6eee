"""`make release` through a real scheduler and triggerer: what it promises, seen from outside and after the end."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from io import BytesIO
from pathlib import Path
from socket import SOCK_DGRAM
from tempfile import gettempdir
from typing import Any
from urllib.parse import parse_qs, urlsplit
from zipfile import ZipFile, is_zipfile

import psutil
import pytest
import requests
from tests.patience import LIMIT

from model_release.judging.record import Record
from sandbox.digits import images
from sandbox.process import processes

from .conftest import PROJECT, RELEASES, Story
from .witnesses import DAG

pytestmark = pytest.mark.e2e

CANARIES = ("better", "bad")
# What the released revision has, after each task that moves traffic. KServe gives a first revision everything when
# it becomes ready: there is no other.
TRAFFIC = {
    "first": [("stage", 100), ("go_live", 100), ("settle", 100)],
    "better": [("stage", 0), ("open_25", 25), ("open_50", 50), ("promote", 100), ("settle", 100)],
    "bad": [("stage", 0), ("open_25", 25), ("roll_back", 0), ("settle", 0)],
}


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def steps(story: Story, name: str) -> dict[int, dict[str, Any]]:
    return {step["percent"]: step for step in story.releases[name].record["steps"]}


def test_make_release_ends_well(story: Story) -> None:
    assert story.code == 0, story.output


@pytest.mark.parametrize(
    ("name", "state", "outcome"),
    [("first", "success", "first"), ("better", "success", "promoted"), ("bad", "failed", "rolled_back")],
)
def test_each_release_ends_as_its_story_says(story: Story, name: str, state: str, outcome: str) -> None:
    told = story.releases[name]
    assert (told.run["state"], told.record["outcome"]) == (state, outcome)


def test_the_rolled_back_run_fails_in_its_last_task_alone_which_says_why_with_counts(story: Story, live: Any) -> None:
    told = story.releases["bad"]
    assert [name for name, task in told.tasks.items() if task["state"] == "failed"] == ["report"]
    assert told.tasks["report"]["try_number"] == 1, "an outcome is not tried again"
    sentence = live.airflow.xcom(DAG, told.run["dag_run_id"], "report")
    counts = re.search(r"Rolled back: (\d+) of (\d+) canary requests failed .*, 0 of (\d+) on stable", sentence)
    assert counts, sentence
    judged = steps(story, "bad")[25]
    assert int(counts[1]) == sum(window["canary"]["bad"]["errors"] for window in judged["windows"])
    assert int(counts[2]) == sum(window["canary"]["requests"] for window in judged["windows"])
    assert int(counts[3]) == sum(window["stable"]["requests"] for window in judged["windows"])
    assert story.releases["bad"].record["reason"] in sentence


def test_in_the_end_the_better_version_has_all_of_the_traffic_without_a_split(story: Story) -> None:
    better = story.releases["better"].record["version"]
    assert story.service.storage_uri == f"s3://models/digits/versions/{better}/"
    assert story.service.canary_percent is None
    assert story.service.serving == {story.service.latest_created: 100}
    assert story.service.latest_created != story.revision("bad")


def test_in_the_end_nobody_holds_the_service(story: Story) -> None:
    assert story.lease is not None, "there was never a lease"
    assert story.lease.holder is None
    assert story.lease.frozen is None


@pytest.mark.parametrize("name", RELEASES)
def test_the_decision_record_is_whole(story: Story, name: str) -> None:
    told = story.releases[name]
    record, tasks = told.record, told.tasks
    assert record["run"]["run_id"] == told.run["dag_run_id"]
    assert record["run"]["url"].startswith("http://127.0.0.1:")
    assert record["service"] == "models/digits"
    assert re.fullmatch("[0-9a-f]{16}", record["version"])
    assert moment(tasks["resolve"]["start_date"]) <= moment(record["started"]) <= moment(tasks["resolve"]["end_date"])
    assert moment(record["ended"]) >= moment(record["traffic"][-1]["time"])
    watched = {"first": 0, "better": 3, "bad": 1}[name]
    assert len(record["steps"]) == watched
    for step in record["steps"]:
        carried = sum(windows for _, windows in step.get("carried", ()))
        assert len(step["windows"]) + carried == step["verdict"]["windows_used"] > carried
        assert step["verdict"]["reason"].endswith(".")
        assert all(window["canary"]["requests"] is not None for window in step["windows"]), "no data meanwhile"


@pytest.mark.parametrize("name", RELEASES)
def test_the_decision_record_has_each_change_of_traffic_with_its_revisions(story: Story, name: str) -> None:
    told, revision = story.releases[name], story.revision(name)
    changes = told.record["traffic"]
    assert [(change["task"], change["revisions"].get(revision, 0)) for change in changes] == TRAFFIC[name]
    for change in changes:
        # What the triggerer moves, lies in the time of the task that waits for it.
        task = told.tasks[change["task"] if change["task"] in ("stage", "go_live", "settle") else "canary"]
        assert moment(task["start_date"]) <= moment(change["time"]) <= moment(task["end_date"])
        assert sum(change["revisions"].values()) == 100
        assert change["percent"] == change["revisions"].get(revision, 0)


@pytest.mark.parametrize("name", RELEASES)
def test_the_decision_record_replays_to_the_same_verdicts(story: Story, name: str) -> None:
    record = Record.from_dict(story.releases[name].record)
    assert record.differences() == []
    last = {look.percent: look.verdict.decision for look in record.replay() if look.percent < 100}
    assert last == {"first": {}, "better": {25: "open", 50: "promote"}, "bad": {25: "rollback"}}[name]


def test_what_prometheus_counted_is_what_users_met(story: Story) -> None:
    """The judge's counts of the bad canary against those of both kinds of users, who saw every answer."""
    judged = steps(story, "bad")[25]["windows"]
    met = story.statuses(story.revision("bad"))
    assert 0 < sum(window["canary"]["requests"] for window in judged) <= len(met)
    assert 0 < sum(window["canary"]["bad"]["errors"] for window in judged) <= sum(status != "200" for status in met)


def test_no_user_met_a_failure_but_on_the_bad_canary(story: Story) -> None:
    known = {*story.stable, story.revision("bad")}
    assert set(story.load["answers"]) == known, "an answer that no revision gave"
    assert {answer.revision for answer in story.answers} <= known
    assert {story.revision("first"), story.revision("better")} <= set(story.stable)
    for revision in story.stable:
        assert set(story.statuses(revision)) == {"200"}
    assert set(story.statuses(story.revision("bad"))) == {"200", "503"}


@pytest.mark.parametrize("name", CANARIES)
def test_no_user_reached_a_canary_before_its_smoke_prediction(story: Story, name: str) -> None:
    smoke = story.releases[name].tasks["smoke"]
    met = [answer.asked for answer in story.answers if answer.revision == story.revision(name)]
    assert smoke["state"] == "success"
    assert met
    assert min(met) >= moment(smoke["end_date"])


def test_no_user_reached_the_bad_canary_after_it_was_rolled_back(story: Story) -> None:
    (rolled_back,) = [c for c in story.releases["bad"].record["traffic"] if c["task"] == "roll_back"]
    later = {answer.revision for answer in story.answers if answer.asked > moment(rolled_back["time"])}
    assert later
    assert story.revision("bad") not in later


@pytest.mark.parametrize(("name", "task"), [("better", "canary"), ("better", "bake"), ("bad", "canary")])
def test_a_watch_waits_in_the_triggerer_and_holds_no_worker(story: Story, name: str, task: str) -> None:
    seen = story.observer.deferred[story.releases[name].run["dag_run_id"], task]
    assert seen.trigger.endswith(".CanaryTrigger")
    assert seen.running
    assert all(tasks == [] for tasks in seen.running)


def test_staging_waits_in_the_triggerer_too(story: Story) -> None:
    staged = [seen.trigger for (_, task), seen in story.observer.deferred.items() if task == "stage"]
    assert staged
    assert all(trigger.endswith(".RevisionTrigger") for trigger in staged)


def test_airflow_answered_all_the_time(story: Story) -> None:
    assert story.observer.troubles == []


def test_no_task_was_tried_again_but_for_a_passing_trouble(story: Story, live: Any) -> None:
    """A busy machine has those: an API that does not answer in time, a pod that misses a probe, and Airflow's own, a
    resumed task that it takes for lost (apache/airflow#72716)."""
    airflows = (live.state / "logs" / "airflow.log").read_text(errors="replace")
    for told in story.releases.values():
        run_id = told.run["dag_run_id"]
        for task, instance in told.tasks.items():
            for number in range(1, instance["try_number"]):
                lost = f"reported that the task instance <TaskInstance: {DAG}.{task} {run_id} " in airflows
                log = "" if lost else " ".join(live.airflow.log(DAG, run_id, task, number))
                assert lost or re.search(r"(Unavailable|WriteConflict): .+ -- can be fixed by", log), f"{task}: {log}"


@pytest.mark.parametrize(("name", "percent"), [("better", 25), ("better", 50), ("bad", 25)])
def test_the_sensors_log_has_one_line_for_each_look_and_the_terminal_shows_it(
    story: Story, live: Any, name: str, percent: int
) -> None:
    log = [*live.airflow.log(DAG, story.releases[name].run["dag_run_id"], "canary")]
    looks = [line for line in log if re.match(rf"{percent} % window \d+: canary \d+ requests", line)]
    windows = steps(story, name)[percent]["windows"]
    assert [int(re.split(r"[ :]", line)[3]) for line in looks] == list(range(1, len(windows) + 1))
    for line, window in zip(looks, windows, strict=True):
        assert f"canary {window['canary']['requests']} requests" in line
        assert f"stable {window['stable']['requests']} requests" in line
        assert line in " ".join(story.output.split()), "the terminal breaks long lines"
    assert steps(story, name)[percent]["verdict"]["reason"] in looks[-1]


def test_the_button_to_prometheus_works_while_the_canary_is_watched(story: Story, live: Any) -> None:
    told = story.releases["bad"]
    key = told.run["dag_run_id"], "canary"
    link = story.observer.deferred[key].links["Prometheus"]
    address = urlsplit(link)
    assert f"{address.scheme}://{address.netloc}" == story.status["parts"]["prometheus"]["url"]
    (query,) = parse_qs(address.query)["g0.expr"]
    answer = requests.get(
        f"{address.scheme}://{address.netloc}/api/v1/query",
        params={"query": query, "time": told.tasks["canary"]["end_date"]},
        timeout=LIMIT,
    )
    shown = json.dumps(answer.json()["data"]["result"])
    assert story.revision("bad") in shown
    assert story.releases["bad"].record["baseline"]["revision"] in shown
    after = live.airflow.call("GET", f"/dags/{DAG}/dagRuns/{key[0]}/taskInstances/{key[1]}/links")["extra_links"]
    assert after["Prometheus"] == link


def test_the_terminal_shows_stages_traffic_and_a_summary(story: Story) -> None:
    better, bad = story.revision("better"), story.revision("bad")
    for line in (
        *(rf"● {task} +success +[\d.]+ s" for task in ("resolve", "export", "archive", "publish", "smoke", "promote")),
        r"● report +failed",
        rf"traffic .*{better} 25 % ▇",
        rf"traffic .*{better} 50 % ▇",
        rf"traffic +{better} 100 % ▇",
        rf"traffic .*{bad} 25 % ▇",
        r"users arrive: 40 requests a second",
        r"first +success +\d:\d\d +digits .*live at 100 %",
        r"better +success +\d:\d\d +digits .*Promoted: 0 of \d+ canary requests failed",
        r"bad +failed +\d:\d\d +digits .*Rolled back: \d+ of \d+ canary requests failed",
        rf"{bad}: \d+ requests, [1-9]\d* not answered well",
        rf"{better}: \d+ requests, 0 not answered well",
    ):
        assert re.search(line, story.output), f"{line} is not in\n{story.output}"
    assert "Traceback" not in story.output


def test_the_addresses_that_the_terminal_shows_answer(story: Story, live: Any) -> None:
    def shown(name: str) -> tuple[str, str]:
        found = re.search(rf"^{name} +(\S+)(.*)$", story.output, re.MULTILINE)
        assert found, f"no {name} in\n{story.output}"
        return found[1], found[2].strip()

    airflow, how = shown("Airflow")
    assert requests.get(f"{airflow}/api/v2/monitor/health", timeout=LIMIT).ok
    views = [view for plugin in live.airflow.call("GET", "/plugins")["plugins"] for view in plugin["external_views"]]
    routes = {view["destination"]: view["url_route"] for view in views}
    assert shown("Releases")[0] == f"{airflow}/plugin/{routes['nav']}"
    runs = re.findall(r"^in the browser: (\S+)$", story.output, re.MULTILINE)
    path = f"{airflow}/dags/{DAG}/runs"
    assert runs == [f"{path}/{told.run['dag_run_id']}/plugin/{routes['dag_run']}" for told in story.releases.values()]
    passwords = Path(how.removeprefix("user admin, password in "))
    assert json.loads(passwords.read_text())["admin"]
    assert passwords.stat().st_mode & 0o077 == 0, "others may read the password"
    assert requests.get(f"{shown('Prometheus')[0]}/-/ready", timeout=LIMIT).ok
    service, how = shown("Service")
    body = {"instances": [{"data": base64.b64encode(images(1)[0]).decode()}]}
    answer = requests.post(
        service, json=body, headers={"Host": how.removeprefix("with the header Host: ")}, timeout=LIMIT
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-revision"] in live.service().serving
    command = re.search(r"^Cluster +(\S*kubectl .*?) *$", story.output, re.MULTILINE)
    assert command
    done = subprocess.run(command[1].split(), capture_output=True, text=True)
    assert re.search(r"^digits +\S+ +True", done.stdout, re.MULTILINE), done


def test_everything_listens_on_loopback_alone(story: Story, live: Any) -> None:
    """Airflow's processes too, which write their title over their environment: the tree and the sessions find them."""
    everyone = {process.pid: process for process in processes(live.state)}
    leader = psutil.Process(story.status["pid"])
    everyone |= {process.pid: process for process in [leader, *leader.children(recursive=True)]}
    listening: dict[str, set[str]] = {}
    for process in everyone.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            for socket in process.net_connections(kind="inet"):
                if socket.status == psutil.CONN_LISTEN or (socket.type == SOCK_DGRAM and not socket.raddr):
                    listening.setdefault(process.name(), set()).add(socket.laddr.ip)
    assert {name.split()[0] for name in listening} >= {"airflow", "envoy", "java", "prometheus", "weed"}
    strange = {name: found - {"127.0.0.1", "::ffff:127.0.0.1", "::1"} for name, found in listening.items()}
    assert {name: found for name, found in strange.items() if found} == {}


def test_all_of_it_stays_below_three_gigabytes(story: Story) -> None:
    """But for PyTorch's libraries: their pages are as many as the build has that the package index gives, and none of
    them is ours to save."""
    seen = story.observer.memory
    assert len(seen) > 20
    assert min(one.ours for one in seen) > 500, "something was not counted"
    assert max(one.pytorch for one in seen) > 50, "the models that serve have PyTorch"
    most = max(seen, key=lambda one: one.ours)
    print(most)
    # Of stable, the canary, and the one that is restored. On a busy machine one that has no traffic any more takes its
    # time to go, and that is counted only as far as one of them weighs.
    servers = sum(name.endswith(" java") for name in most.processes)
    assert most.ours < 3000 + 320 * max(0, servers - 3), most


@pytest.mark.parametrize("name", RELEASES)
def test_a_version_is_whole_in_the_store(story: Story, live: Any, name: str) -> None:
    store = live.store()
    version = store.version(story.releases[name].record["version"])  # verifies names, sizes and SHA-256
    about = version.metadata
    assert set(version.files) == {
        "config/config.properties", "config/metrics.yaml", "model-store/digits.mar", "smoke.json",
    }  # fmt: skip
    assert about["labels"] == [str(digit) for digit in range(10)]
    assert about["input"] == {"height": 32, "width": 32}
    assert about["preprocessing"]["do_resize"] is (name != "bad")
    assert set(about["parity"]["largest_difference"]) == {"1", "3", "8"}
    assert max(about["parity"]["largest_difference"].values()) <= 1e-5
    assert {"torch", "transformers", "python", "handler"} <= set(about["toolchain"])
    assert about["source"]["origin"] == f"directory:candidates/digits/{about['source']['candidate']}"
    assert re.fullmatch("[0-9a-f]{64}", about["fingerprint"])
    assert live.project.joinpath("candidates/digits", about["source"]["candidate"]).is_dir()
    assert len(store.smoke(version)["instances"]) == len(store.smoke(version)["expected"]) > 0


@pytest.mark.parametrize("name", RELEASES)
def test_no_path_of_this_machine_travels_with_a_version(story: Story, live: Any, name: str) -> None:
    store = live.store()
    version = story.releases[name].record["version"]
    paths = {str(PROJECT), str(live.project), str(live.state), sys.prefix, gettempdir(), str(Path.home()), "/tmp/"}
    read = []
    for path in [*store.version(version).files, "version.json"]:
        bucket, key = "models", f"digits/versions/{version}/{path}"
        content = store._client.get_object(Bucket=bucket, Key=key)["Body"].read()
        for member, found in _unpacked(path, content):
            read.append(member)
            assert [one for one in paths if one.encode() in found] == [], member
    assert any("model.pt!" in member for member in read), f"the TorchScript archive was not looked into: {read}"


def _unpacked(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    """The file, and if it is a zip archive, whatever is in it, to any depth."""
    yield name, content
    if is_zipfile(BytesIO(content)):
        with ZipFile(BytesIO(content)) as archive:
            for member in archive.namelist():
                yield from _unpacked(f"{name}!{member}", archive.read(member))
