"""Manifests as data: what a model's file makes of the base, and what counts as a change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.client import CustomObjectsApi

from model_release.cluster import manifest as manifests
from model_release.cluster.manifest import holds, merge, replacement, without_none
from model_release.errors import SpecError
from model_release.spec import ModelSpec

MANIFESTS = Path(__file__).parents[2] / "include" / "manifests"
BASE = manifests.load_base(MANIFESTS / "inference_service.yaml")

json_value = st.recursive(
    st.integers(0, 3) | st.sampled_from(["x", "y"]) | st.booleans() | st.lists(st.integers(0, 3), max_size=2),
    lambda below: st.dictionaries(st.sampled_from("abc"), below, max_size=3),
    max_leaves=8,
)
json_object = st.dictionaries(st.sampled_from("abc"), json_value, max_size=3)


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7386, section 2, as it stands there."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merge_patch(result.get(name), value)
    return result


@given(json_object, json_object)
def test_a_replacement_makes_it_equal(live: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert merge_patch(live, replacement(live, wanted)) == wanted


@given(json_object, json_object)
def test_what_was_merged_over_is_held(under: dict[str, Any], over: dict[str, Any]) -> None:
    assert holds(merge(under, over), over)
    assert holds(over, over)


def test_slices_are_told_to_the_container_beside_what_the_base_tells_it(model: Callable[..., ModelSpec]) -> None:
    base = merge(BASE, {"spec": {"predictor": {"model": {"env": [{"name": "A", "value": "1"}]}}}})
    made = manifests.manifest(model(slices=["country", "device"]), "s3://models/digits/versions/abc/", base)
    told = [{"name": "A", "value": "1"}, {"name": "MODEL_SLICES", "value": "country,device"}]
    assert made["spec"]["predictor"]["model"]["env"] == told
    without = manifests.manifest(model(), "s3://models/digits/versions/abc/", BASE)
    assert "env" not in without["spec"]["predictor"]["model"]


def test_the_whole_manifest(model: Callable[..., ModelSpec]) -> None:
    spec = model(service_account="s3-read-only", container_concurrency=3, max_replicas=3, timeout="90s")
    made = manifests.manifest(spec, "s3://models/digits/versions/abc/", BASE)
    assert made["metadata"] == {
        "name": "digits",
        "namespace": "models",
        "labels": {"app.kubernetes.io/managed-by": "model-release"},
        "annotations": {
            "serving.kserve.io/enable-tag-routing": "true",
            "serving.kserve.io/deploymentMode": "Knative",
        },
    }
    assert made["spec"] == {
        "predictor": {
            "minReplicas": 1,
            "maxReplicas": 3,
            "containerConcurrency": 3,
            "timeout": 90,
            "serviceAccountName": "s3-read-only",
            "model": {
                "modelFormat": {"name": "pytorch"},
                "protocolVersion": "v1",
                "runtime": "model-release-torchserve",
                "storageUri": "s3://models/digits/versions/abc/",
                "resources": {
                    "requests": {"cpu": "1000m", "memory": "1Gi", "nvidia.com/gpu": None},
                    "limits": {"cpu": "1000m", "memory": "1Gi", "nvidia.com/gpu": None},
                },
                "readinessProbe": {
                    "httpGet": {"path": "/v1/models/digits", "port": 8080},
                    "periodSeconds": 5,
                    "timeoutSeconds": 5,
                },
            },
        }
    }
    assert BASE["spec"]["predictor"]["model"]["readinessProbe"]["httpGet"]["path"] == "/v1/models/model"


def test_gpus_are_request_and_limit_and_go_when_the_file_says_none(model: Callable[..., ModelSpec]) -> None:
    uri = "s3://models/digits/versions/abc/"

    def resources(gpu: int) -> Any:
        spec = model(resources={"cpu": "2", "memory": "4Gi", "gpu": gpu})
        return without_none(manifests.manifest(spec, uri, BASE))["spec"]["predictor"]["model"]["resources"]

    two = {"cpu": "2", "memory": "4Gi", "nvidia.com/gpu": "2"}
    assert resources(2) == {"requests": two, "limits": two}
    none = {"cpu": "2", "memory": "4Gi"}
    assert resources(0) == {"requests": none, "limits": none}
    wanted = manifests.manifest(model(resources={"cpu": "2", "memory": "4Gi"}), uri, BASE)
    live = without_none(manifests.manifest(model(resources={"cpu": "2", "memory": "4Gi", "gpu": 1}), uri, BASE))
    assert not holds(live["spec"], wanted["spec"]), "a GPU that nobody asks for any more is a change"


def test_the_split_never_comes_from_a_manifest(model: Callable[..., ModelSpec]) -> None:
    base = merge(BASE, {"spec": {"predictor": {"canaryTrafficPercent": 100}}})
    made = manifests.manifest(model(), "s3://models/digits/versions/abc/", base)
    assert "canaryTrafficPercent" not in made["spec"]["predictor"]


def test_text_stays_text(model: Callable[..., ModelSpec]) -> None:
    """A URI with everything that could mean something to YAML or a template arrives as it was."""
    uri = 's3://models/digits/{{ x }}": {a: [1]}\n# &b *b !!python/name:os.system /'
    made = manifests.manifest(model(), uri, BASE)
    assert made["spec"]["predictor"]["model"]["storageUri"] == uri
    assert yaml.safe_load(yaml.safe_dump(made)) == made


def test_a_storage_uri_without_its_slash_is_refused(model: Callable[..., ModelSpec]) -> None:
    with pytest.raises(SpecError, match="must end in '/'"):
        manifests.manifest(model(), "s3://models/digits/versions/abc", BASE)


def test_none_means_absent() -> None:
    assert holds({"a": 1}, {"a": 1, "b": None})
    assert not holds({"a": 1, "b": 2}, {"a": 1, "b": None})
    assert replacement({"a": 1, "b": 2}, {"a": 1, "b": None}) == {"b": None}
    assert without_none({"a": {"b": None, "c": 1}}) == {"a": {"c": 1}}


@pytest.mark.parametrize("text", ["[1, 2]", "kind: Pod", "a: [", ""])
def test_what_is_no_base_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "base.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=r"base\.yaml: not a manifest"):
        manifests.load_base(path)


def test_a_base_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="not a manifest"):
        manifests.load_base(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("file", "service", "image"),
    [
        ("serving_runtime_own.yaml", {}, "registry.example.com/model-release-serving@sha256:" + 64 * "0"),
        (
            *("serving_runtime_kserve.yaml", {"runtime": "model-release-kserve"}),
            "registry.example.com/model-release-serving-kserve@sha256:" + 64 * "0",
        ),
        ("serving_runtime.yaml", {"runtime": "kserve-torchserve"}, "pytorch/torchserve-kfs:0.12.0"),
    ],
)
def test_the_runtime_of_this_repository_is_taken(live: Any, file: str, service: dict[str, Any], image: str) -> None:
    """The one that model files name by default, and the other before KServe's own of that name, with image 0.9.0."""
    live.service = service
    runtime = yaml.safe_load((MANIFESTS / file).read_text())
    api = CustomObjectsApi(live.client)
    api.create_namespaced_custom_object("serving.kserve.io", "v1alpha1", "models", "servingruntimes", runtime)
    (revision,) = live.released("v1")
    made = api.get_namespaced_custom_object("serving.knative.dev", "v1", "models", "revisions", revision)
    container = made["spec"]["containers"][0]
    assert container["image"] == image
    assert container["readinessProbe"]["httpGet"]["path"] == "/v1/models/digits"
    assert container["resources"]["limits"] == {"cpu": "1", "memory": "1Gi"}, "the API's form"
