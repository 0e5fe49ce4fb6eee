"""A canary whose process dies while users are on it: with real processes, a real front door and a real split."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from sandbox.envoy import Envoy
from sandbox.kube import Cluster, Timing
from sandbox.kube.conditions import state as condition_state
from sandbox.revision import Pace
from sandbox.s3 import ModelStore
from sandbox.workloads import ProcessWorkloads

pytestmark = pytest.mark.stack

R1, R2 = "digits-predictor-00001", "digits-predictor-00002"
HOST = {"Host": "digits.models.localhost"}
SERVICES = "/apis/serving.kserve.io/v1beta1/namespaces/models/inferenceservices"
REVISIONS = "/apis/serving.knative.dev/v1/namespaces/models/revisions"
MERGE = {"Content-Type": "application/merge-patch+json"}


@dataclass
class Live:
    cluster: Cluster
    envoy: Envoy
    http: aiohttp.ClientSession

    async def ask(self, method: str, path: str, **more: Any) -> Any:
        async with self.http.request(method, f"{self.cluster.url}{path}", **more) as answer:
            assert answer.status < 300, await answer.text()
            return await answer.json()

    async def write(self, **predictor: Any) -> None:
        await self.ask("PATCH", f"{SERVICES}/digits", json={"spec": {"predictor": predictor}}, headers=MERGE)

    async def is_ready(self, revision: str) -> str:
        listed = (await self.ask("GET", REVISIONS))["items"]
        found = [one for one in listed if one["metadata"]["name"] == revision]
        return condition_state(found[0].get("status", {}), "Ready") if found else "Missing"

    async def users(self, number: int = 60) -> Counter[tuple[int, str]]:
        """Who answered so many users, and how."""
        url, seen = f"{self.envoy.url}/v1/models/digits:predict", Counter[tuple[int, str]]()
        for _ in range(number):
            async with self.http.post(url, json={"instances": [{"data": "one"}]}, headers=HOST) as answer:
                seen[answer.status, answer.headers.get("x-revision", "")] += 1
        return seen


async def until(holds: Callable[[], Awaitable[bool]], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not await holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


@pytest.fixture
async def live(state: Path, envoy: Envoy, store: ModelStore) -> AsyncIterator[Live]:
    async def changed() -> None:
        await envoy.place(workloads.backends())

    workloads = ProcessWorkloads(
        state_dir=state, store=store.client, changed=changed, pace=Pace(first_backoff=0.2, drain=0.1)
    )
    await workloads.start()
    cluster = Cluster(workloads, envoy, state, timing=Timing(lag=0.02, poll=0.05))
    await cluster.start()
    async with aiohttp.ClientSession() as http:
        yield Live(cluster, envoy, http)
    await cluster.stop()
    await workloads.stop()


async def test_users_stay_on_a_dead_canary_until_its_revision_is_deleted(
    live: Live, store: ModelStore, publish: Callable[..., str]
) -> None:
    v1, v2 = (publish(store.client(), version) for version in ("v1", "v2"))
    model = {"modelFormat": {"name": "pytorch"}, "storageUri": v1}
    body = {"metadata": {"name": "digits"}, "spec": {"predictor": {"model": model}}}
    await live.ask("POST", SERVICES, json=body)

    async def split(*revisions: str) -> bool:
        return {revision for _, revision in await live.users(30)} == set(revisions)

    await until(lambda: split(R1))
    await live.write(model={"storageUri": v2}, canaryTrafficPercent=50)
    await until(lambda: split(R1, R2))

    await live.ask("POST", "/-/faults", json={"pods": {"revision": R2, "killed": True}})

    async def is_dead() -> bool:
        return await live.is_ready(R2) == "False"

    await until(is_dead)
    await live.write(canaryTrafficPercent=0)

    async def is_written() -> bool:
        service = await live.ask("GET", "/apis/serving.knative.dev/v1/namespaces/models/services/digits-predictor")
        told = service["status"]
        return bool(
            service["spec"]["traffic"][0]["percent"] == 0
            and told["observedGeneration"] == service["metadata"]["generation"]
            and condition_state(told, "RoutesReady") == "False"
        )

    await until(is_written)
    seen = await live.users()
    assert seen[503, R2] > 0, "0 % is written, and users are on the dead canary all the same"
    assert seen[200, R1] > 0

    dead = next(one for one in (await live.ask("GET", REVISIONS))["items"] if one["metadata"]["name"] == R2)
    uid = dead["metadata"]["uid"]
    await live.ask("DELETE", f"{REVISIONS}/{R2}", json={"preconditions": {"uid": uid}})
    await until(lambda: split(R1))
    assert await live.users() == {(200, R1): 60}

    async def is_made_anew() -> bool:
        listed = (await live.ask("GET", REVISIONS))["items"]
        return any(one["metadata"]["name"] == R2 and one["metadata"]["uid"] != uid for one in listed)

    await until(is_made_anew)
    await live.ask("DELETE", "/-/faults")

    async def is_back() -> bool:
        return await live.is_ready(R2) == "True"

    await until(is_back)
    assert await live.users() == {(200, R1): 60}, "ready again, at 0 %"
