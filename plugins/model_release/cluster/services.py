"""The InferenceServices of a cluster: reads and writes them, each seen in the words of its mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from model_release.cluster.inference_service import InferenceService
from model_release.cluster.objects import CustomObjects, Kind, WriteConflict, retrying
from model_release.cluster.standard.pods import Pods
from model_release.cluster.standard.view import in_its_mode

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

KIND = Kind("serving.kserve.io", "v1beta1", "inferenceservices", "KServe")
ROUTES = Kind("gateway.networking.k8s.io", "v1", "httproutes", "the Gateway API")
REVISIONS = Kind("serving.knative.dev", "v1", "revisions", "Knative Serving")


class InferenceServices:
    """The InferenceServices of a cluster.

    Args:
        api_client: from the provider's `KubernetesHook`; may be shared by threads.
        ask_pods: whether the pods of a canary in Standard mode that is not ready may be asked why.
    """

    def __init__(self, api_client: ApiClient, *, ask_pods: bool = True) -> None:
        self._api_client, self._ask_pods = api_client, ask_pods
        self._objects, self._routes = CustomObjects(api_client, KIND), CustomObjects(api_client, ROUTES)
        self._revisions = CustomObjects(api_client, REVISIONS)

    def get(self, namespace: str, name: str) -> InferenceService | None:
        """As it is now; None when there is none.

        Raises:
            ClusterUnavailable: unreachable, timed out, 429, 5xx.
            ClusterRefused: 401, 403, KServe not installed.
        """
        found = self._objects.get(namespace, name)
        return None if found is None else self._seen(found)

    def within(self, namespace: str) -> dict[str, InferenceService]:
        """Every one of the namespace by name, from one request (Standard mode: and what each one's routes and pods
        say). Errors: see `get`."""
        return {str(one["metadata"]["name"]): self._seen(one) for one in self._objects.list(namespace)}

    def create(self, manifest: dict[str, Any], *, dry_run: bool = False) -> InferenceService:
        """Create it. `WriteConflict` when it is there already; `ClusterRefused` with KServe's own message.

        With `dry_run` nothing is stored, and what would be is returned.
        """
        created = self._objects.create(manifest["metadata"]["namespace"], manifest, dry_run=dry_run)
        return InferenceService(created) if dry_run else self._seen(created)

    def patch(self, live: InferenceService, patch: dict[str, Any], *, dry_run: bool = False) -> InferenceService:
        """JSON merge patch, only onto what was read. `WriteConflict` when it has changed since. `dry_run` as above."""
        patched = self._objects.patch(live.raw, patch, dry_run=dry_run)
        return InferenceService(patched) if dry_run else self._seen(patched)

    def delete(self, live: InferenceService) -> None:
        """Delete the one that was read; one made anew under the same name stays (`WriteConflict`)."""
        self._objects.delete(live.raw)

    def revision(self, namespace: str, name: str) -> dict[str, Any] | None:
        """Knative's Revision of that name, as the API gives it; None when there is none. Errors: see `get`."""
        return self._revisions.get(namespace, name)

    def delete_revision(self, revision: dict[str, Any]) -> None:
        """Delete the one that was read, as it was: one made anew, or healed since, stays (`WriteConflict`)."""
        self._revisions.delete(revision, unchanged=True)

    def change(
        self, namespace: str, name: str, decide: Callable[[InferenceService], dict[str, Any] | None]
    ) -> InferenceService:
        """Read, let `decide` say what is left to do as a merge patch, write that; None is "nothing", and no write.

        After a conflict or an ambiguous error it reads and decides anew, a few times. What `decide` raises is final.

        Raises:
            WriteConflict: there is no such InferenceService (any more), or it kept changing.
        """

        def attempt() -> InferenceService:
            live = self.get(namespace, name)
            if live is None:
                raise WriteConflict(f"InferenceService {namespace}/{name} is not there any more")
            patch = decide(live)
            return live if patch is None else self.patch(live, patch)

        return retrying(attempt)

    def _seen(self, raw: dict[str, Any]) -> InferenceService:
        """The view of its mode. Where the traffic of a service in Standard mode goes, only its HTTPRoutes say."""
        return in_its_mode(raw, self._routes, Pods(self._api_client) if self._ask_pods else None)
