"""A route that a failed revision holds: no share acts until it heals, or until it is deleted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from sandbox.interfaces import Phase
from sandbox.kube.conditions import find
from sandbox.kube.resources import REVISIONS

R1, R2, R3 = (f"digits-predictor-0000{n}" for n in (1, 2, 3))
HOST = "digits.models.localhost"
KNATIVE = {"group": "serving.knative.dev", "version": "v1", "namespace": "models", "plural": "revisions"}


async def canary_open(stack: Any, manifest: Any) -> None:
    """r2 at 30, r1 at 70."""
    await stack.apply(manifest(version="v1"))
    await stack.become(R1)
    await stack.apply(manifest(version="v2", percent=30))
    await stack.become(R2)
    assert stack.router.routes[HOST] == {R1: 70, R2: 30}


def ready(stack: Any) -> tuple[str, str]:
    found = find(stack.isvc()["status"], "PredictorReady")
    return found["status"], found.get("message", "")


@pytest.mark.parametrize(("dead", "percent"), [(R2, 0), (R2, 60), (R1, 0), (R1, 60)])
async def test_no_share_acts_while_a_named_revision_is_dead(stack: Any, manifest: Any, dead: str, percent: int) -> None:
    await canary_open(stack, manifest)
    await stack.become(dead, Phase.CRASHED, "boom", 1)
    await stack.percent(percent)
    assert stack.router.routes[HOST] == stack.effective() == {R1: 70, R2: 30}
    assert ready(stack) == ("False", f'Revision "{dead}" failed to become ready.')
    await stack.become(dead)
    assert stack.router.routes[HOST] == ({R1: 40, R2: 60} if percent else {R1: 100})
    assert ready(stack)[0] == "True"


async def test_a_dead_canary_keeps_its_share_until_what_replaces_it_is_ready(stack: Any, manifest: Any) -> None:
    await canary_open(stack, manifest)
    await stack.become(R2, Phase.CRASHED, "boom", 1)
    await stack.apply(manifest(version="v1", percent=0))
    assert stack.router.routes[HOST] == {R1: 70, R2: 30}
    await stack.become(R3)
    assert stack.router.routes[HOST] == {R1: 100}


async def test_a_promotion_acts_while_stable_is_dead(stack: Any, manifest: Any) -> None:
    await canary_open(stack, manifest)
    await stack.become(R1, Phase.CRASHED, "boom", 1)
    await stack.percent(None)
    assert stack.router.routes[HOST] == {R2: 100}


@pytest.mark.parametrize("promoted_before", [False, True])
async def test_deleting_the_failed_canary_frees_the_route(stack: Any, manifest: Any, promoted_before: bool) -> None:
    """Also where an earlier promotion has left a previous revision, to which KServe could fall back by mistake."""
    await canary_open(stack, manifest)
    stable, canary = R1, R2
    if promoted_before:
        await stack.percent(None)
        await stack.apply(manifest(version="v3", percent=30))
        await stack.become(R3)
        stable, canary = R2, R3
    await stack.become(canary, Phase.CRASHED, "boom", 1)
    await stack.percent(0)
    before = stack.object(REVISIONS, canary)["metadata"]["uid"]
    seen = len(stack.router.history)
    stack.registry.delete(REVISIONS, "models", canary)
    await stack.settle()
    assert stack.router.routes[HOST] == {stable: 100}
    assert stack.router.history[seen:]
    assert all(canary not in routes[HOST] for routes in stack.router.history[seen:])
    anew = stack.object(REVISIONS, canary)
    assert anew["metadata"]["uid"] != before, "Knative makes the revision of the newest template again"
    assert find(anew["status"], "Ready")["status"] == "Unknown"
    told = stack.predictor()
    assert (told["latestCreatedRevision"], told["latestReadyRevision"]) == (canary, stable)
    assert told["latestRolledoutRevision"] == stable
    await stack.become(canary)
    assert stack.effective() == {stable: 100, canary: 0}
    await stack.become(canary, Phase.CRASHED, "boom again", 1)
    assert stack.router.routes[HOST] == {stable: 100}


async def test_deleting_without_0_percent_leaves_the_share_written(stack: Any, manifest: Any) -> None:
    """The stable revision has everything while the canary is made anew, and then the canary has its share again."""
    await canary_open(stack, manifest)
    await stack.become(R2, Phase.CRASHED, "boom", 1)
    stack.registry.delete(REVISIONS, "models", R2)
    await stack.settle()
    assert stack.router.routes[HOST] == {R1: 100}
    await stack.become(R2)
    assert stack.router.routes[HOST] == {R1: 70, R2: 30}


async def test_revisions_are_read_and_deleted_through_the_api(live: Any, manifest: Any) -> None:
    def work() -> None:
        with config.new_client_from_config(str(live.cluster.kubeconfig)) as made:
            objects, rights = client.CustomObjectsApi(made), client.AuthorizationV1Api(made)
            attributes = client.V1ResourceAttributes(
                verb="delete", group="serving.knative.dev", resource="revisions", namespace="models"
            )
            spec = client.V1SelfSubjectAccessReviewSpec(resource_attributes=attributes)
            review = rights.create_self_subject_access_review(client.V1SelfSubjectAccessReview(spec=spec))
            assert review.status.allowed
            (found,) = objects.list_namespaced_custom_object(
                **KNATIVE, label_selector="serving.knative.dev/configuration=digits-predictor"
            )["items"]
            assert objects.get_namespaced_custom_object(**KNATIVE, name=R1) == found
            other = client.V1DeleteOptions(preconditions=client.V1Preconditions(uid="another"))
            with pytest.raises(ApiException) as refused:
                objects.delete_namespaced_custom_object(**KNATIVE, name=R1, body=other)
            assert refused.value.status == 409
            uid = client.V1Preconditions(uid=found["metadata"]["uid"])
            done = objects.delete_namespaced_custom_object(
                **KNATIVE, name=R1, body=client.V1DeleteOptions(preconditions=uid)
            )
            assert done["status"] == "Success"

    await asyncio.to_thread(live.kubectl, "apply", "-f", "-", stdin=yaml.safe_dump(manifest()))
    await asyncio.to_thread(live.kubectl, "wait", "--for=condition=Ready", "isvc/digits", "--timeout=600s")
    await asyncio.to_thread(work)
