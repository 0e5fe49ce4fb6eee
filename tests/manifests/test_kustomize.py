"""The two overlays of the manifests, rendered by kubectl itself; docs/kind.md says what is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from model_release.spec import ModelSpec

from .test_schemas import CLUSTER, MANIFESTS, PROJECT, complaints, load

KUBECTL = Path(sys.executable).with_name("kubectl")
PAGE = (PROJECT / "docs" / "kind.md").read_text(encoding="utf-8")
OVERLAYS = ("eks", "kind")
_WITHOUT_NAMESPACE = {"Namespace", "ClusterRole", "ClusterRoleBinding"}


def rendered(overlay: str) -> list[dict[str, Any]]:
    done = subprocess.run([KUBECTL, "kustomize", CLUSTER / overlay], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> tuple[str, list[dict[str, Any]]]:
    return request.param, rendered(request.param)


def names(objects: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return [(one["kind"], one["metadata"].get("namespace", ""), one["metadata"]["name"]) for one in objects]


def find(objects: list[dict[str, Any]], kind: str, name: str) -> Any:
    (found,) = [one for one in objects if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def test_each_object_has_nothing_that_its_kind_does_not_know(overlay: tuple[str, list[dict[str, Any]]]) -> None:
    assert {
        str(name): found for one, name in zip(overlay[1], names(overlay[1]), strict=True) if (found := complaints(one))
    } == {}


def test_each_object_is_where_its_file_says_and_else_with_the_models(overlay: tuple[str, list[dict[str, Any]]]) -> None:
    found = names(overlay[1])
    assert len(set(found)) == len(found)
    files = load(MANIFESTS / "kustomization.yaml")[0]["resources"]
    said = [one for file in files for one in load(MANIFESTS / file)]
    wanted = {
        (kind, namespace or ("" if kind in _WITHOUT_NAMESPACE else "models"), name)
        for kind, namespace, name in names(said)
    }
    assert wanted <= set(found)
    more = {"kind": {"airflow", "store", "s3", "s3-reader", "kourier-gateway"}, "eks": set()}
    assert {name for *_, name in set(found) - wanted} == more[overlay[0]]
    # The subjects of bindings stay those of Airflow's namespace.
    subjects = [one for binding in overlay[1] for one in binding.get("subjects", ()) if one["kind"] == "ServiceAccount"]
    assert {one["namespace"] for one in subjects} == {"airflow"}


def test_every_file_of_the_manifests_is_in_the_base_or_is_another_way() -> None:
    """A new one has to be thought of."""
    in_it = set(load(MANIFESTS / "kustomization.yaml")[0]["resources"])
    another = {
        "kustomization.yaml",
        "inference_service.yaml",  # a release fills it in
        "role.yaml",  # in place of roles.yaml
        "serving_runtime.yaml",  # in place of serving_runtime_own.yaml
        "serving_runtime_kserve.yaml",  # beside it, with an image of its own, where a model file asks for it
        "service_account.yaml",  # what eks adds to service_account_pod_identity.yaml
        "service_account_secret.yaml",  # what kind adds to it
        "config_observability.yaml",  # for a Knative without its operator
        "pod_monitor_gateways.yaml",  # of which a cluster has one
        "collector.yaml",  # only where samples of what users send are kept
    }
    assert {file.name for file in MANIFESTS.glob("*.yaml")} == in_it | another
    assert not in_it & another


def test_no_placeholder_of_a_registry_is_left(overlay: tuple[str, list[dict[str, Any]]]) -> None:
    assert "registry.example.com" not in yaml.safe_dump_all(overlay[1])


def test_eks_annotates_the_accounts_as_its_page_does() -> None:
    objects = rendered("eks")
    (page,) = load(MANIFESTS / "service_account.yaml")
    annotations = find(objects, "ServiceAccount", "s3-read-only")["metadata"]["annotations"]
    assert annotations == page["metadata"]["annotations"]
    said = dict(re.findall(r"(airflow-[\w-]+)=([\w-]+)", (PROJECT / "docs" / "eks.md").read_text()))
    for account, role in said.items():
        arn = find(objects, "ServiceAccount", account)["metadata"]["annotations"]["eks.amazonaws.com/role-arn"]
        assert arn == f"arn:aws:iam::123456789012:role/{role}"


def test_kinds_images_are_built_loaded_and_named_alike() -> None:
    objects = rendered("kind")
    used = {
        find(objects, "Deployment", "model-release-guard")["spec"]["template"]["spec"]["containers"][0]["image"],
        find(objects, "ServingRuntime", "model-release-torchserve")["spec"]["containers"][0]["image"],
    }
    assert used == set(re.findall(r"docker build -t (\S+)", PAGE))
    (loaded,) = re.findall(r"kind load docker-image --name model-release (.+)", PAGE)
    assert set(loaded.split()) == used
    (values,) = load(CLUSTER / "kind" / "airflow-values.yaml")
    assert f"{values['defaultAirflowRepository']}:{values['defaultAirflowTag']}" in used


def test_kinds_models_reach_the_store_and_only_read_there() -> None:
    objects = rendered("kind")
    service = find(objects, "Service", "s3")
    place = f"{service['metadata']['name']}.{service['metadata']['namespace']}"
    (port,) = [one["port"] for one in service["spec"]["ports"]]
    secret = find(objects, "Secret", "s3-reader")
    assert secret["metadata"]["annotations"]["serving.kserve.io/s3-endpoint"] == f"{place}.svc.cluster.local:{port}"
    assert not {"data", "stringData"} & set(secret)
    assert find(objects, "ServiceAccount", "s3-read-only")["secrets"] == [{"name": "s3-reader"}]
    assert f"http://{place}:{port}" in PAGE
    for policy in ("revisions", "builds"):
        ports = [
            (to["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"], one["port"])
            for rule in find(objects, "NetworkPolicy", policy)["spec"]["egress"]
            for to in rule["to"]
            if "namespaceSelector" in to
            for one in rule["ports"]
        ]
        assert ("store", port) in ports
    reader = re.search(r'reader\\", .*?actions\\": \[(.+?)\]', PAGE)
    assert reader
    assert set(re.findall(r"\w+:\w+", reader[1])) == {"Read:models", "List:models"}


def test_kinds_airflow_has_the_accounts_that_have_the_rights() -> None:
    (values,) = load(CLUSTER / "kind" / "airflow-values.yaml")
    accounts = {one["metadata"]["name"] for one in load(MANIFESTS / "roles.yaml") if one["kind"] == "ServiceAccount"}
    used = {values[part]["serviceAccount"]["name"] for part in ("scheduler", "triggerer", "apiServer")}
    assert used == accounts
    assert values["executor"] == "LocalExecutor", "its tasks run in the scheduler, as the worker"
    connections = {one["name"] for one in values["env"]} | {one["envName"] for one in values["secret"]}
    page = (PROJECT / "docs" / "eks.md").read_text()
    assert connections == set(re.findall(r"^(AIRFLOW_CONN_\w+)=", page, re.MULTILINE))


def test_kinds_image_of_airflow_holds_what_the_projects_own_does() -> None:
    def said(path: Path, word: str) -> list[str]:
        text = re.sub(r"\\\n\s*", " ", path.read_text())
        return [line for line in text.splitlines() if line.startswith(f"{word} ")]

    own, official = PROJECT / "Dockerfile", CLUSTER / "kind" / "Dockerfile"
    assert said(official, "COPY") == said(own, "COPY")
    assert said(official, "RUN") == [line for line in said(own, "RUN") if "useradd" not in line]
    ours = [line.replace("AIRFLOW_HOME=/opt/airflow", "").split() for line in said(own, "ENV")]
    assert ours == [line.split() for line in said(official, "ENV")]
    done = subprocess.run([KUBECTL.with_name("hadolint"), official], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_pages_models_are_models_and_stand_on_one_service() -> None:
    (text,) = re.findall(r"cat > include/models/first.yaml <<EOF\n(.*?)EOF", PAGE, re.DOTALL)
    first = ModelSpec.model_validate(yaml.safe_load(text))
    (edits,) = re.findall(r'sed "(.+?)" \\\n  include/models/first.yaml', PAGE)
    done = subprocess.run(["sed", edits], input=text, capture_output=True, text=True, check=True)
    second = ModelSpec.model_validate(yaml.safe_load(done.stdout))
    assert (second.model, second.source.hub) == ("second", "dima806/faces_age_detection")
    assert (first.service, first.store) == (second.service, second.store)
    assert f"Host: {first.service.name}-predictor.{first.service.namespace}." in PAGE
    assert f"/v1/models/{first.service.name}:predict" in PAGE


def test_the_page_names_files_that_are_there_and_the_versions_of_the_other_page() -> None:
    paths = re.findall(r"include/[\w./-]+\w", PAGE)
    assert {"include/cluster/kind", "include/cluster/kind/cluster.yaml"} <= set(paths)
    made = {"include/models/first.yaml", "include/models/second.yaml"}
    assert [path for path in paths if not (PROJECT / path).exists() and path not in made] == []
    versions = dict(re.findall(r"(\S+) --version (\S+)", PAGE))
    other = dict(re.findall(r"(\S+) --version (\S+)", (PROJECT / "docs" / "eks.md").read_text()))
    assert {chart: version for chart, version in versions.items() if chart in other} == {
        chart: other[chart] for chart in versions if chart in other
    }
    assert set(versions) - set(other) == {"apache-airflow/airflow"}
