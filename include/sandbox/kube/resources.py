"""The table of kinds that this server knows, with the columns that `kubectl get` shows for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sandbox.interfaces import Manifest

READ_VERBS = ("get", "list", "watch")
ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True)
class Column:
    name: str
    value: Callable[[Manifest], Any]
    type: str = "string"


@dataclass(frozen=True)
class Kind:
    """One kind of object: its names, and how this server treats it."""

    group: str
    version: str
    plural: str
    title: str
    short: tuple[str, ...] = ()
    namespaced: bool = True
    has_status: bool = False
    custom: bool = False  # from a CRD: no strategic merge, status cannot be set on create
    verbs: tuple[str, ...] = ALL_VERBS
    columns: tuple[Column, ...] = ()
    categories: tuple[str, ...] = field(default=())

    @property
    def id(self) -> str:
        """`inferenceservices.serving.kserve.io`, or only the plural for the core group."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def singular(self) -> str:
        return self.title.lower()

    @property
    def root(self) -> str:
        """The path below which this kind's group is served: `api/v1`, `apis/serving.kserve.io/v1beta1`."""
        return f"apis/{self.group}/{self.version}" if self.group else f"api/{self.version}"


def ready_condition(obj: Manifest, field_name: str = "status", type_: str = "Ready") -> Any:
    conditions = obj.get("status", {}).get("conditions", [])
    return next((c.get(field_name) for c in conditions if c["type"] == type_), None)


def _status(name: str) -> Callable[[Manifest], Any]:
    return lambda obj: obj.get("status", {}).get(name)


def _target(which: Callable[[Manifest], bool], name: str) -> Callable[[Manifest], Any]:
    def value(obj: Manifest) -> Any:
        traffic = obj.get("status", {}).get("components", {}).get("predictor", {}).get("traffic", [])
        return next((target.get(name) for target in traffic if which(target)), None)

    return value


def _is_prev(target: Manifest) -> bool:
    return bool(target.get("tag") == "prev")


def _is_latest(target: Manifest) -> bool:
    return target.get("latestRevision") is True


def _containers(obj: Manifest) -> list[Manifest]:
    return list(obj.get("status", {}).get("containerStatuses", []))


def _pod_state(obj: Manifest) -> str:
    """What the STATUS column of `kubectl get pods` says: the first trouble, else the phase."""
    status = obj.get("status", {})
    for prefix, listed in (("Init:", "initContainerStatuses"), ("", "containerStatuses")):
        for container in status.get(listed, []):
            state = container.get("state", {})
            terminated, waiting = state.get("terminated"), state.get("waiting")
            if terminated and terminated.get("exitCode"):
                return f"{prefix}{terminated['reason']}"
            if prefix and "running" in state:
                return "Init:0/1"
            if waiting and not prefix:
                return str(waiting["reason"])
    return str(status.get("phase", "Unknown"))


# The additionalPrinterColumns of KServe's CRD (v0.20.0), in their order.
ISVC_COLUMNS = (
    Column("URL", _status("url")),
    Column("Ready", ready_condition),
    Column("Prev", _target(_is_prev, "percent"), "integer"),
    Column("Latest", _target(_is_latest, "percent"), "integer"),
    Column("PrevRolledoutRevision", _target(_is_prev, "revisionName")),
    Column("LatestReadyRevision", _target(_is_latest, "revisionName")),
)
_READY = (Column("Ready", ready_condition), Column("Reason", lambda o: ready_condition(o, "reason")))
_KNATIVE = "serving.knative.dev"
_KSERVE = "serving.kserve.io"

NAMESPACES = Kind(
    "", "v1", "namespaces", "Namespace", ("ns",), namespaced=False, has_status=True,
    columns=(Column("Status", lambda o: o.get("status", {}).get("phase")),),
)  # fmt: skip
CONFIGMAPS = Kind(
    "", "v1", "configmaps", "ConfigMap", ("cm",),
    columns=(Column("Data", lambda o: len(o.get("data", {})), "integer"),),
)  # fmt: skip
SECRETS = Kind(
    "", "v1", "secrets", "Secret",
    columns=(
        Column("Type", lambda o: o.get("type", "Opaque")),
        Column("Data", lambda o: len(o.get("data", {})), "integer"),
    ),
)  # fmt: skip
SERVICE_ACCOUNTS = Kind("", "v1", "serviceaccounts", "ServiceAccount", ("sa",))
EVENTS = Kind(
    "", "v1", "events", "Event", ("ev",),
    columns=(
        Column("Type", lambda o: o.get("type")),
        Column("Reason", lambda o: o.get("reason")),
        Column("Object", lambda o: "{kind}/{name}".format(**o["involvedObject"]).lower()),
        Column("Message", lambda o: o.get("message")),
    ),
)  # fmt: skip
PODS = Kind(
    "", "v1", "pods", "Pod", ("po",), has_status=True, verbs=READ_VERBS, categories=("all",),
    columns=(
        Column("Ready", lambda o: f"{sum(c['ready'] for c in _containers(o))}/{len(o['spec']['containers'])}"),
        Column("Status", _pod_state),
        Column("Restarts", lambda o: sum(c.get("restartCount", 0) for c in _containers(o)), "integer"),
    ),
)  # fmt: skip
LEASES = Kind(
    "coordination.k8s.io", "v1", "leases", "Lease",
    columns=(Column("Holder", lambda o: o.get("spec", {}).get("holderIdentity")),),
)  # fmt: skip
ACCESS_REVIEWS = Kind(
    "authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview",
    namespaced=False, verbs=("create",),
)  # fmt: skip
# Kept and told, not acted upon: this cluster has no users, no network plugin and no Prometheus of its own.
_RBAC = "rbac.authorization.k8s.io"
ROLES = Kind(_RBAC, "v1", "roles", "Role")
ROLE_BINDINGS = Kind(_RBAC, "v1", "rolebindings", "RoleBinding")
CLUSTER_ROLES = Kind(_RBAC, "v1", "clusterroles", "ClusterRole", namespaced=False)
CLUSTER_ROLE_BINDINGS = Kind(_RBAC, "v1", "clusterrolebindings", "ClusterRoleBinding", namespaced=False)
NETWORK_POLICIES = Kind("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", ("netpol",))
POD_MONITORS = Kind("monitoring.coreos.com", "v1", "podmonitors", "PodMonitor", ("pmon",), custom=True)
CRDS = Kind(
    "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", ("crd", "crds"),
    namespaced=False, has_status=True, verbs=READ_VERBS,
)  # fmt: skip
INFERENCE_SERVICES = Kind(
    _KSERVE, "v1beta1", "inferenceservices", "InferenceService", ("isvc",),
    has_status=True, custom=True, columns=ISVC_COLUMNS,
)  # fmt: skip
CLUSTER_RUNTIMES = Kind(
    _KSERVE, "v1alpha1", "clusterservingruntimes", "ClusterServingRuntime", namespaced=False, custom=True
)
RUNTIMES = Kind(_KSERVE, "v1alpha1", "servingruntimes", "ServingRuntime", custom=True)
KSERVICES = Kind(
    _KNATIVE, "v1", "services", "Service", ("kservice", "ksvc"), has_status=True, custom=True, verbs=READ_VERBS,
    categories=("all", "knative", "serving"),
    columns=(
        Column("URL", _status("url")),
        Column("LatestCreated", _status("latestCreatedRevisionName")),
        Column("LatestReady", _status("latestReadyRevisionName")),
        *_READY,
    ),
)  # fmt: skip
CONFIGURATIONS = Kind(
    _KNATIVE, "v1", "configurations", "Configuration", ("config", "cfg"), has_status=True, custom=True,
    verbs=READ_VERBS, categories=("all", "knative", "serving"),
    columns=(
        Column("LatestCreated", _status("latestCreatedRevisionName")),
        Column("LatestReady", _status("latestReadyRevisionName")),
        *_READY,
    ),
)  # fmt: skip
ROUTES = Kind(
    _KNATIVE, "v1", "routes", "Route", ("rt",), has_status=True, custom=True, verbs=READ_VERBS,
    categories=("all", "knative", "serving"), columns=(Column("URL", _status("url")), *_READY),
)  # fmt: skip
# What an InferenceService in Standard mode becomes. Made by KServe's controller; read by everybody else.
DEPLOYMENTS = Kind(
    "apps", "v1", "deployments", "Deployment", ("deploy",), has_status=True, verbs=READ_VERBS, categories=("all",),
    columns=(
        Column("Ready", lambda o: f"{o.get('status', {}).get('readyReplicas', 0)}/{o['spec']['replicas']}"),
        Column("Available", lambda o: o.get("status", {}).get("availableReplicas", 0), "integer"),
    ),
)  # fmt: skip
CORE_SERVICES = Kind("", "v1", "services", "Service", ("svc",), verbs=READ_VERBS, categories=("all",))
HTTP_ROUTES = Kind(
    "gateway.networking.k8s.io", "v1", "httproutes", "HTTPRoute", has_status=True, custom=True, verbs=READ_VERBS,
    columns=(Column("Hostnames", lambda o: ", ".join(o["spec"]["hostnames"])),),
)  # fmt: skip
INGRESSES = Kind(
    "networking.internal.knative.dev", "v1alpha1", "ingresses", "Ingress", ("kingress", "king"), has_status=True,
    custom=True, verbs=READ_VERBS, categories=("knative-internal", "networking"), columns=_READY,
)  # fmt: skip
# Made by Knative's controller; deleted by whoever frees a route that a failed one holds.
REVISIONS = Kind(
    _KNATIVE, "v1", "revisions", "Revision", ("rev",), has_status=True, custom=True, verbs=(*READ_VERBS, "delete"),
    categories=("all", "knative", "serving"),
    columns=(
        Column("Config Name", lambda o: o["metadata"]["labels"]["serving.knative.dev/configuration"]),
        Column("Generation", lambda o: o["metadata"]["labels"]["serving.knative.dev/configurationGeneration"]),
        *_READY,
        Column("Actual Replicas", _status("actualReplicas"), "integer"),
        Column("Desired Replicas", _status("desiredReplicas"), "integer"),
    ),
)  # fmt: skip

KINDS = (
    NAMESPACES, CONFIGMAPS, SECRETS, SERVICE_ACCOUNTS, EVENTS, PODS, LEASES, ACCESS_REVIEWS, CRDS,
    ROLES, ROLE_BINDINGS, CLUSTER_ROLES, CLUSTER_ROLE_BINDINGS, NETWORK_POLICIES, POD_MONITORS,
    INFERENCE_SERVICES, CLUSTER_RUNTIMES, RUNTIMES, KSERVICES, CONFIGURATIONS, ROUTES, REVISIONS,
    INGRESSES,
    DEPLOYMENTS, CORE_SERVICES, HTTP_ROUTES,
)  # fmt: skip
BY_PATH = {(k.group, k.version, k.plural): k for k in KINDS}
BY_ID = {k.id: k for k in KINDS}
