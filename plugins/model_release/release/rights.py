"""What the guard may do, asked before it has to: one that learns in the moment of need that it may not is none."""

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
    from kubernetes.client import (
        AuthorizationV1Api,
        V1ResourceAttributes,
        V1SelfSubjectAccessReview,
        V1SelfSubjectAccessReviewSpec,
    )

    from model_release.cluster.objects import TIMEOUTS

    asked, found = AuthorizationV1Api(api_client), []
    for group, resource, verb in NEEDED:
        wanted = V1ResourceAttributes(namespace=namespace or "", group=group, resource=resource, verb=verb)
        review = V1SelfSubjectAccessReview(spec=V1SelfSubjectAccessReviewSpec(resource_attributes=wanted))
        if not asked.create_self_subject_access_review(review, _request_timeout=TIMEOUTS).status.allowed:
            found.append(f"{verb} {resource}.{group}")
    return found
