"""What an account may do, asked before it has to: a guard that learns in the moment of need that it may not is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

# (API group, resource, verb), as in include/manifests/guard.yaml.
NEEDED = (
    ("serving.kserve.io", "inferenceservices", "get"),
    ("serving.kserve.io", "inferenceservices", "patch"),
    ("serving.knative.dev", "revisions", "get"),
    ("serving.knative.dev", "revisions", "delete"),
    ("gateway.networking.k8s.io", "httproutes", "get"),
    ("coordination.k8s.io", "leases", "get"),
    ("coordination.k8s.io", "leases", "list"),
    ("coordination.k8s.io", "leases", "create"),
    ("coordination.k8s.io", "leases", "patch"),
)


def missing(api_client: ApiClient, namespace: str | None) -> list[str]:
    """`delete revisions.serving.knative.dev`, for each right that the account does not have in the namespace; None: in
    the whole cluster. Every account may ask this of itself.

    Raises:
        ApiException, HTTPError: nobody could tell.
    """
    return [
        f"{verb} {resource}.{group}"
        for group, resource, verb in NEEDED
        if not may(api_client, namespace, group, resource, verb)
    ]


def may(api_client: ApiClient, namespace: str | None, group: str, resource: str, verb: str) -> bool:
    """One question of `missing`; `resource` may name a subresource, as `pods/log`."""
    from kubernetes.client import (
        AuthorizationV1Api,
        V1ResourceAttributes,
        V1SelfSubjectAccessReview,
        V1SelfSubjectAccessReviewSpec,
    )

    from model_release.cluster.objects import TIMEOUTS

    plural, _, part = resource.partition("/")
    wanted = V1ResourceAttributes(
        namespace=namespace or "", group=group, resource=plural, subresource=part or None, verb=verb
    )
    review = V1SelfSubjectAccessReview(spec=V1SelfSubjectAccessReviewSpec(resource_attributes=wanted))
    answer = AuthorizationV1Api(api_client).create_self_subject_access_review(review, _request_timeout=TIMEOUTS)
    return bool(answer.status.allowed)
