"""Every manifest against the schema of its kind: Kubernetes' own (kubernetes-validate), KServe's CRD as the sandbox has
it, and, for kinds of which no package ships one, what is used of them."""

from __future__ import annotations

import copy
import gzip
import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator

from sandbox.kube import admission, schema
from sandbox.kube.resources import INFERENCE_SERVICES

PROJECT = Path(__file__).parents[2]
MANIFESTS = PROJECT / "include" / "manifests"
CLUSTER = PROJECT / "include" / "cluster"
KUBERNETES = "1.34"

_RELABELING = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "sourceLabels": {"type": "array", "items": {"type": "string", "pattern": "^[a-zA-Z_][a-zA-Z0-9_]*$"}},
        "targetLabel": {"type": "string"},
        "regex": {"type": "string"},
        "replacement": {"type": "string"},
        "action": {"enum": ["replace", "keep", "drop", "labeldrop"]},
    },
}
# Of prometheus-operator v0.93's CRD: the fields that are used here. All that was written was once held against the
# whole of it; this keeps a later typing error out.
POD_MONITOR = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "monitoring.coreos.com/v1"},
        "kind": {"const": "PodMonitor"},
        "metadata": {"type": "object"},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["selector", "podMetricsEndpoints"],
            "properties": {
                "selector": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "matchLabels": {"type": "object"},
                        "matchExpressions": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "additionalProperties": False,
                                "required": ["key", "operator"],
                                "properties": {
                                    "key": {"type": "string"},
                                    "operator": {"enum": ["In", "NotIn", "Exists", "DoesNotExist"]},
                                    "values": {"type": "array", "items": {"type": "string"}},
                                },
                            },
                        },
                    },
                },
                "namespaceSelector": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"matchNames": {"type": "array", "items": {"type": "string"}}},
                },
                "podMetricsEndpoints": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["port"],
                        "properties": {
                            "port": {"type": "string"},
                            "path": {"type": "string"},
                            "interval": {"type": "string", "pattern": r"^\d+(ms|s|m)$"},
                            "scrapeTimeout": {"type": "string", "pattern": r"^\d+(ms|s|m)$"},
                            "relabelings": {"type": "array", "items": _RELABELING},
                            "metricRelabelings": {"type": "array", "items": _RELABELING},
                        },
                    },
                },
            },
        },
    },
}
# Of KServe v0.20.0's CRD, below the spec: the containers are Kubernetes' own, and checked as a Pod.
RUNTIME_SPEC = {"annotations", "supportedModelFormats", "protocolVersions", "containers", "volumes"}


def documents(folder: Path) -> list[Any]:
    return [
        pytest.param(document, id=f"{file.name}:{document['kind']}/{document['metadata'].get('name', '')}")
        for file in sorted(folder.glob("*.yaml"))
        if file.name != "kustomization.yaml"
        for document in yaml.safe_load_all(file.read_text())
    ]


def complaints(document: dict[str, Any]) -> list[str]:
    """What the schema of the document's kind has to say."""
    kind = document["kind"]
    if kind == "InferenceService":
        named = {**document, "metadata": {**document["metadata"], "name": "digits", "namespace": "models"}}
        _, findings = schema.prune(admission.default(named), schema.inference_service())
        return [*findings.unknown, *(f"{path}: {text}" for path, text in findings.problems)]
    if kind == "PodMonitor":
        return [error.message for error in Draft202012Validator(POD_MONITOR).iter_errors(document)]
    if kind == "ServingRuntime":
        unknown = sorted(set(document["spec"]) - RUNTIME_SPEC)
        pod = {
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "runtime"},
            "spec": {part: document["spec"][part] for part in ("containers", "volumes") if part in document["spec"]},
        }  # fmt: skip
        return [*unknown, *complaints(pod)]
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [str(error.message)]
    return []


@pytest.mark.parametrize("document", documents(MANIFESTS))
def test_a_manifest_has_nothing_that_its_kind_does_not_know(document: dict[str, Any]) -> None:
    assert complaints(document) == []


def test_the_project_has_every_kind_that_a_cluster_is_given() -> None:
    kinds = {parameter.values[0]["kind"] for parameter in documents(MANIFESTS)}
    assert kinds == {
        "Namespace", "InferenceService", "ServingRuntime", "ServiceAccount", "Secret", "NetworkPolicy", "Role",
        "RoleBinding", "ClusterRole", "ClusterRoleBinding", "PodMonitor", "ConfigMap", "Deployment", "Service",
    }  # fmt: skip


WRONG = [
    ("service_account.yaml", ("automountServiceAccountToken",), "yes"),
    ("network_policy.yaml", ("spec", "policyType"), ["Ingress"]),
    ("role.yaml", ("rules", 0, "verb"), ["get"]),
    ("pod_monitor.yaml", ("spec", "podMetricsEndpoints", 0, "relabeling"), []),
    ("serving_runtime.yaml", ("spec", "containers", 0, "resource"), {}),
    ("serving_runtime.yaml", ("spec", "container"), []),
    ("inference_service.yaml", ("spec", "predictor", "model", "storageURI"), "s3://models/"),
    ("config_observability.yaml", ("data", "metrics-protocol"), 1),
]


@pytest.mark.parametrize(("file", "where", "value"), WRONG, ids=lambda value: str(value)[:40])
def test_a_typing_error_would_be_found(file: str, where: tuple[Any, ...], value: Any) -> None:
    document = copy.deepcopy(next(iter(yaml.safe_load_all((MANIFESTS / file).read_text()))))
    assert complaints(document) == []
    *path, last = where
    place = document
    for step in path:
        place = place[step]
    place[last] = value
    assert complaints(document) != []


def test_the_sandboxes_schema_of_inference_services_is_the_crds() -> None:
    """Cut from KServe's CRD (tests/data): everything in it is there, with the same type."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with gzip.open(PROJECT / "tests" / "data" / "inferenceservice-crd.yaml.gz") as crd:
        whole = yaml.load(crd, loader)["spec"]
    assert (whole["group"], whole["names"]["kind"]) == (INFERENCE_SERVICES.group, INFERENCE_SERVICES.title)
    (version,) = [one for one in whole["versions"] if one["name"] == INFERENCE_SERVICES.version]
    compared = _compare(schema.inference_service(), version["schema"]["openAPIV3Schema"], "")
    assert compared > 50


def _compare(cut: dict[str, Any], whole: dict[str, Any], path: str) -> int:
    """Asserts that the cut says nothing else; returns how many fields were compared."""
    if "type" in cut and path not in (".metadata",):
        assert cut["type"] == whole.get("type"), path
    count = 1
    for name, below in cut.get("properties", {}).items():
        if f"{path}.{name}" in (".metadata",):
            continue
        assert name in whole.get("properties", {}), f"{path}.{name} is not in the CRD"
        count += _compare(below, whole["properties"][name], f"{path}.{name}")
    return count


# What stands in include/cluster/ is for tools whose schemas no package ships; what can be held here is that it says the
# same thing in every place.


def load(path: Path) -> Any:
    return list(yaml.safe_load_all(path.read_text()))


def test_every_cluster_file_is_yaml_of_the_kind_it_says() -> None:
    kinds = {file.name: [document["kind"] for document in load(file)] for file in sorted(CLUSTER.glob("*.yaml"))}
    assert kinds == {
        "cluster.yaml": ["ClusterConfig"],
        "knative-serving-kourier.yaml": ["Namespace", "KnativeServing"],
        "knative-serving.yaml": ["Namespace", "KnativeServing"],
        "pod-identity.yaml": ["ClusterConfig"],
    }
    for file in (CLUSTER / "values").glob("*.yaml"):
        assert isinstance(load(file)[0], dict), file


def test_irsa_and_pod_identity_give_the_same_accounts_the_same_rights() -> None:
    (irsa,), (identity,) = load(CLUSTER / "cluster.yaml"), load(CLUSTER / "pod-identity.yaml")
    by_oidc = {
        (one["metadata"]["namespace"], one["metadata"]["name"]): (one["roleName"], one["attachPolicy"])
        for one in irsa["iam"]["serviceAccounts"]
        if "attachPolicy" in one
    }
    by_agent = {
        (one["namespace"], one["serviceAccountName"]): (one["roleName"], one["permissionPolicy"])
        for one in identity["iam"]["podIdentityAssociations"]
    }
    assert by_oidc == by_agent
    assert irsa["metadata"]["name"] == identity["metadata"]["name"]
    # The account that names the role, and the role that is made for it.
    (account,) = load(MANIFESTS / "service_account.yaml")
    role = account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"].rsplit("/", 1)[1]
    assert by_oidc["models", account["metadata"]["name"]][0] == role
    for _, policy in by_oidc.values():
        for statement in policy["Statement"]:
            assert "*" not in "".join(statement["Action"]), "no action by wildcard"


def test_17_18_who_needs_a_part_of_the_store_has_no_more_of_it() -> None:
    """Number 18: by prefix, as docs/security.md says."""
    (irsa,) = load(CLUSTER / "cluster.yaml")
    bucket = "arn:aws:s3:::MODELS_BUCKET"
    found: dict[str, set[tuple[str, str]]] = {}
    for one in irsa["iam"]["serviceAccounts"]:
        for statement in one.get("attachPolicy", {}).get("Statement", ()):
            places = statement["Resource"] if isinstance(statement["Resource"], list) else [statement["Resource"]]
            given = {(action.removeprefix("s3:"), place) for action in statement["Action"] for place in places}
            found.setdefault(one["metadata"]["name"], set()).update(given)
    everywhere, versions, releases = f"{bucket}/*", f"{bucket}/*/versions/*", f"{bucket}/*/releases/*"
    listing = ("ListBucket", bucket)
    page = {listing, ("GetObject", versions), ("GetObject", releases)}
    assert found == {
        "s3-read-only": {listing, ("GetObject", versions)},
        "airflow-worker": {listing, *((f"{verb}Object", everywhere) for verb in ("Get", "Put", "Delete"))},
        "airflow-triggerer": {*page, ("GetObject", f"{bucket}/*/candidates/*"), ("PutObject", releases)},
        "airflow-api-server": page,
    }


def test_knatives_metrics_are_on_in_every_way_of_installing_it() -> None:
    (by_file,) = load(MANIFESTS / "config_observability.yaml")
    for name in ("knative-serving.yaml", "knative-serving-kourier.yaml"):
        config = load(CLUSTER / name)[1]["spec"]["config"]["observability"]
        assert config["request-metrics-protocol"] == "prometheus"
        assert config.items() <= by_file["data"].items()


def test_kouriers_gateway_is_looked_for_where_the_operator_puts_it() -> None:
    """In the namespace of its KnativeServing; its YAML files make one of their own."""
    (monitor,) = [one for one in load(MANIFESTS / "pod_monitor_gateways.yaml") if "kourier" in one["metadata"]["name"]]
    (serving,) = [one for one in load(CLUSTER / "knative-serving-kourier.yaml") if one["kind"] == "KnativeServing"]
    home = serving["metadata"]["namespace"]
    assert monitor["metadata"]["namespace"] == home, "a namespace that is there"
    assert set(monitor["spec"]["namespaceSelector"]["matchNames"]) == {home, "kourier-system"}


def test_nobody_but_queue_proxy_can_be_asked_for_predictions() -> None:
    """TorchServe's inference and management port is open to nobody, and no policy lets all in."""
    deny, revisions, builds = load(MANIFESTS / "network_policy.yaml")
    assert deny["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for rule in revisions["spec"]["ingress"]:
        assert rule["from"], "a rule without `from` is for everybody"
        assert not {8080, 8081, 8085, 7070, 7071} & {port["port"] for port in rule["ports"]}
    metadata_service = "169.254.169.254/32"
    assert "ingress" not in builds["spec"]
    outward = [*revisions["spec"]["egress"], *builds["spec"]["egress"]]
    wide = [to["ipBlock"] for rule in outward for to in rule["to"] if "ipBlock" in to]
    everywhere = [block for block in wide if block["cidr"] == "0.0.0.0/0"]
    assert everywhere
    assert [block for block in everywhere if metadata_service not in block.get("except", ())] == []


def test_pods_of_models_have_no_token_of_the_cluster() -> None:
    for name in ("service_account.yaml", "service_account_pod_identity.yaml", "service_account_secret.yaml"):
        accounts = [one for one in load(MANIFESTS / name) if one["kind"] == "ServiceAccount"]
        assert [one["automountServiceAccountToken"] for one in accounts] == [False]
        assert [one["metadata"]["name"] for one in accounts] == ["s3-read-only"], "model files name it"


def test_the_collector_has_no_token_and_hears_pods_of_models_alone() -> None:
    found = {(one["kind"], one["metadata"]["name"]): one for one in load(MANIFESTS / "collector.yaml")}
    name = "model-release-collector"
    pod = found["Deployment", name]["spec"]["template"]
    assert found["ServiceAccount", name]["automountServiceAccountToken"] is False
    assert pod["spec"]["automountServiceAccountToken"] is False
    ours = {"matchExpressions": [{"key": "serving.kserve.io/inferenceservice", "operator": "Exists"}]}
    policy = found["NetworkPolicy", name]["spec"]
    assert (
        policy["podSelector"]["matchLabels"] == pod["metadata"]["labels"] == found["Service", name]["spec"]["selector"]
    )
    assert [one["from"] for one in policy["ingress"]] == [[{"podSelector": ours}]]
    assert found["NetworkPolicy", "revisions-to-collector"]["spec"]["podSelector"] == ours


def test_the_account_of_pod_identity_leans_on_no_secret() -> None:
    """KServe skips a Secret without keys, whatever its annotations say (credentials/service_account_credentials.go)."""
    (account,) = load(MANIFESTS / "service_account_pod_identity.yaml")
    assert "secrets" not in account


def test_no_secret_of_a_manifest_holds_anything() -> None:
    found = [parameter.values[0] for parameter in documents(MANIFESTS)]
    secrets = [document for document in found if document["kind"] == "Secret"]
    assert secrets
    assert [document["metadata"]["name"] for document in secrets if {"data", "stringData"} & set(document)] == []


def test_the_way_to_eks_makes_what_its_runtime_mounts() -> None:
    """A pod whose ConfigMap is not there never starts."""
    (runtime,) = load(MANIFESTS / "serving_runtime.yaml")
    mounted = [volume["configMap"]["name"] for volume in runtime["spec"]["volumes"]]
    (made,) = load(MANIFESTS / "verify" / "kustomization.yaml")
    assert mounted == [one["name"] for one in made["configMapGenerator"]]
    before, _, _ = (PROJECT / "docs" / "eks.md").read_text().partition("include/manifests/serving_runtime.yaml")
    assert "kubectl apply --server-side -n models -k include/manifests/verify" in before


def test_each_account_of_airflow_reaches_the_store_on_eks() -> None:
    """The page shows the store's records: without a role it is refused, for pods may not become their node."""
    accounts = {one["metadata"]["name"] for one in load(MANIFESTS / "roles.yaml") if one["kind"] == "ServiceAccount"}
    (irsa,) = load(CLUSTER / "cluster.yaml")
    roles = {one["metadata"]["name"]: one["roleName"] for one in irsa["iam"]["serviceAccounts"]}
    annotated = re.findall(r"(airflow-[\w-]+)=([\w-]+)", (PROJECT / "docs" / "eks.md").read_text())
    assert dict(annotated) == {name: roles.get(name) for name in accounts}


def test_a_volume_without_a_class_gets_one() -> None:
    """A new cluster of EKS has no default StorageClass since 1.30; without one Prometheus' volume waits for ever."""
    (values,) = load(CLUSTER / "values" / "kube-prometheus.yaml")
    claim = values["prometheus"]["prometheusSpec"]["storageSpec"]["volumeClaimTemplate"]["spec"]
    (cluster,) = load(CLUSTER / "cluster.yaml")
    (driver,) = [one for one in cluster["addons"] if one["name"] == "aws-ebs-csi-driver"]
    default = json.loads(driver.get("configurationValues", "{}")).get("defaultStorageClass", {})
    assert claim.get("storageClassName") or default.get("enabled")


def test_the_way_to_eks_names_files_that_are_there_and_leaves_none_out() -> None:
    text = (PROJECT / "docs" / "eks.md").read_text()
    named = set(re.findall(r"include/[\w./-]+\.yaml", text))
    assert (
        sorted(path for path in named if not (PROJECT / path).is_file() and path != "include/models/faces.yaml") == []
    )
    by_name = {file.name for folder in (MANIFESTS, CLUSTER, CLUSTER / "values") for file in folder.glob("*.yaml")}
    # The base of every service is applied by the release itself.
    shortened = {"service_account_pod_identity.yaml", "service_account_secret.yaml", "inference_service.yaml"}
    assert sorted(name for name in by_name - shortened if name not in text) == []
