"""The task `evaluate`, with a real S3 server and the sandbox's real API server. The archives hold a handler that says
what their model.json tells it to: each is asked in its own process, as every archive is."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import ApiClient, Configuration
from tests.patience import LIMIT

from model_release.build.evaluation import answers
from model_release.cluster import manifest as manifests
from model_release.cluster import rollout
from model_release.cluster.leases import Leases
from model_release.cluster.progress import State, wait
from model_release.cluster.release import Owner
from model_release.cluster.services import InferenceServices
from model_release.errors import ClusterUnavailable, EvaluationFailed, SpecError
from model_release.spec import Evaluation, ModelSpec
from model_release.store.store import Store, Version
from model_release.tasks import connections, records
from model_release.tasks.evaluate import PICTURE, Evaluate
from model_release.tasks.run import Run
from sandbox.ports import Ports, free_port
from sandbox.s3 import ModelStore

from .cluster import BASE, Pods, cluster

LABELS = ["0", "1", "2"]
HANDLER = """
import json
from pathlib import Path

class Parrot:
    def initialize(self, context):
        folder = Path(context.system_properties["model_dir"])
        self.says = json.loads((folder / "model.json").read_text())["says"]

    def handle(self, data, context):
        shown = [row["body"].decode() for row in data]
        return [[{"label": self.says.get(image, image), "score": 0.9}] for image in shown]
"""


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A boto3 client of a SeaweedFS of its own, with the bucket `models`."""
    state = tmp_path_factory.mktemp("s3")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def wait_for(work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, loop).result(LIMIT)

    store = ModelStore(state, Ports(state / "ports.json"))
    wait_for(store.start())
    try:
        wait_for(store.ensure_bucket("models"))
        yield store.client()
    finally:
        wait_for(store.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()


def packed(folder: Path, says: dict[str, str], labels: list[str] = LABELS) -> Path:
    """An archive whose model says what each image shows, but for `says`."""
    mar = folder / "model-store" / "digits.mar"
    mar.parent.mkdir(parents=True)
    (folder / "config").mkdir()
    (folder / "config" / "config.properties").write_text("metrics_mode=prometheus\n")
    (folder / "smoke.json").write_text('{"instances": [], "expected": []}')
    with zipfile.ZipFile(mar, "w") as archive:
        for name, text in {
            "MAR-INF/MANIFEST.json": json.dumps({"model": {"handler": "parrot.py"}}),
            "model.json": json.dumps({"labels": labels, "says": says}),
            "parrot.py": HANDLER,
        }.items():
            archive.writestr(zipfile.ZipInfo(name), text)
    return folder


@dataclass
class World:
    spec: ModelSpec
    client: Any
    services: InferenceServices
    leases: Leases
    context: dict[str, Any]
    folder: Path
    project: Path

    @property
    def store(self) -> Store:
        return Store(self.client, self.spec.store)

    def publish(self, says: dict[str, str], labels: list[str] = LABELS, prefix: str = "s3://models/digits/") -> Version:
        number = len(list(self.folder.iterdir()))
        about = {"labels": labels, "service": "digits"}
        return Store(self.client, prefix).publish(packed(self.folder / str(number), says, labels), about)

    def live(self, uri: str) -> tuple[rollout.Baseline, Any]:
        """Brings the version at `uri` into the cluster: live, or as a canary beside what is."""
        asked = manifests.manifest(self.spec, uri, manifests.load_base(BASE))
        service = self.spec.service
        baseline = rollout.baseline_of(self.services.get(service.namespace, service.name), asked)
        rollout.stage(self.services, asked, baseline)

        def staged() -> Any:
            return rollout.assess_staged(self.services.get(service.namespace, service.name), asked, baseline)

        assert wait(staged, 5, poll=0.01).state is State.READY
        return baseline, self.services.get(service.namespace, service.name)

    def run(self, resolved: dict[str, Any], **limits: Any) -> dict[str, Any]:
        evaluation = Evaluation(data="labelled", **limits)
        task = Evaluate(
            task_id="evaluate", root=self.project, spec=self.spec.model_copy(update={"evaluation": evaluation})
        )
        self.context["ti"].xcoms["resolve", "resolved"] = resolved
        result: dict[str, Any] = task.execute(self.context)
        return result

    @property
    def evaluation(self) -> dict[str, Any]:
        """What the decision record holds."""
        record = records.read(self.spec, Run.of(self.context, self.spec))
        assert record is not None
        assert record.evaluation is not None
        return record.evaluation


@pytest.fixture
def world(
    tmp_path: Path, spec: ModelSpec, context: dict[str, Any], bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    for name in ("0/a", "0/b", "1/a", "1/b", "2/a"):
        image = tmp_path / "labelled" / f"{name}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(name.encode())
    (tmp_path / "archives").mkdir()
    with cluster(tmp_path / "cluster", Pods()) as (_, client):
        monkeypatch.setattr(connections, "cluster", lambda *_: client)
        monkeypatch.setattr(connections, "s3", lambda: bucket)
        services, leases = InferenceServices(client), Leases(client)
        yield World(spec, bucket, services, leases, context, tmp_path / "archives", tmp_path)
    for page in bucket.get_paginator("list_objects_v2").paginate(Bucket="models"):
        for item in page.get("Contents", []):
            bucket.delete_object(Bucket="models", Key=item["Key"])


RIGHT = {"0/a": "0", "0/b": "0", "1/a": "1", "1/b": "1", "2/a": "2"}
ONE_WRONG = {**RIGHT, "1/b": "0"}
TWO_WRONG = {**RIGHT, "0/b": "2", "2/a": "1"}


def test_a_build_is_evaluated_recorded_and_summed_up_for_its_version(world: World) -> None:
    folder = packed(world.folder / "build", ONE_WRONG)
    world.store.stash("0123/archive", folder)
    said = world.run({"build": "0123"}, min_accuracy=0.8, max_regressions=0.01, batch=2)
    assert (said["accuracy"], said["recall"], said["stable"], said["regressions"], said["passed"]) == (
        *(0.8, {"0": 1, "1": 0.5, "2": 1}, None, None, True),
    )
    evaluation = world.evaluation
    assert evaluation["candidate"]["confusion"] == [[2, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert evaluation["comparison"]["skipped"] == "no version of models/digits is known to be stable"
    assert evaluation["candidate"]["version"] == world.store.publish(folder, {}).name
    picture = world.store.read(PICTURE.format(release=Run.of(world.context, world.spec).release))
    assert picture is not None
    assert picture.startswith(b"\x89PNG")
    assert [gate["sentence"] for gate in evaluation["gates"]] == [
        "accuracy is 80 %, on the limit of 80 %",
        "regressions (at most 1 %) were not counted: no version of models/digits is known to be stable",
    ]


def test_run_again_nothing_is_asked(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.store.stash("0123/archive", packed(world.folder / "build", ONE_WRONG))
    first = world.run({"build": "0123"})
    monkeypatch.setattr(answers, "run", lambda *_, **__: pytest.fail("images were asked again"))
    assert world.run({"build": "0123"}) == first
    assert world.run({"version": world.publish(ONE_WRONG).name}) == first


def test_a_version_that_is_there_is_compared_with_the_stable_one(world: World) -> None:
    stable, candidate = world.publish(ONE_WRONG), world.publish(TWO_WRONG)
    world.live(stable.storage_uri)
    with pytest.raises(EvaluationFailed) as failure:
        world.run({"version": candidate.name}, max_regressions=0.2, min_recall={"0": 0.6})
    assert str(failure.value) == (
        f"version {candidate.name} on 5 images of labelled: regressions are 40 % (images that only stable answers "
        "right: 2), above the limit of 20 %; recall of 0 is 50 %, below the limit of 60 %"
    )
    assert world.context["ti"].xcoms["this", "trouble"] == str(failure.value)
    evaluation = world.evaluation
    assert evaluation["passed"] is False
    assert evaluation["stable"]["version"] == stable.name
    assert evaluation["comparison"]["mcnemar"] == {"worse": 2, "better": 1, "p": 1.0}
    assert evaluation["comparison"]["negative_flips"]["images"] == [
        {"name": "0/b.png", "label": "0", "was": "0", "is": "2"},
        {"name": "2/a.png", "label": "2", "was": "2", "is": "1"},
    ]
    assert world.run({"version": candidate.name}, max_regressions=0.4)["regressions"] == 0.4
    assert world.evaluation["passed"] is True


def test_the_stable_version_may_be_another_models(world: World) -> None:
    stable, candidate = world.publish(ONE_WRONG, prefix="s3://models/letters/"), world.publish(RIGHT)
    world.live(stable.storage_uri)
    assert world.run({"version": candidate.name})["stable"] == stable.name


def test_a_service_that_changes_its_task_is_not_compared(world: World) -> None:
    world.live(world.publish({}, ["0-2", "3-9"]).storage_uri)
    assert world.run({"version": world.publish(RIGHT).name}, max_regressions=0.01)["passed"] is True
    assert (
        "has other labels: 0-2, 3-9 only in the old; 0, 1, 2 only in the new"
        in world.evaluation["comparison"]["skipped"]
    )


def test_a_canary_in_the_spec_is_not_taken_for_the_stable_version(world: World) -> None:
    stable, canary, candidate = (world.publish(says) for says in (ONE_WRONG, TWO_WRONG, RIGHT))
    world.live(stable.storage_uri)
    baseline, live = world.live(canary.storage_uri)
    assert live.storage_uri == canary.storage_uri
    assert world.run({"version": candidate.name})["stable"] is None
    assert world.evaluation["comparison"]["skipped"] == "no version of models/digits is known to be stable"
    owner = Owner("release_letters", "run-1", "http://here/runs/1", "http://here")
    world.leases.acquire("models", "digits", owner, "letters-1")
    world.leases.update("models", "digits", owner, lambda claim: replace(claim, baseline=baseline))
    assert world.run({"version": candidate.name})["stable"] == stable.name


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("s3://elsewhere/model/", "s3://elsewhere/model/, which models/digits serves, is no version of this project"),
        ("s3://models/digits/versions/0123456789abcdef/", "the stable version cannot be read: .* does not exist"),
    ],
)
def test_what_is_no_version_of_ours_is_not_compared_with(world: World, uri: str, why: str) -> None:
    world.live(uri)
    world.run({"version": world.publish(RIGHT).name})
    assert re.fullmatch(why, world.evaluation["comparison"]["skipped"])


def test_a_cluster_that_does_not_answer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration = Configuration()
    configuration.host, configuration.retries = f"http://127.0.0.1:{free_port()}", 0
    candidate = {"version": world.publish(RIGHT).name}
    with ApiClient(configuration) as client:
        monkeypatch.setattr(connections, "cluster", lambda *_: client)
        with pytest.raises(ClusterUnavailable):
            world.run(candidate, max_regressions=0.1)
        assert world.run(candidate, min_accuracy=0.9)["stable"] is None
        assert world.evaluation["comparison"]["skipped"].startswith("the cluster does not say which version is stable:")
        world.context["params"]["rollout"] = "none"
        assert world.run(candidate, max_regressions=0.1)["regressions"] is None


def test_images_in_s3(world: World) -> None:
    for name in RIGHT:
        world.client.put_object(Bucket="models", Key=f"labelled/{name}.png", Body=name.encode())
    task_spec = world.spec.model_copy(update={"evaluation": Evaluation(data="s3://models/labelled/")})
    world.context["ti"].xcoms["resolve", "resolved"] = {"version": world.publish(ONE_WRONG).name}
    said = Evaluate(task_id="evaluate", root=world.project, spec=task_spec).execute(world.context)
    assert (said["accuracy"], said["data"]["digest_of"]) == (0.8, "etags")


def test_images_that_do_not_fit(world: World) -> None:
    candidate = {"version": world.publish(RIGHT).name}
    (world.project / "labelled" / "3").mkdir()
    with pytest.raises(SpecError, match="the folder of 3 holds no images"):
        world.run(candidate)
    (world.project / "labelled" / "3" / "a.png").write_bytes(b"3/a")
    with pytest.raises(SpecError, match="has images of 3, which the model does not know; it knows 0, 1, 2"):
        world.run(candidate)


def test_a_model_file_without_an_evaluation(spec: ModelSpec, context: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="has no evaluation; take the task out of the DAG"):
        Evaluate(task_id="evaluate", root=tmp_path, spec=spec).execute(context)
