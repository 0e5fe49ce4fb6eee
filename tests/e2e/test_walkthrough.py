"""`make walkthrough`, run once in the live stack, beside a witness with a clock, who asks the front door and reads the
cluster all the time.

In the project's copy the judge looks every 3 seconds and takes failures to come one by one, instead of every 10 and in
bursts: CI has no minute to spend on each verdict. docs/walkthrough.md is made with the model files as they are.
"""

from __future__ import annotations

import base64
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread
from typing import Any
from xml.etree import ElementTree

import pytest
import requests
from tests.patience import LIMIT

from model_release.judging.record import Record
from sandbox.process import NAME as PROCESS
from sandbox.process import processes
from sandbox.walkthrough import RATE
from sandbox.walkthrough_models import MODELS, SERVICE, images

from .conftest import PROJECT

pytestmark = [pytest.mark.e2e, pytest.mark.walk]

NAME = SERVICE.split("/")[1]
FIRST, SECOND, THIRD = (f"{NAME}-predictor-0000{number}" for number in (1, 2, 3))
LABELS = dict(zip((FIRST, SECOND, THIRD), (set(model.labels) for model in MODELS.values()), strict=True))
#: The five stages, by what each revision has.
STAGES = [{FIRST: 100}, {FIRST: 70, SECOND: 30}, {SECOND: 100}, {SECOND: 70, THIRD: 30}, {THIRD: 100}]
STORE = f"s3://models/{NAME}/"


@dataclass(frozen=True)
class Met:
    """One answer at the front door: when it was asked for (Unix seconds), by whom it was given, and its label."""

    asked: float
    status: int
    revision: str
    label: str


@dataclass(frozen=True)
class Seen:
    """The cluster at one moment: percents by revision, ready pods by revision."""

    time: float
    traffic: dict[str, int]
    ready: dict[str, int]


class Witness(Thread):
    """Asks the front door and reads the cluster, turn by turn, from the first answer on."""

    def __init__(self, parts: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self.met: list[Met] = []
        self.seen: list[Seen] = []
        self._door, self._api = parts["envoy"]["url"], parts["kubernetes"]["url"]
        self._body = {"instances": [{"data": base64.b64encode(images(1, seed=3)[0]).decode()}]}
        self._ended = Event()

    def run(self) -> None:
        with requests.Session() as http:
            http.trust_env = False
            while not self._ended.wait(0.1):
                traffic = self._traffic(http)
                if traffic:
                    self.seen.append(Seen(time.time(), traffic, self._pods(http)))
                    self.met.append(self._ask(http))

    def _traffic(self, http: requests.Session) -> dict[str, int]:
        url = f"{self._api}/apis/serving.kserve.io/v1beta1/namespaces/models/inferenceservices/{NAME}"
        status = http.get(url, timeout=LIMIT).json().get("status", {})
        shares: dict[str, int] = {}
        if isinstance(status, dict):  # else the answer says that there is no such service
            for entry in status.get("components", {}).get("predictor", {}).get("traffic", []):
                if entry["percent"]:
                    shares[entry["revisionName"]] = shares.get(entry["revisionName"], 0) + entry["percent"]
        return shares

    def _pods(self, http: requests.Session) -> dict[str, int]:
        asked = {"labelSelector": f"serving.kserve.io/inferenceservice={NAME}"}
        ready: dict[str, int] = {}
        for pod in http.get(f"{self._api}/api/v1/namespaces/models/pods", params=asked, timeout=LIMIT).json()["items"]:
            revision = pod["metadata"]["labels"]["serving.knative.dev/revision"]
            conditions = {one["type"]: one["status"] for one in pod["status"]["conditions"]}
            ready[revision] = ready.get(revision, 0) + (conditions["Ready"] == "True")
        return ready

    def _ask(self, http: requests.Session) -> Met:
        asked = time.time()
        url, host = f"{self._door}/v1/models/{NAME}:predict", f"{NAME}.models.localhost"
        answer = http.post(url, json=self._body, headers={"Host": host}, timeout=LIMIT)
        label = answer.json()["predictions"][0][0]["label"] if answer.ok else ""
        return Met(asked, answer.status_code, answer.headers.get("x-revision", "-"), label)

    def end(self) -> None:
        self._ended.set()
        self.join(60)


@dataclass(frozen=True)
class Walked:
    """A walk, told right after it ended. `java` are the running servers of the last revision, by pod."""

    done: subprocess.CompletedProcess[str]
    page: Path
    witness: Witness
    records: list[dict[str, Any]]
    users: dict[str, dict[str, int]]
    service: Any
    revisions: dict[str, Any]
    java: list[str]

    def change(self, number: int, task: str) -> float:
        """When the task of release `number` had moved the traffic."""
        (change,) = [one for one in self.records[number]["traffic"] if one["task"] == task]
        return datetime.fromisoformat(change["time"]).timestamp()

    def at_canary(self, number: int) -> list[Met]:
        """What the witness was answered while the canary of release `number` had its percent."""
        begin, end = self.change(number, "open_30"), self.judged(number)
        return [one for one in self.witness.met if begin < one.asked < end - 1]

    def judged(self, number: int) -> float:
        (step,) = self.records[number]["steps"]
        return datetime.fromisoformat(step["windows"][-1]["end"]).timestamp()

    def at_all(self, number: int) -> list[Met]:
        """What it was answered from the promotion to the opening of the next canary."""
        begin = self.change(number, "promote" if number else "go_live")
        end = self.change(number + 1, "open_30") - 5 if number < 2 else math.inf
        return [one for one in self.witness.met if begin < one.asked < end]


@pytest.fixture(scope="module")
def walked(live: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walked]:
    page = tmp_path_factory.mktemp("walkthrough") / "walkthrough.md"
    hurry(live.project)
    live.sandbox("load", "--end")
    witness, since = Witness(live.status["parts"]), datetime.now(UTC).isoformat(timespec="milliseconds")
    witness.start()
    try:
        done = make_walkthrough(live, page)
    finally:
        witness.end()
    yield Walked(
        done=done,
        page=page,
        witness=witness,
        records=records(live, since),
        users=json.loads((live.state / "load.json").read_text())["answers"],
        service=live.service(NAME),
        revisions=revisions(live),
        java=java(live),
    )
    live.sandbox("load", "--end")
    kubectl(live, "delete", "isvc", NAME)


def hurry(project: Path) -> None:
    """Lets the judge decide sooner; nothing else of the three model files is changed."""
    for model in MODELS:
        file = project / "include" / "models" / f"{model}.yaml"
        text = file.read_text()
        for found, wanted in (("window: 10s", "window: 3s"), ("profile: istio", "profile: istio\n  design_effect: 1")):
            assert text.count(found) == 1
            text = text.replace(found, wanted)
        file.write_text(text)


def make_walkthrough(live: Any, page: Path) -> subprocess.CompletedProcess[str]:
    """What the Makefile calls; its output is kept beside the sandbox's logs."""
    path = os.pathsep.join(str(PROJECT / part) for part in ("plugins", "include"))
    words = ["walkthrough", "--state", str(live.state), "--airflow", str(live.project), "--page", str(page)]
    done = subprocess.run(
        [sys.executable, "-m", "sandbox", *words],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    (live.state / "logs" / "walkthrough.txt").write_text(done.stdout)
    return done


def records(live: Any, since: str) -> list[dict[str, Any]]:
    """The decision records of the releases that began after `since`."""
    store = live.store(STORE)
    found = [store.read_json(f"releases/{name}")[0] for name in store.names("releases/") if name.endswith(".json")]
    return sorted((one for one in found if one["started"] > since), key=lambda record: record["started"])


def revisions(live: Any) -> dict[str, Any]:
    """Every Knative revision that there is of the service, by name."""
    url = f"{live.status['parts']['kubernetes']['url']}/apis/serving.knative.dev/v1/namespaces/models/revisions"
    found = requests.get(url, timeout=LIMIT).json()["items"]
    return {one["metadata"]["name"]: one for one in found if one["metadata"]["name"].startswith(NAME)}


def java(live: Any) -> list[str]:
    """The names of the sandbox's TorchServe servers of the last revision: `namespace/revision/pod`."""
    servers = [one for one in processes(live.state, f"models/{THIRD}") if one.name() == "java"]
    return sorted(one.environ()[PROCESS] for one in servers)


def kubectl(live: Any, *words: str) -> str:
    argv = [Path(sys.executable).with_name("kubectl"), f"--kubeconfig={live.state}/kubeconfig.yaml", "-n", "models"]
    return subprocess.run([*argv, *words], capture_output=True, text=True, check=True).stdout


def test_the_walk_ends_well(walked: Walked) -> None:
    assert walked.done.returncode == 0, walked.done.stdout
    assert "Traceback" not in walked.done.stdout


def test_the_service_went_through_the_five_stages_and_no_other(walked: Walked) -> None:
    """By the names of revisions. A stage's status may show for a moment how the controllers work their way to it."""
    stages = [walked.witness.seen[0].traffic]
    for seen in walked.witness.seen:
        if seen.traffic != stages[-1]:
            stages.append(seen.traffic)
    assert stages == STAGES


@pytest.mark.parametrize("number", [1, 2])
def test_at_30_percent_both_models_answer_with_labels_of_their_own(walked: Walked, number: int) -> None:
    stable, canary = (FIRST, SECOND, THIRD)[number - 1 : number + 1]
    met = walked.at_canary(number)
    assert {one.revision for one in met} == {stable, canary}
    assert all(one.label in LABELS[one.revision] for one in met)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_at_100_percent_one_model_alone_answers(walked: Walked, number: int) -> None:
    revision = (FIRST, SECOND, THIRD)[number]
    met = walked.at_all(number)
    assert len(met) > 30
    assert {one.revision for one in met} == {revision}
    assert {one.label for one in met} <= LABELS[revision]


@pytest.mark.parametrize("number", [1, 2])
def test_the_volume_at_30_percent_is_split_30_to_70(walked: Walked, number: int) -> None:
    """As the judge counted. The gateway draws for each request, so the share is off by chance: 4 standard deviations,
    exceeded once in 16 000 walks."""
    (step,) = walked.records[number]["steps"]
    stable = sum(window["stable"]["requests"] for window in step["windows"])
    canary = sum(window["canary"]["requests"] for window in step["windows"])
    assert canary >= 100
    assert abs(canary / (stable + canary) - 0.3) < 4 * math.sqrt(0.3 * 0.7 / (stable + canary))


def test_no_request_of_any_user_failed(walked: Walked) -> None:
    assert set(walked.users) == {FIRST, SECOND, THIRD}, "an answer that no revision gave"
    assert {status for answers in walked.users.values() for status in answers} == {"200"}
    assert all(sum(answers.values()) > 10 * RATE for answers in walked.users.values())
    assert {one.status for one in walked.witness.met} == {200}


@pytest.mark.parametrize(("number", "revision", "pods"), [(0, FIRST, 1), (1, SECOND, 2), (2, THIRD, 2)])
def test_a_revision_has_its_final_pods_from_its_first_request_on(
    walked: Walked, number: int, revision: str, pods: int
) -> None:
    ready = [seen.ready.get(revision, 0) for seen in walked.witness.seen if seen.traffic.get(revision)]
    assert set(ready) == {pods}
    annotations = walked.revisions[revision]["metadata"]["annotations"]
    assert annotations["autoscaling.knative.dev/min-scale"] == str(pods)


def test_the_two_pods_are_two_servers(walked: Walked) -> None:
    assert walked.java == [f"models/{THIRD}/{walked.java[0][-5:-1]}{index}" for index in (0, 1)]


def test_what_was_promoted_is_what_was_judged_and_nothing_else_was_made(walked: Walked) -> None:
    assert set(walked.revisions) == {FIRST, SECOND, THIRD}
    assert [record["canary"]["revision"] for record in walked.records] == [FIRST, SECOND, THIRD]
    assert [(record["baseline"] or {}).get("revision") for record in walked.records] == [None, FIRST, SECOND]
    assert walked.service.latest_created == THIRD
    assert walked.service.canary_percent is None
    assert walked.service.serving == {THIRD: 100}


def test_the_templates_of_spec_and_revision_are_the_same(walked: Walked) -> None:
    predictor = walked.service.raw["spec"]["predictor"]
    annotations = walked.revisions[THIRD]["metadata"]["annotations"]
    version = walked.records[2]["version"]
    assert predictor["model"]["storageUri"] == f"{STORE}versions/{version}/"
    assert annotations["internal.serving.kserve.io/storage-initializer-sourceuri"] == predictor["model"]["storageUri"]
    assert annotations["autoscaling.knative.dev/min-scale"] == str(predictor["minReplicas"]) == "2"
    assert annotations["autoscaling.knative.dev/max-scale"] == str(predictor["maxReplicas"]) == "4"


def test_the_records_are_whole_and_replay(walked: Walked) -> None:
    assert [record["model"] for record in walked.records] == list(MODELS)
    assert [record["outcome"] for record in walked.records] == ["first", "promoted", "promoted"]
    assert [record["service"] for record in walked.records] == [SERVICE] * 3
    assert len({record["version"] for record in walked.records}) == 3
    for record, model in zip(walked.records, MODELS.values(), strict=True):
        assert model.repository in json.dumps(record["source"])
        assert Record.from_dict(record).differences() == []


def test_the_terminal_and_the_page_show_each_stage_as_kubectl_prints_it(walked: Walked) -> None:
    page, row = walked.page.read_text(), rf"{NAME} +http://{NAME}\.models\.localhost:\d+ +True"
    for text in (walked.done.stdout, page):
        printed = re.findall(rf"^{row} +(.*?) +\d+\w+ *$", text, re.MULTILINE)
        assert [" ".join(one.split()) for one in printed] == [
            f"100 {FIRST}", f"70 30 {FIRST} {SECOND}", f"100 {SECOND}", f"70 30 {SECOND} {THIRD}", f"100 {THIRD}",
        ]  # fmt: skip
    pods = [re.findall(rf"^({NAME}-predictor-\d+)-deployment-\S+ +1/1 +Running", part, re.MULTILINE)
            for part in page.split("\n## ")]  # fmt: skip
    assert [one for one in pods if one] == [
        [FIRST], [FIRST, SECOND, SECOND], [SECOND] * 2, [SECOND] * 2 + [THIRD] * 2, [THIRD] * 2,
    ]  # fmt: skip


def test_the_page_has_the_load_tests_numbers_and_charts(walked: Walked) -> None:
    page = walked.page.read_text()
    rows = re.findall(rf"^\| ({NAME}-\S+) \| (\d+) \| ([\d.]+) % \| (\d+) \| (\d+) ms \| (\d+) ms \|$", page, re.M)
    assert [name for name, *_ in rows] == [revision for stage in STAGES for revision in stage]
    for (_, requests_, percent, failed, median, most), wanted in zip(
        rows, [percent for stage in STAGES for percent in stage.values()], strict=True
    ):
        assert int(requests_) > 200
        assert float(percent) == pytest.approx(wanted, abs=6)
        assert int(failed) == 0
        assert 0 < int(median) <= int(most) < 5000
    charts = re.findall(r"\]\((walkthrough/[\w.]+)\)", page)
    assert charts == [*(f"walkthrough/{number}.svg" for number in range(1, 6)), "walkthrough/whole.svg"]
    for chart in charts:
        text = "".join(ElementTree.parse(walked.page.parent / chart).getroot().itertext())
        assert "requests a second" in text
        assert "latency" in text
        assert NAME in text
