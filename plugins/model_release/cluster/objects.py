"""Calls to the Kubernetes API for one kind of object, with timeouts, and with its errors told in our words.

An object is the dict that the API gives. What can go wrong has three answers: it passes by itself
(`ClusterUnavailable`), somebody wrote at the same moment (`WriteConflict`, which is one of those), or the API
means it (`ClusterRefused`).
"""

from __future__ import annotations

import builtins
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from model_release.errors import ClusterRefused, ClusterUnavailable

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

T = TypeVar("T")

FIELD_MANAGER = "model-release"

# Seconds to connect and to read. One call never holds a worker or the triggerer's thread for longer.
TIMEOUTS = (3.0, 10.0)

# KServe's controller writes status at any moment, and each of its writes outdates a resourceVersion just read.
WRITE_ATTEMPTS = 6


class WriteConflict(ClusterUnavailable):
    """The object changed, appeared or went between our read and our write. Read again and decide anew."""


@dataclass(frozen=True)
class Kind:
    """A kind of object in the API."""

    group: str
    version: str
    plural: str
    owner: str  # who installs it, for the sentence when it is missing

    @property
    def full_name(self) -> str:
        return f"{self.plural}.{self.group}"


class CustomObjects:
    """Custom objects of one kind. Every call is short, and makes at most one change."""

    def __init__(self, api_client: ApiClient, kind: Kind) -> None:
        from kubernetes.client import CustomObjectsApi

        if api_client.configuration.retries is None:
            api_client.rest_client.pool_manager.connection_pool_kw["retries"] = _retries()
        self._api = CustomObjectsApi(api_client)
        self._kind = kind
        self._address = {"group": kind.group, "version": kind.version, "plural": kind.plural}

    def get(self, namespace: str, name: str) -> dict[str, Any] | None:
        """The object as it is now, or None when there is none of that name.

        Raises:
            ClusterRefused: also when the kind itself is missing; "no such object" and "no such kind" are both a 404.
            ClusterUnavailable: the API does not answer now.
        """
        return self._call(
            "get",
            namespace,
            name,
            lambda: self._api.get_namespaced_custom_object(
                namespace=namespace, name=name, _request_timeout=TIMEOUTS, **self._address
            ),
        )

    def list(self, namespace: str | None, labels: str = "") -> builtins.list[dict[str, Any]]:
        """The objects, those with these labels (`key=value`) alone, in one namespace or (None) in all of them.

        Raises:
            ClusterRefused: also when the namespace, or all of them, may not be listed.
        """
        more = {"label_selector": labels, "_request_timeout": TIMEOUTS, **self._address}
        found = self._call(
            "list",
            namespace or "(all)",
            "",
            lambda: (
                self._api.list_cluster_custom_object(**more)
                if namespace is None
                else self._api.list_namespaced_custom_object(namespace=namespace, **more)
            ),
        )
        return builtins.list((found or {}).get("items") or [])

    def create(self, namespace: str, body: dict[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
        """Create it. `WriteConflict` when one of that name is there already. With `dry_run` nothing is stored."""
        name = body["metadata"]["name"]
        created = self._call(
            "create",
            namespace,
            name,
            lambda: self._api.create_namespaced_custom_object(
                namespace=namespace,
                body=body,
                field_manager=FIELD_MANAGER,
                _request_timeout=TIMEOUTS,
                **_dry(dry_run),
                **self._address,
            ),
        )
        if created is None:
            raise ClusterRefused(
                f"namespace {namespace} does not exist; create it, or name another in service.namespace"
            )
        return created

    def patch(self, live: dict[str, Any], patch: dict[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
        """JSON merge patch of `live`, only if it is still as read (resourceVersion); else `WriteConflict`. With
        `dry_run` nothing is stored."""
        metadata = live["metadata"]
        body = {
            **patch,
            "metadata": {**patch.get("metadata", {}), "resourceVersion": metadata["resourceVersion"]},
        }
        patched = self._call(
            "patch",
            metadata["namespace"],
            metadata["name"],
            lambda: self._api.patch_namespaced_custom_object(
                namespace=metadata["namespace"],
                name=metadata["name"],
                body=body,
                field_manager=FIELD_MANAGER,
                _content_type="application/merge-patch+json",
                _request_timeout=TIMEOUTS,
                **_dry(dry_run),
                **self._address,
            ),
        )
        if patched is None:
            raise WriteConflict(f"{self._kind.plural} {metadata['namespace']}/{metadata['name']} was deleted meanwhile")
        return patched

    def delete(self, live: dict[str, Any], *, unchanged: bool = False) -> None:
        """Delete it, only if it is the one that was read (uid) or, `unchanged`, only if it is still as it was read
        (resourceVersion, too); else `WriteConflict`. Gone already is done."""
        from kubernetes.client import V1DeleteOptions, V1Preconditions

        metadata = live["metadata"]
        version = metadata["resourceVersion"] if unchanged else None
        only = V1Preconditions(uid=metadata["uid"], resource_version=version)
        self._call(
            "delete",
            metadata["namespace"],
            metadata["name"],
            lambda: self._api.delete_namespaced_custom_object(
                namespace=metadata["namespace"],
                name=metadata["name"],
                body=V1DeleteOptions(preconditions=only),
                _request_timeout=TIMEOUTS,
                **self._address,
            ),
        )

    def _call(self, verb: str, namespace: str, name: str, call: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """The call's answer, None for a 404 of the object, else one of our errors."""
        import urllib3
        from kubernetes.client.exceptions import ApiException

        what = f"{verb} {self._kind.plural} {namespace}/{name}"
        try:
            return call()
        except ApiException as error:
            if error.status == 404 and self._object_is_missing(error):
                return None
            raise self._told(what, verb, namespace, error) from error
        except urllib3.exceptions.HTTPError as error:
            if isinstance(getattr(error, "reason", None), urllib3.exceptions.SSLError):
                raise ClusterRefused(f"{what}: the API server's certificate is not trusted: {error}") from error
            raise ClusterUnavailable(f"{what}: the Kubernetes API does not answer: {error}") from error

    def _object_is_missing(self, error: Any) -> bool:
        # Only a 404 of an object (or of its namespace) names something in `details`; for a kind that is not
        # installed the API server answers in plain text, or with a Status without a name.
        return bool((_status(error).get("details") or {}).get("name"))

    def _told(self, what: str, verb: str, namespace: str, error: Any) -> ClusterRefused | ClusterUnavailable:
        status = _status(error)
        said = str(status.get("message") or error.reason or error.body or "no reason given").strip()
        code = error.status
        if code == 0:
            return ClusterRefused(f"{what}: no connection to the API server: {said}")
        if code == 401:
            return ClusterRefused(f"{what}: the API server does not accept the credentials of the connection: {said}")
        if code == 403 and f"cannot {verb} resource" in said:
            return ClusterRefused(
                f"{what}: forbidden; needs verb {verb} on {self._kind.full_name} in namespace {namespace} "
                f"(include/manifests/role.yaml has it); the API server said: {said}"
            )
        if code == 404:
            return ClusterRefused(
                f"{what}: {self._kind.owner} is not installed in this cluster: the API server does not know "
                f"{self._kind.full_name}/{self._kind.version}"
            )
        if code == 409:
            return WriteConflict(f"{what}: {said}")
        if code == 429 or code >= 500:
            return ClusterUnavailable(f"{what}: the API server answered {code}: {said}")
        # Webhooks deny with 403, too; their own words say what is wrong.
        return ClusterRefused(f"{what}: refused with {code}: {said}")


def _retries() -> Any:
    """urllib3's own repetitions, without those that wait: a read that timed out would be tried three times more."""
    from urllib3 import Retry
    from urllib3.exceptions import ReadTimeoutError

    class Retries(Retry):
        def increment(self, *given: Any, **named: Any) -> Any:
            if isinstance(error := named.get("error"), ReadTimeoutError):
                raise error
            return super().increment(*given, **named)

    return Retries(3)


def retrying(attempt: Callable[[], T], passing: type[ClusterUnavailable] = ClusterUnavailable) -> T:
    """Run `attempt` until it is not cut off by a passing trouble; six times at most, within a few seconds.

    `attempt` must begin by reading: after a conflict, a timeout or a 500 nobody knows whether the write was done.
    `passing`: what is tried again; whoever looks every few seconds anyway waits for nothing else than a conflict.
    """
    for number in range(1, WRITE_ATTEMPTS):
        try:
            return attempt()
        except passing:
            time.sleep(min(0.1 * 2**number, 1.0) * random.uniform(0.5, 1.0))  # noqa: S311 -- spreads writers, no secret
    return attempt()


def _dry(dry_run: bool) -> dict[str, str]:
    return {"dry_run": "All"} if dry_run else {}


def _status(error: Any) -> dict[str, Any]:
    try:
        status = json.loads(error.body)
    except (TypeError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}
