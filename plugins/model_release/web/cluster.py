"""All InferenceServices and all leases of a namespace, with one request for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_release.cluster import inference_service, lease
from model_release.cluster.inference_service import InferenceService
from model_release.cluster.lease import Lease
from model_release.cluster.manifest import MANAGED_BY
from model_release.cluster.objects import Objects

if TYPE_CHECKING:
    from kubernetes.client import ApiClient


def services(api_client: ApiClient, namespace: str) -> dict[str, InferenceService]:
    """Every InferenceService of the namespace by name.

    Raises:
        ClusterUnavailable, ClusterRefused: as `Objects` does.
    """
    from model_release.cluster.standard.pods import Pods
    from model_release.cluster.standard.view import in_its_mode

    found = Objects(api_client, inference_service.KIND).list(namespace)
    routes, pods = Objects(api_client, inference_service.ROUTES), Pods(api_client)
    return {str(one["metadata"]["name"]): in_its_mode(one, routes, pods) for one in found}


def leases(api_client: ApiClient, namespace: str) -> dict[str, Lease]:
    """Every lease of ours in the namespace by the service's name. Raises as `services` does."""
    found = Objects(api_client, lease.KIND).list(namespace, "=".join(MANAGED_BY))
    return {one.service: one for one in map(Lease, found)}
