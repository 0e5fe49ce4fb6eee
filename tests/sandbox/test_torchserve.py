from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from tests.patience import come

from sandbox import process
from sandbox.container import Container, ContainerFailed
from sandbox.envoy import Envoy
from sandbox.interfaces import Phase, PodState, RevisionKey, RevisionTemplate, Route
from sandbox.revision import Pace
from sandbox.s3 import ModelStore
from sandbox.torchserve import TorchServe, read_properties
from sandbox.workloads import ProcessWorkloads

BODY = {"instances": [{"data": "one"}, {"data": "two"}]}
Publish = Callable[..., str]


@pytest.fixture
async def workloads(state: Path, envoy: Envoy, store: ModelStore) -> AsyncIterator[ProcessWorkloads]:
    async def changed() -> None:
        await envoy.place(running.backends())

    pace = Pace(first_backoff=0.2, drain=0.1)
    running = ProcessWorkloads(state_dir=state, store=store.client, changed=changed, pace=pace)
    await running.start()
    yield running
    await running.stop()


def key(number: int) -> RevisionKey:
    return RevisionKey("models", f"digits-predictor-{number:05}")


async def until(workloads: ProcessWorkloads, revision: RevisionKey, phase: Phase, ready: int = 0) -> PodState:
    def there() -> PodState | None:
        state = workloads.state(revision)
        return state if state.phase is phase and state.ready_replicas >= ready else None

    # A crashed revision is started again in a moment: looked at often enough to be seen.
    found: PodState = await come(
        there, lambda: f"{workloads.state(revision)}\n{workloads.log(revision, 20)}", pause=0.02
    )
    return found


async def predict(envoy: Envoy, revision: RevisionKey) -> tuple[int, Any]:
    url = f"{envoy.url}/v1/models/digits:predict"
    async with (
        aiohttp.ClientSession() as http,
        http.post(url, json=BODY, headers={"Host": f"{revision.name}.localhost"}) as answer,
    ):
        text = await answer.text()
        return answer.status, json.loads(text) if text.startswith("{") else text


def record(client: Any, uri: str) -> None:
    """Writes a version.json of what lies at the address now, as a publish does."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    listed = {}
    for item in client.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]:
        body = client.get_object(Bucket=bucket, Key=item["Key"])["Body"].read()
        listed[item["Key"].removeprefix(prefix)] = {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body)}
    content = json.dumps({"version": "0123456789abcdef", "files": listed})
    client.put_object(Bucket=bucket, Key=f"{prefix}version.json", Body=content)


@pytest.mark.stack
async def test_a_version_is_held_against_its_record_before_it_is_served(
    workloads: ProcessWorkloads, store: ModelStore, publish: Publish, state: Path
) -> None:
    whole, changed = key(1), key(2)
    client = store.client()
    uris = {whole: publish(client, "whole"), changed: publish(client, "changed")}
    for uri in uris.values():
        record(client, uri)
    client.put_object(Bucket="models", Key="digits/changed/config/config.properties", Body=b"changed afterwards")
    for revision, uri in uris.items():
        await workloads.ensure(RevisionTemplate(revision, "digits", uri))
    refused = await until(workloads, changed, Phase.CRASHED)
    assert refused.exit_code == 1
    assert refused.message.startswith(
        "Version 0123456789abcdef is not what its version.json says: config/config.properties has 18 bytes instead of "
    )
    assert refused.message in workloads.log(changed)
    assert process.processes(state, f"models/{changed.name}") == [], "no server was started"
    pod = (await until(workloads, whole, Phase.READY)).pods[0]
    for killed in process.processes(state, f"models/{whole.name}"):
        killed.kill()
    await until(workloads, whole, Phase.CRASHED)
    assert (await until(workloads, whole, Phase.READY)).pods == (pod,)
    said = "Version 0123456789abcdef: 2 files are what version.json says"
    assert workloads.log(whole).count(said) == 2, "at each start"


@pytest.mark.stack
async def test_revisions_from_the_store(
    workloads: ProcessWorkloads, envoy: Envoy, store: ModelStore, publish: Publish, state: Path
) -> None:
    good, broken, missing, empty = (key(number) for number in range(1, 5))
    client = store.client()
    good_uri = publish(client, "good")
    uris = {
        good: good_uri,
        broken: publish(client, "broken", initialize='raise RuntimeError("wrong weights")'),
        missing: "s3://models/digits/none/",
        empty: publish(client, "empty", mar=False),
    }
    await envoy.program([Route(f"{one.name}.localhost", {one: 100}) for one in uris])
    for revision, uri in uris.items():
        await workloads.ensure(RevisionTemplate(revision, "digits", uri))

    # The storage initializer and the entrypoint fail with KServe's words.
    failed = await until(workloads, missing, Phase.DOWNLOAD_FAILED)
    assert (failed.message, failed.exit_code) == ("Failed to fetch model. No model found in digits/none/.", 1)
    assert failed.message in workloads.log(missing)
    crashed = await until(workloads, empty, Phase.CRASHED)
    assert crashed.exit_code == 1
    assert "ModelMissingError" in crashed.message
    assert (await predict(envoy, missing))[0] == 503

    # What is ready answers at once.
    ready = await until(workloads, good, Phase.READY)
    assert await predict(envoy, good) == (200, {"predictions": [{"got": "one"}, {"got": "two"}]})
    assert "has no version.json: served unverified" in workloads.log(good)
    assert ready.ready_replicas == 1
    assert ready.pods[0].startswith(f"{good.name}-deployment-")
    assert [target.key for target in workloads.targets()] == [good]
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"http://127.0.0.1:{workloads.targets()[0].port}/metrics") as page,
    ):
        assert "ts_inference_requests_total" in await page.text()

    # A model that does not load is ready all the same, and answers as KServe's wrapper does.
    await until(workloads, broken, Phase.READY)
    assert await predict(envoy, broken) == (503, {"error": "Model with name digits is not ready."})
    assert "RuntimeError: wrong weights" in workloads.log(broken)
    assert workloads.log(broken, tail=3).count("\n") == 2

    # Removed revisions leave nothing; removing twice is once.
    for revision in (broken, missing, empty):
        await workloads.remove(revision)
        await workloads.remove(revision)
        assert process.processes(state, f"{revision.namespace}/{revision.name}") == []
        assert workloads.state(revision) == PodState(Phase.PENDING)

    # A crash is seen with its exit code, and the server is started again.
    (pid,) = {one.pid for one in process.processes(state) if "java" in one.name()}
    psutil.Process(pid).send_signal(signal.SIGKILL)
    killed = await until(workloads, good, Phase.CRASHED)
    assert killed.exit_code == 137
    assert (await predict(envoy, good))[0] == 503
    # Meanwhile another replica is asked for, with a limit.
    await workloads.ensure(RevisionTemplate(good, "digits", good_uri, replicas=2, container_concurrency=3))
    await until(workloads, good, Phase.READY, ready=2)
    both = {one.pid for one in process.processes(state) if "java" in one.name()}
    assert len(both - {pid}) == len(both) == 2
    assert len(workloads.backends()[good].ports) == 2
    assert workloads.backends()[good].concurrency == 3
    assert (await predict(envoy, good))[0] == 200

    # With fewer replicas the first one goes on as it is.
    first = workloads.backends()[good].ports[0]
    await workloads.ensure(RevisionTemplate(good, "digits", good_uri, replicas=1))
    (left,) = {one.pid for one in process.processes(state) if "java" in one.name()}
    assert left in both
    assert workloads.backends()[good].ports == (first,)
    assert (await predict(envoy, good))[0] == 200


def version(folder: Path, config: str, mar: bool = True) -> Path:
    (folder / "model/config").mkdir(parents=True)
    (folder / "model/config/config.properties").write_text(config)
    (folder / "model/model-store").mkdir()
    if mar:
        (folder / "model/model-store/digits.mar").write_bytes(b"")
    return folder / "model"


def server(folder: Path, model: Path) -> TorchServe:
    return TorchServe(
        Container(
            "models/r/0",
            state_dir=folder,
            model=model,
            folder=folder / "own",
            sockets=folder / "sockets",
            log=folder / "log",
            env={"MODEL_LOAD_DELAY": "1"},
        )
    )


async def test_what_the_version_says_is_kept(tmp_path: Path) -> None:
    snapshot = 'model_snapshot={"models":{"digits":{"1.0":{}}}}'
    said = f"""\
# for KServe
inference_address=http://0.0.0.0:8085
number_of_netty_threads=4
metrics_config=/mnt/models/config/metrics.yaml
vmargs=-Xmx2g
{snapshot}
"""
    one = server(tmp_path, version(tmp_path, said))
    written = read_properties(tmp_path / "own/config.properties")
    assert one.models == ["digits"]
    assert written["number_of_netty_threads"] == "4"
    assert written["metrics_config"] == str(tmp_path / "model/config/metrics.yaml")
    assert written["model_store"] == str(tmp_path / "model/model-store")
    addresses = [value for name, value in written.items() if name.endswith("_address")]
    assert len(addresses) == 5
    assert all("127.0.0.1" in address for address in addresses)
    assert "-Xmx2g" in one.child._argv
    await one.stop()


@pytest.mark.parametrize(
    ("config", "mar", "words"),
    [
        ("model_snapshot={broken", True, "JSONDecodeError"),
        ("metrics_mode=prometheus", True, "KeyError: 'model_snapshot'"),
        ('model_snapshot={"models":{}}', False, "ModelMissingError"),
    ],
)
def test_files_that_end_the_container(tmp_path: Path, config: str, mar: bool, words: str) -> None:
    with pytest.raises(ContainerFailed, match=words):
        server(tmp_path, version(tmp_path, config, mar))


def test_a_version_without_configuration_ends_the_container(tmp_path: Path) -> None:
    model = version(tmp_path, "")
    (model / "config/config.properties").unlink()
    with pytest.raises(ContainerFailed, match=r"--ts-config file not found: /mnt/models/config/config.properties"):
        server(tmp_path, model)


def test_back_off_doubles_to_its_limit() -> None:
    pace = Pace(first_backoff=2, longest_backoff=10)
    assert [pace.backoff(failures) for failures in (1, 2, 3, 4)] == [2, 4, 8, 10]
