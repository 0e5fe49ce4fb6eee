"""Faults on purpose, missing permissions and the record of calls, over HTTP as the project's tests use them."""

from __future__ import annotations

import asyncio
import json
from time import monotonic
from typing import Any

import pytest
from aiohttp import ClientSession
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from sandbox.interfaces import Phase
from sandbox.kube import routing
from sandbox.kube.conditions import state

R1, R2 = "digits-predictor-00001", "digits-predictor-00002"
ISVC = {"group": "serving.kserve.io", "version": "v1beta1", "namespace": "models", "plural": "inferenceservices"}


async def fault(live: Any, **said: Any) -> tuple[int, Any]:
    async with ClientSession() as http, http.post(f"{live.cluster.url}/-/faults", json=said) as answer:
        return answer.status, await answer.json()


async def call(live: Any, method: str, **more: Any) -> Any:
    with config.new_client_from_config(str(live.cluster.kubeconfig)) as made:
        made.configuration.retries = False
        done = getattr(client.CustomObjectsApi(made), f"{method}_namespaced_custom_object")
        return await asyncio.to_thread(done, **ISVC, **more)


async def until(live: Any, holds: Any, seconds: float = 20) -> Any:
    """The status of the service, once it is as asked for."""
    async with asyncio.timeout(seconds):
        while not holds(status := (await call(live, "get", name="digits")).get("status", {})):
            await asyncio.sleep(0.02)
    return status


def ready(status: Any) -> str:
    return state(status, "Ready")


def shares(status: Any) -> dict[str, int]:
    return routing.shares(status.get("components", {}).get("predictor", {}).get("traffic", []))


async def refused(live: Any, method: str, **more: Any) -> tuple[int, Any]:
    with pytest.raises(ApiException) as error:
        await call(live, method, **more)
    return error.value.status, json.loads(error.value.body)


async def test_a_fault_hits_its_calls_as_often_as_told(live: Any, manifest: Any) -> None:
    await call(live, "create", body=manifest())
    match = {"verb": "patch", "resource": "inferenceservices", "name": "digits"}
    assert (await fault(live, match=match, status=503, times=2))[0] == 201
    for _ in range(2):
        status, body = await refused(live, "patch", name="digits", body={"spec": {}})
        assert (status, body["reason"]) == (503, "ServiceUnavailable")
    assert (await call(live, "get", name="digits"))["metadata"]["name"] == "digits"
    await call(live, "patch", name="digits", body={"spec": {}})


async def test_a_fault_after_the_write_leaves_the_write(live: Any, manifest: Any) -> None:
    await fault(live, match={"verb": "create"}, status=500, after_write=True, times=1)
    status, body = await refused(live, "create", body=manifest())
    assert (status, body["reason"]) == (500, "InternalError")
    status, body = await refused(live, "create", body=manifest())
    assert (status, body["reason"]) == (409, "AlreadyExists")


async def test_a_delay_without_a_status_only_delays(live: Any, manifest: Any) -> None:
    await call(live, "create", body=manifest())
    await fault(live, match={"verb": "get"}, delay=0.4, times=1)
    before = monotonic()
    await call(live, "get", name="digits")
    assert monotonic() - before >= 0.4


async def test_a_missing_permission_is_named_and_the_access_review_knows_it(live: Any, manifest: Any) -> None:
    await fault(live, match={"verb": "patch", "resource": "inferenceservices"}, status=403)
    await call(live, "create", body=manifest())
    _, body = await refused(live, "patch", name="digits", body={"spec": {}})
    assert body["message"] == (
        'inferenceservices.serving.kserve.io "digits" is forbidden: User "sandbox" cannot patch resource '
        '"inferenceservices" in API group "serving.kserve.io" in the namespace "models"'
    )

    def may(verb: str) -> bool:
        attributes = client.V1ResourceAttributes(
            verb=verb, group="serving.kserve.io", resource="inferenceservices", namespace="models"
        )
        spec = client.V1SelfSubjectAccessReviewSpec(resource_attributes=attributes)
        review = client.V1SelfSubjectAccessReview(spec=spec)
        with config.new_client_from_config(str(live.cluster.kubeconfig)) as made:
            done = client.AuthorizationV1Api(made).create_self_subject_access_review(review)
        return bool(done.status.allowed)

    assert not await asyncio.to_thread(may, "patch")
    assert await asyncio.to_thread(may, "get")
    async with ClientSession() as http:
        await http.delete(f"{live.cluster.url}/-/faults")
    assert await asyncio.to_thread(may, "patch")


async def test_calls_are_recorded_in_the_words_of_rbac(live: Any, manifest: Any) -> None:
    await call(live, "create", body=manifest())
    await call(live, "get", name="digits")
    await call(live, "get", name="digits")
    async with ClientSession() as http, http.get(f"{live.cluster.url}/-/calls") as answer:
        made = {(c["verb"], c["group"], c["resource"], c["namespace"]): c["count"] for c in await answer.json()}
    where = ("serving.kserve.io", "inferenceservices", "models")
    assert made == {("create", *where): 1, ("get", *where): 2}


async def test_a_fault_lets_calls_through_in_between(live: Any, manifest: Any) -> None:
    await call(live, "create", body=manifest())
    await fault(live, match={"verb": "get", "resource": "inferenceservices"}, status=409, every=2)
    for _ in range(2):
        assert (await refused(live, "get", name="digits"))[0] == 409
        await call(live, "get", name="digits")


@pytest.mark.parametrize("after_write", [False, True])
async def test_a_connection_that_breaks_gives_no_answer(live: Any, manifest: Any, after_write: bool) -> None:
    await fault(live, match={"verb": "create"}, drop=True, after_write=after_write, times=1)
    with pytest.raises(HTTPError):
        await call(live, "create", body=manifest())
    if after_write:
        assert (await call(live, "get", name="digits"))["metadata"]["name"] == "digits"
    else:
        assert (await refused(live, "get", name="digits"))[0] == 404


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"status": 200}, "status"),
        ({"times": 0}, "times"),
        ({"match": {"verbs": "get"}}, "match.verbs"),
        ({"x": 1}, "x"),
        ({"away": "etcd"}, "away"),
        ({"pods": {"ready_after": -1}}, "pods.ready_after"),
    ],
)
async def test_what_is_not_a_fault_is_refused(live: Any, said: Any, why: str) -> None:
    status, body = await fault(live, **said)
    assert status == 400
    assert f"not a fault: {why}:" in body["message"]


async def test_pods_of_a_version_take_as_long_as_told(live: Any, manifest: Any) -> None:
    await fault(live, pods={"version": "v2", "ready_after": 1.5})
    await call(live, "create", body=manifest())
    await until(live, lambda status: ready(status) == "True")
    before = monotonic()
    await call(live, "patch", name="digits", body=manifest(version="v2", percent=30))
    await until(live, lambda status: shares(status) == {R1: 70, R2: 30})
    assert monotonic() - before >= 1.5


async def test_a_canary_is_killed_once_or_again_and_again(live: Any, manifest: Any) -> None:
    await call(live, "create", body=manifest())
    await until(live, lambda status: ready(status) == "True")
    await call(live, "patch", name="digits", body=manifest(version="v2", percent=30))
    await until(live, lambda status: shares(status) == {R1: 70, R2: 30})
    await fault(live, pods={"revision": R2, "killed": True}, times=1)
    await until(live, lambda status: ready(status) == "False")
    assert live.workloads.killed == [R2]
    live.workloads.set(R2, Phase.READY)
    await until(live, lambda status: ready(status) == "True")
    assert live.workloads.killed == [R2], "once"
    await fault(live, pods={"version": "v2", "killed": True})
    for times in (2, 3):
        await until(live, lambda _, times=times: live.workloads.killed == [R2] * times)
        live.workloads.set(R2, Phase.READY)
    async with ClientSession() as http:
        await http.delete(f"{live.cluster.url}/-/faults")
    live.workloads.set(R2, Phase.READY)
    await until(live, lambda status: ready(status) == "True")


async def test_without_the_gateway_the_status_is_ahead_of_what_users_get(live: Any, manifest: Any) -> None:
    await call(live, "create", body=manifest())
    await until(live, lambda status: ready(status) == "True")
    await call(live, "patch", name="digits", body=manifest(version="v2", percent=30))
    await until(live, lambda status: shares(status) == {R1: 70, R2: 30} and ready(status) == "True")
    await fault(live, away="gateway")
    await call(live, "patch", name="digits", body=manifest(version="v2", percent=0))
    status = await until(live, lambda status: shares(status) == {R1: 100, R2: 0})
    assert ready(status) == "Unknown"
    assert live.router.routes["digits.models.localhost"] == {R1: 70, R2: 30}
    async with ClientSession() as http:
        await http.delete(f"{live.cluster.url}/-/faults")
    await until(live, lambda status: ready(status) == "True")
    assert live.router.routes["digits.models.localhost"] == {R1: 100}


async def test_only_this_machine_is_answered(live: Any) -> None:
    async with ClientSession() as http:
        async with http.get(f"{live.cluster.url}/version", headers={"Host": "evil.example:80"}) as answer:
            assert answer.status == 403
        async with http.get(f"{live.cluster.url}/version") as answer:
            assert (await answer.json())["gitVersion"].startswith("v1.")
