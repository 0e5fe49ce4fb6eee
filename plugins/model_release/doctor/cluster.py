"""The cluster: versions and mode, what we may call, the runtime, and the service as it is."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from model_release.errors import ClusterRefused, ClusterUnavailable
from model_release.spec import ModelSpec

from .finding import Finding, error, ok, warning

if TYPE_CHECKING:
    from model_release.cluster.inference_service import InferenceService

_TIMEOUTS = (3.0, 10.0)
# Whose behaviour this project was built on and is tested against (docs/facts.md#versions).
_PARTS = {
    "KServe": ("serving.kserve.io/v1beta1", ((0, 17), (0, 20)), "install KServe"),
    "Knative": (
        "serving.knative.dev/v1",
        ((1, 18), (1, 23)),
        "install Knative Serving: KServe splits the traffic by it",
    ),
}
# KServe splits by spec.canary, and programs its weights, from this one on.
_STANDARD = ((0, 21), (0, 21))
_ROLE = "model-release"
# What a service in this mode never needs, though the Role has it for those in the other one.
_OF_THE_OTHER_MODE = {"knative": "gateway.networking.k8s.io", "standard": "serving.knative.dev"}
_CONTROLLERS = {"KServe": ("kserve", "kserve-controller-manager"), "Knative": ("knative-serving", "controller")}


def versions(client: Any, spec: ModelSpec) -> Iterator[Finding]:
    """Whether Kubernetes, KServe and Knative are there, and whether their versions are known ones."""
    kubernetes = _get(client, "/version")
    yield ok("cluster", f"Kubernetes {kubernetes.get('gitVersion', 'of an unknown version')}")
    for name, (group, known, cure) in _PARTS.items():
        if spec.service.mode == "standard":
            if name == "Knative":
                continue
            known = _STANDARD
        if _find(client, f"/apis/{group}") is None:
            yield error(name, f"the cluster has no {group}", cure)
            continue
        yield _version(client, name, known)
        if name == "Knative":
            yield from _profile(client, spec)


def _version(client: Any, name: str, known: tuple[tuple[int, int], tuple[int, int]]) -> Finding:
    found = _controller(client, name)
    if found is None:
        namespace, deployment = _CONTROLLERS[name]
        return warning(
            name,
            "is there; its version cannot be read",
            f"may be read by whoever may get deployment {namespace}/{deployment}",
        )
    (low, high), told = known, ".".join(map(str, found))
    if low <= found <= high:
        return ok(name, told)
    span = f"{'.'.join(map(str, low))} to {'.'.join(map(str, high))}"
    return warning(
        name, f"{told} is not among the versions that were looked at", f"{span} were; try a release in a test namespace"
    )


def _profile(client: Any, spec: ModelSpec) -> Iterator[Finding]:
    """queue-proxy's metrics got other names in Knative 1.19."""
    found, profile = _controller(client, "Knative"), spec.judge.profile
    if found is None or not profile.startswith("knative"):
        return
    if (profile == "knative") != (found < (1, 19)):
        right = "knative" if found < (1, 19) else "knative-otel"
        told = ".".join(map(str, found))
        yield error("metrics", f"judge.profile {profile} does not fit Knative {told}", f"judge.profile: {right}")


def _controller(client: Any, name: str) -> tuple[int, int] | None:
    """(major, minor) of a controller, by its label or its image's tag; None where it cannot be read."""
    namespace, deployment = _CONTROLLERS[name]
    try:
        found = _find(client, f"/apis/apps/v1/namespaces/{namespace}/deployments/{deployment}")
    except ClusterRefused:
        return None
    if found is None:
        return None
    labels = found["metadata"].get("labels") or {}
    images = [str(one.get("image", "")) for one in found["spec"]["template"]["spec"]["containers"]]
    for text in (labels.get("app.kubernetes.io/version", ""), *images):
        if match := re.search(r"v?(\d+)\.(\d+)\.\d+", text):
            return int(match[1]), int(match[2])
    return None


def permissions(client: Any, spec: ModelSpec, role: Path) -> Iterator[Finding]:
    """Whether the account may do what the release's Role says it needs: one question for each verb."""
    from model_release.release.rights import may

    namespace, missing, asked = spec.service.namespace, list[str](), 0
    for document in yaml.safe_load_all(role.read_text(encoding="utf-8")):
        if (
            not document
            or document.get("kind") not in ("Role", "ClusterRole")
            or document["metadata"]["name"] != "model-release"
        ):
            continue
        for rule in document["rules"]:
            for group, resource, verb in _each(rule):
                if group == _OF_THE_OTHER_MODE[spec.service.mode]:
                    continue
                asked += 1
                with _talking("POST", "selfsubjectaccessreviews"):
                    allowed = may(client, namespace, group, resource, verb)
                if not allowed:
                    missing.append(f"{verb} {resource}{f'.{group}' if group else ''}")
    if missing:
        cure = f"kubectl apply -n {namespace} -f include/manifests/{role.name}, and bind it to this account"
        yield error("permissions", f"in namespace {namespace} this account may not: {', '.join(missing)}", cure)
    else:
        yield ok("permissions", f"all {asked} that {role.name} names, in namespace {namespace}")


def _each(rule: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for group in rule["apiGroups"]:
        for resource in rule["resources"]:
            for verb in rule["verbs"]:
                yield group, resource, verb


def guard(client: Any, spec: ModelSpec, patience: float = 6.0) -> Iterator[Finding]:
    """Whether a guard looks at the namespace: without one, a canary stays open when Airflow dies. One whose clock is
    another's is given so many seconds to be seen at work."""
    from model_release.cluster.leases import Leases
    from model_release.release.guard import Beats

    namespace, leases, beats = spec.service.namespace, Leases(client), Beats()
    lease, end = leases.guard(namespace), time.monotonic() + patience
    while not (runs := beats.alive(lease)) and lease is not None and time.monotonic() < end:
        time.sleep(0.5)
        lease = leases.guard(namespace)
    if runs:
        yield ok("guard", f"a guard looks at namespace {namespace}")
        return
    last = f", the last one until {lease.renewed}" if lease is not None else ""
    yield warning(
        "guard",
        f"no guard looks at namespace {namespace}{last}: a canary would stay open while Airflow is dead",
        "kubectl apply -f include/manifests/guard.yaml, or python -m model_release guard",
    )


def runtime(client: Any, spec: ModelSpec) -> Iterator[Finding]:
    """Whether the serving runtime that the model file names is there, in the namespace or for the whole cluster."""
    from model_release.build import runtimes

    name, namespace = spec.serving_runtime, spec.service.namespace
    api = "/apis/serving.kserve.io/v1alpha1"
    places = {
        f"ServingRuntime {namespace}/{name}": f"{api}/namespaces/{namespace}/servingruntimes/{name}",
        f"ClusterServingRuntime {name}": f"{api}/clusterservingruntimes/{name}",
    }
    hidden = False
    for what, path in places.items():
        try:
            if (found := _find(client, path)) is not None:
                yield ok("runtime", what)
                yield from _wrapped(what, found, spec)
                return
        except ClusterRefused:
            hidden = True
    apply = f"kubectl apply -n {namespace}"
    own = runtimes.get(spec.runtime)
    cure = f"{apply} -f {own.MANIFEST}, with your image, for service.runtime: model-release-{own.NAME}"
    if hidden:
        yield warning("runtime", f"this account may not see whether {name} exists", f"if it does not: {cure}")
    else:
        yield error("runtime", f"neither {' nor '.join(places)} exists", cure)


def _wrapped(what: str, runtime: dict[str, Any], spec: ModelSpec) -> Iterator[Finding]:
    """Where an image turns answers that are no success into 500, a picture that a client's fault made unreadable (400)
    reaches the gateway as the model's."""
    from model_release.build import runtimes

    images = [str(one.get("image", "")) for one in runtime["spec"].get("containers") or ()]
    by_code = [
        metric for metric in spec.judge.metrics if metric.of_requests and metric.above is None and not metric.observe
    ]
    counted = ", ".join(metric.name for metric in by_code if metric.codes in (None, "500", "5xx"))
    own = runtimes.get(spec.runtime)
    for wrapper in own.HIDE_STATUS:
        if counted and any(wrapper in image for image in images):
            yield error(
                "runtime",
                f"{what} has KServe's wrapper ({wrapper}), which turns a client's 400 into 500: unreadable pictures "
                f"count as failures in judge.metrics {counted}, on both sides",
                f"service.runtime: model-release-{own.NAME} ({own.MANIFEST}), whose front passes statuses on; or "
                f"observe: true for {counted}",
            )


def service(client: Any, spec: ModelSpec) -> tuple[InferenceService | None, list[Finding]]:
    """The live InferenceService, and whether a release of ours could be staged on it."""
    from model_release.cluster.leases import Leases
    from model_release.cluster.rollout import check_ours
    from model_release.cluster.services import InferenceServices

    key = spec.service.key
    findings: list[Finding] = []
    lease = Leases(client).read(spec.service.namespace, spec.service.name)
    if lease is not None and lease.frozen is not None:
        cure = f"python -m model_release thaw {key}, when it may be released again"
        findings.append(warning("service", f"{key} is frozen, no release begins: {lease.frozen}", cure))
    live = InferenceServices(client).get(spec.service.namespace, spec.service.name)
    if live is None:
        findings.append(ok("service", f"{key} does not exist yet: the next release is its first deployment"))
        return None, findings
    check_ours(live, spec.service.mode.capitalize())
    stable = live.stable_revision or "nothing yet"
    mode = live.deployment_mode or "a mode that KServe has not told"
    findings.append(ok("service", f"{key} runs in {mode}; {stable} is rolled out"))
    if live.rolled_out and live.tag_url("latest") is None and live.tag_url("prev") is None and live.is_split:
        cure = 'annotation serving.kserve.io/enable-tag-routing: "true"; a release of this project sets it'
        findings.append(
            error("tags", f"{key} splits without tag addresses: no revision could be asked for itself", cure)
        )
    return live, findings


def _find(client: Any, path: str) -> dict[str, Any] | None:
    """The object, or None where there is none."""
    from kubernetes.client import ApiException

    with _talking("GET", path):
        try:
            answer = client.call_api(
                path,
                "GET",
                header_params={"Accept": "application/json"},
                auth_settings=["BearerToken"],
                response_types_map={200: "object"},
                _return_http_data_only=True,
                _request_timeout=_TIMEOUTS,
            )
        except ApiException as refusal:
            if refusal.status == 404:
                return None
            raise
    return dict(answer)


def _get(client: Any, path: str) -> dict[str, Any]:
    found = _find(client, path)
    if found is None:
        raise ClusterRefused(f"the API has no {path}")
    return found


@contextmanager
def _talking(method: str, path: str) -> Iterator[None]:
    """What the client raises, as errors of ours."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as refusal:
        kind = ClusterRefused if refusal.status in (401, 403) else ClusterUnavailable
        raise kind(f"{method} {path}: {refusal.status} {refusal.reason}") from refusal
    except HTTPError as trouble:
        raise ClusterUnavailable(f"{method} {path}: {trouble}") from trouble
