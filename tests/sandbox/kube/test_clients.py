"""The real `kubernetes` client and the real kubectl against a started Cluster."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml
from kubernetes import client, config, watch
from kubernetes.client.exceptions import ApiException
from tests.patience import LIMIT

from model_release.cluster.lease import lease_name
from sandbox import demo
from sandbox.interfaces import Phase
from sandbox.kube import Cluster, PortTaken, forget
from sandbox.kube.server import HOST

ISVC = {"group": "serving.kserve.io", "version": "v1beta1", "namespace": "models", "plural": "inferenceservices"}
R1, R2 = "digits-predictor-00001", "digits-predictor-00002"


@pytest.fixture
def api(live: Any) -> Iterator[client.ApiClient]:
    with config.new_client_from_config(str(live.cluster.kubeconfig)) as made:
        yield made


async def off(call: Any, *args: Any, **kwargs: Any) -> Any:
    """A blocking client's call, beside the server that runs in this loop."""
    return await asyncio.to_thread(call, *args, **kwargs)


async def until(get: Any, good: Any) -> Any:
    async with asyncio.timeout(LIMIT):
        while not good(found := await off(get)):
            await asyncio.sleep(0.02)
        return found


def ready(isvc: Any) -> bool:
    conditions = isvc.get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def shares(isvc: Any) -> dict[str, int]:
    traffic = isvc.get("status", {}).get("components", {}).get("predictor", {}).get("traffic", [])
    return {t["revisionName"]: t["percent"] for t in traffic}


async def test_a_release_with_the_python_client(live: Any, api: Any, manifest: Any) -> None:
    custom = client.CustomObjectsApi(api)

    def get() -> Any:
        return custom.get_namespaced_custom_object(name="digits", **ISVC)

    created = await off(custom.create_namespaced_custom_object, body=manifest(), **ISVC)
    assert "status" not in created
    assert created["spec"]["predictor"]["model"]["name"] == "", "Go writes the field out"
    assert created["metadata"]["annotations"]["modelFormat"] == "pytorch"
    await until(get, ready)
    template = {"spec": {"predictor": {"model": {"storageUri": "s3://models/x/"}, "canaryTrafficPercent": 30}}}
    patched = await off(custom.patch_namespaced_custom_object, name="digits", body=template, **ISVC)
    assert shares(patched) == {R1: 100}  # status lags the write
    opened = await until(get, lambda o: shares(o) == {R1: 70, R2: 30})
    stale = {"metadata": {"resourceVersion": created["metadata"]["resourceVersion"]}, "spec": {}}
    with pytest.raises(ApiException) as conflict:
        await off(custom.patch_namespaced_custom_object, name="digits", body=stale, **ISVC)
    assert conflict.value.status == 409
    assert "the object has been modified; please apply your changes" in json.loads(conflict.value.body)["message"]
    removal = [{"op": "remove", "path": "/spec/predictor/canaryTrafficPercent"}]
    as_json_patch = {"_content_type": "application/json-patch+json"}
    await off(custom.patch_namespaced_custom_object, name="digits", body=removal, **ISVC, **as_json_patch)
    promoted = await until(get, lambda o: shares(o) == {R2: 100})
    assert promoted["metadata"]["generation"] == opened["metadata"]["generation"] + 1
    again = await off(custom.patch_namespaced_custom_object, name="digits", body={"spec": {"predictor": {}}}, **ISVC)
    assert again["metadata"]["generation"] == promoted["metadata"]["generation"]
    await off(custom.delete_namespaced_custom_object, name="digits", **ISVC)

    def gone() -> Any:
        try:
            get()
        except ApiException as error:
            return error
        return None

    error = await until(gone, lambda e: e is not None)
    assert error.status == 404
    assert json.loads(error.body)["details"]["name"] == "digits"


async def test_watch_tells_of_a_service_until_it_is_ready_and_resumes(live: Any, api: Any, manifest: Any) -> None:
    custom = client.CustomObjectsApi(api)

    def follow(version: str) -> list[tuple[str, str, bool]]:
        seen = []
        stream = watch.Watch().stream(
            custom.list_namespaced_custom_object, **ISVC, resource_version=version, timeout_seconds=10
        )
        for event in stream:
            obj = event["object"]
            seen.append((event["type"], obj["metadata"]["resourceVersion"], ready(obj)))
            if ready(obj):
                break
        return seen

    listed = await off(custom.list_namespaced_custom_object, **ISVC)
    following = asyncio.create_task(off(follow, listed["metadata"]["resourceVersion"]))
    await off(custom.create_namespaced_custom_object, body=manifest(), **ISVC)
    seen = await following
    assert seen[0][0] == "ADDED"
    assert {type_ for type_, *_ in seen[1:]} == {"MODIFIED"}
    assert [r for *_, r in seen] == [False] * (len(seen) - 1) + [True]
    resumed = await off(follow, seen[1][1])
    assert resumed == seen[2:]


async def test_what_was_forgotten_while_nothing_ran_is_not_brought_back(live: Any, api: Any, manifest: Any) -> None:
    """With the service go its revisions, before any of their processes starts, and the lease of its releases."""
    custom, leases = client.CustomObjectsApi(api), client.CoordinationV1Api(api)
    for name in ("digits", "letters"):
        await off(custom.create_namespaced_custom_object, body=manifest(name), **ISVC)
        await off(leases.create_namespaced_lease, "models", {"metadata": {"name": lease_name(name)}})
    await until(lambda: custom.get_namespaced_custom_object(name="digits", **ISVC), ready)
    port = live.cluster.port
    await live.cluster.stop()
    live.workloads = type(live.workloads)(automatic=True)
    for _ in range(2):
        forget(live.state_dir, "models", "digits", demo.lease("digits"))
    forget(live.state_dir / "nowhere", "models", "digits", demo.lease("digits"))
    live.cluster = live.new_cluster(port)
    await live.cluster.start()

    def names() -> list[str]:
        return [one["metadata"]["name"] for one in custom.list_namespaced_custom_object(**ISVC)["items"]]

    await until(names, lambda found: found == ["letters"])
    await until(live.workloads.running, lambda found: found == {"letters-predictor-00001"})
    assert live.workloads.removed == [], "nothing was started to be ended"
    kept = await off(leases.list_namespaced_lease, "models")
    assert [one.metadata.name for one in kept.items] == [lease_name("letters")]


async def test_an_old_version_of_a_watch_is_gone_after_a_restart(live: Any, api: Any, manifest: Any) -> None:
    custom = client.CustomObjectsApi(api)
    await off(custom.create_namespaced_custom_object, body=manifest(), **ISVC)
    await until(lambda: custom.get_namespaced_custom_object(name="digits", **ISVC), ready)
    port = live.cluster.port
    await live.cluster.stop()
    live.cluster = live.new_cluster(port)
    await live.cluster.start()

    def follow() -> None:
        list(
            watch.Watch().stream(custom.list_namespaced_custom_object, **ISVC, resource_version="1", timeout_seconds=2)
        )

    with pytest.raises(ApiException) as expired:
        await off(follow)
    assert expired.value.status == 410
    kept = await off(custom.get_namespaced_custom_object, name="digits", **ISVC)
    assert shares(kept) == {R1: 100}
    assert live.router.routes["digits.models.localhost"] == {R1: 100}


async def test_leases_are_taken_by_one_and_renewed_by_version(live: Any, api: Any) -> None:
    leases = client.CoordinationV1Api(api)
    spec = client.V1LeaseSpec(holder_identity="run-1", lease_duration_seconds=60, renew_time=datetime.now(UTC))
    meta = client.V1ObjectMeta(name="digits", annotations={"baseline": R1})
    lease = await off(leases.create_namespaced_lease, "models", client.V1Lease(metadata=meta, spec=spec))
    with pytest.raises(ApiException) as taken:
        await off(leases.create_namespaced_lease, "models", client.V1Lease(metadata=meta, spec=spec))
    assert (taken.value.status, json.loads(taken.value.body)["reason"]) == (409, "AlreadyExists")
    version = lease.metadata.resource_version
    lease.spec.lease_duration_seconds = 90
    renewed = await off(leases.replace_namespaced_lease, "digits", "models", lease)
    assert int(renewed.metadata.resource_version) > int(version)
    with pytest.raises(ApiException) as stale:
        await off(leases.replace_namespaced_lease, "digits", "models", lease)
    assert (stale.value.status, json.loads(stale.value.body)["reason"]) == (409, "Conflict")
    options = client.V1DeleteOptions(preconditions=client.V1Preconditions(resource_version=version))
    with pytest.raises(ApiException, match="Conflict"):
        await off(leases.delete_namespaced_lease, "digits", "models", body=options)
    await off(leases.delete_namespaced_lease, "digits", "models")
    with pytest.raises(ApiException, match="Not Found"):
        await off(leases.read_namespaced_lease, "digits", "models")


async def test_refusals_have_kubernetes_words(live: Any, api: Any, manifest: Any) -> None:
    custom = client.CustomObjectsApi(api)

    async def refused(body: Any, **more: Any) -> tuple[int, str]:
        with pytest.raises(ApiException) as error:
            await off(custom.create_namespaced_custom_object, body=body, **{**ISVC, **more})
        return error.value.status, json.loads(error.value.body)["message"]

    denied = 'admission webhook "inferenceservice.kserve-webhook-server.validator" denied the request: '
    status, text = await refused(manifest("9digits"))
    assert status == 403
    assert text.startswith(denied + 'the InferenceService "9digits" is invalid')
    assert await refused(manifest(minReplicas=3, maxReplicas=2)) == (
        403, denied + "'MinReplicas' cannot be greater than MaxReplicas")  # fmt: skip
    status, text = await refused(manifest(canaryTrafficPercent="30"))
    assert status == 422
    assert "spec.predictor.canaryTrafficPercent in body must be of type integer" in text
    assert await refused(manifest(namespace="nowhere"), namespace="nowhere") == (404, 'namespaces "nowhere" not found')
    status, text = await refused(manifest(canaryTraficPercent=3), field_validation="Strict")
    assert (status, text[-60:]) == (400, 'ng error: unknown field "spec.predictor.canaryTraficPercent"')
    created = await off(custom.create_namespaced_custom_object, body=manifest(canaryTraficPercent=3), **ISVC)
    assert "canaryTraficPercent" not in created["spec"]["predictor"]
    moved = {"metadata": {"annotations": {"serving.kserve.io/deploymentMode": "RawDeployment"}}}
    with pytest.raises(ApiException) as change:
        await off(custom.patch_namespaced_custom_object, name="digits", body=moved, **ISVC)
    text = json.loads(change.value.body)["message"]
    assert text == denied + "update rejected: deploymentMode cannot be changed from 'Knative' to 'Standard'"


async def test_short_form_is_rewritten(live: Any, api: Any, manifest: Any) -> None:
    custom = client.CustomObjectsApi(api)
    body = manifest()
    body["spec"]["predictor"] = {"pytorch": {"storageUri": "s3://models/short/"}}
    created = await off(custom.create_namespaced_custom_object, body=body, **ISVC)
    predictor = created["spec"]["predictor"]
    assert "pytorch" not in predictor
    assert predictor["model"]["modelFormat"] == {"name": "pytorch"}
    assert predictor["model"]["resources"]["limits"] == {"cpu": "1", "memory": "2Gi"}


async def test_kubectl_reads_and_writes(live: Any, manifest: Any) -> None:
    kubectl = live.kubectl
    text = yaml.safe_dump(manifest(annotations={"serving.kserve.io/enable-tag-routing": "true"}))
    assert "created" in (await off(kubectl, "apply", "-f", "-", stdin=text)).stdout
    await off(kubectl, "wait", "--for=condition=Ready", "isvc/digits", f"--timeout={LIMIT:.0f}s")
    assert "unchanged" in (await off(kubectl, "apply", "-f", "-", stdin=text)).stdout
    patch = '{"spec":{"predictor":{"canaryTrafficPercent":30,"model":{"storageUri":"s3://models/b/"}}}}'
    await off(kubectl, "patch", "isvc", "digits", "--type=merge", "-p", patch)
    await until(lambda: live.router.routes["digits.models.localhost"], lambda r: r == {R1: 70, R2: 30})
    header, row = [line.split() for line in (await off(kubectl, "get", "isvc")).stdout.splitlines()]
    assert header == ["NAME", "URL", "READY", "PREV", "LATEST", "PREVROLLEDOUTREVISION", "LATESTREADYREVISION", "AGE"]
    await off(kubectl, "wait", "--for=condition=Ready", "isvc/digits", f"--timeout={LIMIT:.0f}s")
    row = (await off(kubectl, "get", "isvc", "--no-headers")).stdout.split()
    assert row[:7] == ["digits", "http://digits.models.localhost:8080", "True", "70", "30", R1, R2]
    described = (await off(kubectl, "describe", "isvc", "digits")).stdout
    assert "InferenceServiceReady" in described
    assert "Latest Rolledout Revision:  digits-predictor-00001" in described
    pods = (
        await off(kubectl, "get", "pods", "-l", f"serving.knative.dev/revision={R2}", "--no-headers")
    ).stdout.split()
    assert pods[1:4] == ["1/1", "Running", "0"]
    assert (await off(kubectl, "logs", pods[0])).stdout == f"log of {R2}\n"
    assert R2 in (await off(kubectl, "get", "revisions,ksvc")).stdout
    refused = await off(kubectl, "delete", "configuration", "digits-predictor", check=False)
    assert "the server does not allow this method" in refused.stderr
    await off(kubectl, "delete", "isvc", "digits", f"--timeout={LIMIT:.0f}s")
    assert "No resources found" in (await off(kubectl, "get", "revisions,pods,isvc")).stderr


async def test_kubectl_server_side_apply_and_typing_errors(live: Any, manifest: Any) -> None:
    kubectl = live.kubectl
    base = ("apply", "--server-side", "-f", "-")
    text = yaml.safe_dump(manifest(percent=10))
    assert "serverside-applied" in (await off(kubectl, *base, stdin=text)).stdout
    await off(
        kubectl, "patch", "isvc/digits", "--type=merge", "-p", '{"spec":{"predictor":{"canaryTrafficPercent":30}}}'
    )
    conflict = await off(kubectl, *base, stdin=text, check=False)
    assert 'conflict with "kubectl-patch"' in conflict.stderr
    assert ".spec.predictor.canaryTrafficPercent" in conflict.stderr
    await off(kubectl, *base, "--force-conflicts", stdin=text)
    await off(kubectl, *base, stdin=yaml.safe_dump(manifest()))  # left out: removed, as it was this manager's
    left = json.loads((await off(kubectl, "get", "isvc", "digits", "-o", "json")).stdout)
    assert "canaryTrafficPercent" not in left["spec"]["predictor"]
    assert left["spec"]["predictor"]["model"]["name"] == ""  # the webhook's own, nobody's to remove
    wrong = yaml.safe_dump(manifest("other", canaryTraficPercent=3))
    refused = await off(kubectl, "apply", "-f", "-", stdin=wrong, check=False)
    assert 'unknown field "spec.predictor.canaryTraficPercent"' in refused.stderr


async def test_kubectl_watches_and_follows_logs(live: Any, manifest: Any) -> None:
    command = [str(c) for c in (live.kubectl.__globals__["KUBECTL"], f"--kubeconfig={live.cluster.kubeconfig}")]
    pipe = asyncio.subprocess.PIPE
    watching = await asyncio.create_subprocess_exec(*command, "get", "isvc", "-w", stdout=pipe)
    await off(live.kubectl, "apply", "-f", "-", stdin=yaml.safe_dump(manifest()))
    async with asyncio.timeout(LIMIT):
        while b" True " not in (line := await watching.stdout.readline()):
            assert line.split()[0] in (b"NAME", b"digits")
    watching.terminate()
    await watching.wait()
    pod = (await off(live.kubectl, "get", "pods", "-o", "name")).stdout.strip()
    following = await asyncio.create_subprocess_exec(*command, "logs", "-f", pod, stdout=pipe)
    async with asyncio.timeout(LIMIT):
        assert await following.stdout.readline() == f"log of {R1}\n".encode()
        (key,) = live.workloads.templates
        live.workloads.logs[key] = f"log of {R1}\nmore\n"
        assert await following.stdout.readline() == b"more\n"
    following.terminate()
    await following.wait()


async def test_strategic_patches_are_for_core_kinds_only(live: Any, manifest: Any) -> None:
    kubectl = live.kubectl
    config_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"a": "1", "b": "2"}}
    await off(kubectl, "apply", "-f", "-", stdin=yaml.safe_dump(config_map))
    await off(kubectl, "patch", "cm", "a", "-p", '{"data":{"a":null,"c":"3"}}')
    assert json.loads((await off(kubectl, "get", "cm", "a", "-o", "json")).stdout)["data"] == {"b": "2", "c": "3"}
    await off(kubectl, "apply", "-f", "-", stdin=yaml.safe_dump(manifest()))
    refused = await off(kubectl, "patch", "isvc", "digits", "--type=strategic", "-p", "{}", check=False)
    assert "application/merge-patch+json" in refused.stderr


async def test_a_failing_download_is_told_within_seconds(live: Any, api: Any, manifest: Any) -> None:
    custom = client.CustomObjectsApi(api)
    live.workloads.automatic = False
    await off(custom.create_namespaced_custom_object, body=manifest(), **ISVC)
    await until(live.workloads.running, lambda names: R1 in names)
    live.workloads.set(R1, Phase.DOWNLOAD_FAILED, "Failed to fetch model. No model found in versions/v1/.", 1)
    found = await until(
        lambda: custom.get_namespaced_custom_object(name="digits", **ISVC),
        lambda o: o.get("status", {}).get("modelStatus", {}).get("transitionStatus") == "BlockedByFailedLoad",
    )
    assert found["status"]["modelStatus"]["lastFailureInfo"]["exitCode"] == 1
    pods = (await off(live.kubectl, "get", "pods", "--no-headers")).stdout.split()
    assert pods[1:3] == ["0/1", "Init:Error"]


async def test_a_taken_port_says_what_to_do(live: Any, tmp_path: Any) -> None:
    other = Cluster(live.workloads, live.router, tmp_path / "other", live.cluster.port)
    with pytest.raises(PortTaken, match=rf"port {live.cluster.port} on {HOST} is taken .* choose another port"):
        await other.start()


async def test_the_progress_deadline_is_an_annotation_and_time_passes(live: Any, api: Any, manifest: Any) -> None:
    custom = client.CustomObjectsApi(api)
    live.workloads.automatic = False
    body = manifest(annotations={"serving.knative.dev/progress-deadline": "1s"})
    await off(custom.create_namespaced_custom_object, body=body, **ISVC)
    await until(live.workloads.running, lambda names: R1 in names)
    live.workloads.set(R1, Phase.STARTING)

    def told() -> Any:
        found = custom.get_namespaced_custom_object(name="digits", **ISVC)
        conditions = {c["type"]: c for c in found.get("status", {}).get("conditions", [])}
        return conditions.get("PredictorConfigurationReady", {})

    failed = await until(told, lambda c: c.get("status") == "False")
    assert failed["reason"] == "RevisionFailed"
    said = rf'Revision "{R1}" failed with message: ReplicaSet "{R1}-deployment-[0-9a-f]+" has timed out progressing\.\.'
    assert re.fullmatch(said, failed["message"])
    live.workloads.set(R1, Phase.READY)  # it is late, and it recovers
    await until(told, lambda c: c.get("status") == "True")
