"""What is in the cluster before anybody writes: namespaces, KServe's configuration, the serving runtimes."""

from __future__ import annotations

import json
from dataclasses import dataclass

from sandbox.interfaces import Manifest
from sandbox.kube import schema
from sandbox.kube.ownership import Writer
from sandbox.kube.registry import Registry
from sandbox.kube.resources import CLUSTER_RUNTIMES, CONFIGMAPS, CRDS, INFERENCE_SERVICES, NAMESPACES, Kind

KSERVE_NAMESPACE = "kserve"
CONFIG_NAME = "inferenceservice-config"
# KServe's own begins with `{{ .Name }}-{{ .Namespace }}`; by this one a service has the same address in both modes.
TEMPLATE = "{{ .Name }}.{{ .Namespace }}.{{ .IngressDomain }}"

# KServe v0.20.0, config/runtimes/kserve-torchserve.yaml.
TORCHSERVE: Manifest = {
    "metadata": {
        "name": "kserve-torchserve",
        "annotations": {"serving.kserve.io/server-type": "torchserve"},
    },
    "spec": {
        "annotations": {"prometheus.kserve.io/port": "8082", "prometheus.kserve.io/path": "/metrics"},
        "supportedModelFormats": [{"name": "pytorch", "version": "1", "autoSelect": True, "priority": 2}],
        "protocolVersions": ["v1", "v2", "grpc-v2"],
        "containers": [
            {
                "name": "kserve-container",
                "image": "pytorch/torchserve-kfs:0.9.0",
                "args": [
                    "torchserve",
                    "--start",
                    "--model-store=/mnt/models/model-store",
                    "--ts-config=/mnt/models/config/config.properties",
                ],
                "env": [{"name": "TS_SERVICE_ENVELOPE", "value": "{{.Labels.serviceEnvelope}}"}],
                "resources": {
                    "requests": {"cpu": "1", "memory": "2Gi"},
                    "limits": {"cpu": "1", "memory": "2Gi"},
                },
            }
        ],
    },
}

# include/manifests/serving_runtime_own.yaml, as a sandbox's pods run it: their front passes TorchServe's statuses on.
OWN: Manifest = {
    "metadata": {**TORCHSERVE["metadata"], "name": "model-release-torchserve"},
    "spec": {
        **TORCHSERVE["spec"],
        "supportedModelFormats": [{"name": "pytorch", "version": "1", "autoSelect": False}],
        "containers": [{**TORCHSERVE["spec"]["containers"][0], "image": "model-release-serving"}],
    },
}

# include/manifests/serving_runtime_kserve.yaml, as a sandbox's pods run it.
KSERVE: Manifest = {
    "metadata": {"name": "model-release-kserve"},
    "spec": {
        "annotations": TORCHSERVE["spec"]["annotations"],
        "supportedModelFormats": [{"name": "pytorch", "version": "1", "autoSelect": False}],
        "protocolVersions": ["v1", "v2"],
        "containers": [
            {
                "name": "kserve-container",
                "image": "model-release-serving-kserve",
                "resources": TORCHSERVE["spec"]["containers"][0]["resources"],
            }
        ],
    },
}


def cluster_default_mode(registry: Registry) -> str:
    """`defaultDeploymentMode` of KServe's configmap: what an InferenceService without annotation gets."""
    found = registry.store.get(registry.key(CONFIGMAPS, KSERVE_NAMESPACE, CONFIG_NAME)) or {}
    try:
        said = json.loads(found.get("data", {}).get("deploy", "{}")).get("defaultDeploymentMode", "Standard")
    except (ValueError, AttributeError):
        return "Standard"
    return {"Serverless": "Knative", "RawDeployment": "Standard"}.get(said, str(said))


@dataclass(frozen=True)
class Addresses:
    """KServe's settings for host names: the part `ingress` of its configmap."""

    template: str  # of a host in Standard mode
    own_host: bool  # in Knative mode: an InferenceService has a host of its own (Istio), not its Knative Service's

    def host(self, name: str, namespace: str, domain: str) -> str:
        words = {"{{ .Name }}": name, "{{ .Namespace }}": namespace, "{{ .IngressDomain }}": domain}
        host = self.template
        for word, value in words.items():
            host = host.replace(word, value)
        return host


def addresses(registry: Registry) -> Addresses:
    found = registry.store.get(registry.key(CONFIGMAPS, KSERVE_NAMESPACE, CONFIG_NAME)) or {}
    said = json.loads(found.get("data", {}).get("ingress", "{}"))
    return Addresses(said.get("domainTemplate", TEMPLATE), not said.get("disableIstioVirtualHost", False))


def plant(registry: Registry, domain: str, namespaces: tuple[str, ...]) -> None:
    """Create what is missing. What is there stays as it is, so that a restart keeps changes."""
    for name in ("default", "kube-system", "knative-serving", KSERVE_NAMESPACE, *namespaces):
        labels = {"kubernetes.io/metadata.name": name}
        _create(registry, NAMESPACES, "", {"metadata": {"name": name, "labels": labels}})
    config = {
        "deploy": json.dumps({"defaultDeploymentMode": "Knative"}),
        "ingress": json.dumps(
            {
                "ingressDomain": domain,
                "domainTemplate": TEMPLATE,
                "urlScheme": "http",
                "disableIstioVirtualHost": False,
                "enableGatewayApi": True,
            }
        ),
    }
    _create(registry, CONFIGMAPS, KSERVE_NAMESPACE, {"metadata": {"name": CONFIG_NAME}, "data": config})
    for runtime in (TORCHSERVE, OWN, KSERVE):
        _create(registry, CLUSTER_RUNTIMES, "", runtime)
    _create(registry, CRDS, "", _crd())


def _create(registry: Registry, kind: Kind, namespace: str, obj: Manifest) -> None:
    if registry.store.get(registry.key(kind, namespace, obj["metadata"]["name"])) is None:
        registry.create(kind, namespace, obj, Writer("sandbox", api_version=kind.api_version))


def _crd() -> Manifest:
    kind = INFERENCE_SERVICES
    version = {
        "name": kind.version,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": schema.inference_service()},
    }
    names = {
        "kind": kind.title, "listKind": f"{kind.title}List", "plural": kind.plural, "singular": kind.singular,
        "shortNames": list(kind.short),
    }  # fmt: skip
    spec = {"group": kind.group, "names": names, "scope": "Namespaced", "versions": [version]}
    established = {"type": "Established", "status": "True", "reason": "InitialNamesAccepted"}
    return {"metadata": {"name": kind.id}, "spec": spec, "status": {"conditions": [established]}}
