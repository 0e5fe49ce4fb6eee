"""A release and a late roll-back in Standard mode: the front door's real Envoy, and users who come all the while."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from kubernetes.client import ApiClient, Configuration
from tests.patience import LIMIT, come
from tests.releases import left

from model_release.cluster import rollout
from model_release.cluster.manifest import load_base, manifest, predictor_name
from model_release.cluster.progress import Progress, State, wait
from model_release.cluster.services import InferenceServices
from model_release.cluster.settle import settle
from model_release.cluster.smoke import smoke, smoke_url
from model_release.spec import ModelSpec
from sandbox.envoy import Backend, Envoy
from sandbox.interfaces import Phase, PodState, RevisionKey, RevisionTemplate
from sandbox.kube import Cluster, Timing
from sandbox.ports import free_port

pytestmark = pytest.mark.stack

BASE = Path(__file__).parents[2] / "include" / "manifests" / "inference_service.yaml"
HOST = "digits.models.localhost"
SPEC = ModelSpec.model_validate(
    {
        "model": "digits",
        "source": {"directory": "candidates/digits"},
        "service": {"name": "digits", "namespace": "models", "mode": "standard"},
        "store": "s3://models/digits/",
        "judge": {"profile": "istio", "metrics": [{"name": "errors", "max_rate": 0.02}]},
    }
)


def wanted(version: str) -> dict[str, Any]:
    return manifest(SPEC, f"s3://models/digits/versions/{version}/", load_base(BASE))


def named(version: str) -> str:
    return f"digits-{predictor_name('digits', f's3://models/digits/versions/{version}/')}-predictor"


V1, V2 = named("v1"), named("v2")


class Replicas:
    """A web server for each predictor, which answers its version; implements `interfaces.Workloads`."""

    def __init__(self, envoy: Envoy) -> None:
        self._envoy = envoy
        self._servers: dict[RevisionKey, tuple[web.AppRunner, Backend]] = {}

    async def ensure(self, template: RevisionTemplate) -> None:
        if template.key in self._servers:
            return
        version = template.storage_uri.rstrip("/").rsplit("/", 1)[-1]

        async def answer(_: web.Request) -> web.Response:
            await asyncio.sleep(0.01)
            return web.json_response({"predictions": [{"label": version, "score": 1.0}]})

        app = web.Application()
        app.router.add_post("/v1/models/digits:predict", answer)
        runner, port = web.AppRunner(app), free_port()
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        self._servers[template.key] = runner, Backend([port])
        await self._publish()

    async def remove(self, key: RevisionKey) -> None:
        runner, _ = self._servers.pop(key)
        await self._publish()
        await runner.cleanup()

    async def _publish(self) -> None:
        await self._envoy.place({key: backend for key, (_, backend) in self._servers.items()})

    def state(self, key: RevisionKey) -> PodState:
        return PodState(Phase.READY, 1, pods=(f"{key.name}-0",)) if key in self._servers else PodState(Phase.PENDING)

    def log(self, key: RevisionKey, tail: int | None = None) -> str:
        return ""

    async def close(self) -> None:
        for key in list(self._servers):
            await self.remove(key)


class Users:
    """One request after the other at the service's own address. `statuses` holds all of them, `seen` the latest."""

    def __init__(self, envoy: Envoy) -> None:
        self._url, self._tasks = envoy.url, list[asyncio.Task[None]]()
        self.seen, self.statuses = Counter[tuple[int, str | None]](), Counter[int]()

    async def _come(self) -> None:
        async with aiohttp.ClientSession() as http:
            while True:
                ask = http.post(f"{self._url}/v1/models/digits:predict", headers={"Host": HOST}, json={})
                async with ask as answer:
                    await answer.read()
                    self.seen[answer.status, answer.headers.get("x-revision")] += 1
                    self.statuses[answer.status] += 1

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._come()) for _ in range(4)]

    async def more(self, number: int) -> None:
        """Returns when so many more have been answered."""
        enough = self.seen.total() + number
        await come(lambda: self.seen.total() >= enough, lambda: f"the users are not answered: {self.seen}")

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.fixture
async def services(envoy: Envoy, tmp_path: Path) -> AsyncIterator[InferenceServices]:
    replicas = Replicas(envoy)
    cluster = Cluster(replicas, envoy, tmp_path / "kube", timing=Timing(lag=0.01, poll=0.02))
    await cluster.start()
    configuration = Configuration()
    configuration.host = cluster.url
    with ApiClient(configuration) as client:
        yield InferenceServices(client)
    await cluster.stop()
    await replicas.close()


async def until(services: InferenceServices, assess: Callable[[Any], Progress]) -> None:
    progress = await asyncio.to_thread(wait, lambda: assess(services.get("models", "digits")), LIMIT, poll=0.02)
    assert progress.state is State.READY, progress


async def stage(services: InferenceServices, version: str) -> tuple[Any, Any]:
    """Claimed, staged, and asked at its own Service."""
    baseline = rollout.baseline_of(await asyncio.to_thread(services.get, "models", "digits"), wanted(version))
    await asyncio.to_thread(rollout.stage, services, wanted(version), baseline)
    await until(services, partial(rollout.assess_staged, wanted=wanted(version), baseline=baseline))
    live = await asyncio.to_thread(services.get, "models", "digits")
    assert live is not None
    return baseline, rollout.canary_of(live, baseline)


async def test_users_see_the_split_and_no_failure_through_promotion_and_late_roll_back(
    envoy: Envoy, services: InferenceServices
) -> None:
    await stage(services, "v1")
    users = Users(envoy)
    users.start()
    baseline, canary = await stage(services, "v2")
    await users.more(30)
    assert set(users.seen) == {(200, V1)}, "at 0 % no user meets the canary"
    live = await asyncio.to_thread(services.get, "models", "digits")
    assert live is not None
    sample = {"instances": [{}], "expected": [{"label": "v2", "score": 1.0}]}
    asked = await asyncio.to_thread(smoke, smoke_url(live), "digits", sample, ingress=envoy.url)
    assert asked.answers == ({"label": "v2", "score": 1.0},)

    await asyncio.to_thread(rollout.shift, services, canary, 30)
    await until(services, partial(rollout.assess_split, canary=canary, percent=30))
    users.seen.clear()
    await users.more(600)
    share = users.seen[200, V2] / users.seen.total()
    # 4.5 standard deviations of 600 requests: a false alarm in about 150 000 runs.
    assert abs(share - 0.3) < 4.5 * (0.3 * 0.7 / 600) ** 0.5

    await asyncio.to_thread(rollout.promote, services, canary, 30)
    await until(services, partial(rollout.assess_promoted, canary=canary))
    users.seen.clear()
    await users.more(30)
    assert set(users.seen) == {(200, V2)}

    release = left("models", "digits", baseline, canary.revision)
    said = await asyncio.to_thread(settle, services, release, lambda _: None, deadline=LIMIT, poll=0.02)
    assert said == f"{V1} has all of the traffic"
    users.seen.clear()
    await users.more(30)
    await users.end()
    assert set(users.seen) == {(200, V1)}
    assert set(users.statuses) == {200}, users.statuses
