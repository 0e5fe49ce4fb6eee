"""The comparison of Roles and calls, on calls as the sandbox's API records them; and the Roles with each other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from sandbox.kube.rbac import Permission, allowed, needed, permissions

MANIFESTS = Path(__file__).parents[2] / "include" / "manifests"
ROLES = list(yaml.safe_load_all((MANIFESTS / "roles.yaml").read_text()))
(WHOLE,) = yaml.safe_load_all((MANIFESTS / "role.yaml").read_text())

ISVC = ("serving.kserve.io", "inferenceservices")
LEASE = ("coordination.k8s.io", "leases")
ROUTES = ("gateway.networking.k8s.io", "httproutes")
GUARD = list(yaml.safe_load_all((MANIFESTS / "guard.yaml").read_text()))
SECURITY = MANIFESTS.parents[1] / "docs" / "security.md"


def call(agent: str, verb: str, group: str, resource: str, namespace: str = "models", sub: str = "") -> dict[str, Any]:
    return {
        "agent": agent, "verb": verb, "group": group, "resource": resource, "subresource": sub, "namespace": namespace,
        "count": 3,
    }  # fmt: skip


SAMPLE = [
    call("model-release-triggerer", "get", *ISVC),
    call("model-release-triggerer", "get", *LEASE),
    call("model-release-sweep", "list", *LEASE, namespace=""),
    call("kubectl", "delete", "", "pods", sub=""),
    call("model-release-worker", "get", "", "pods", sub="log"),
]


def test_what_was_called_is_what_is_needed_by_that_agent_alone() -> None:
    assert needed(SAMPLE, "model-release-triggerer") == {
        Permission("models", *ISVC, "get"),
        Permission("models", *LEASE, "get"),
    }
    assert needed(SAMPLE, "model-release-worker") == {Permission("models", "", "pods/log", "get")}
    assert needed(SAMPLE, "nobody") == set()


def test_roles_allow_what_is_bound_to_the_account_and_where() -> None:
    triggerer = allowed(ROLES, "airflow/airflow-triggerer")
    assert needed(SAMPLE, "model-release-triggerer") <= triggerer
    assert {(one.group, one.verb) for one in triggerer if one.group} == {
        *((ISVC[0], verb) for verb in ("get", "patch")),
        *((LEASE[0], verb) for verb in ("get", "patch")),
        *(("serving.knative.dev", verb) for verb in ("get", "delete")),
        (ROUTES[0], "get"),
    }
    worker = allowed(ROLES, "airflow/airflow-worker")
    assert needed(SAMPLE, "model-release-sweep") <= worker
    assert Permission("", *LEASE, "list") in worker
    assert Permission("", *LEASE, "get") not in worker
    assert allowed(ROLES, "airflow/nobody") == set()


def test_a_permission_says_itself() -> None:
    assert str(Permission("models", *LEASE, "list")) == "list leases.coordination.k8s.io in namespace models"
    assert str(Permission("", "", "pods/log", "get")) == "get pods/log in the whole cluster"


def test_the_one_account_role_is_workers_triggerers_and_sweeps_together() -> None:
    together: set[Permission] = set()
    for role in ROLES:
        if role["metadata"]["name"] in ("model-release-worker", "model-release-triggerer", "model-release-sweep"):
            together |= permissions(role, "models") if role["kind"] == "Role" else set()
    assert together == permissions(WHOLE, "models")


def test_nobody_may_everything_and_only_people_may_look_around() -> None:
    for role in [*ROLES, WHOLE]:
        if role["kind"] in ("Role", "ClusterRole"):
            for one in permissions(role, role["metadata"].get("namespace", "")):
                assert "*" not in (one.group, one.resource, one.verb)
                assert one.resource not in ("secrets", "roles", "rolebindings", "serviceaccounts/token")
                assert not one.resource.startswith("pods/exec")
    everywhere = [role for role in ROLES if role["kind"] == "ClusterRole"]
    runtimes = ("serving.kserve.io", "clusterservingruntimes")
    assert set().union(*(permissions(role, "") for role in everywhere)) == {
        Permission("", *LEASE, "list"),
        Permission("", *runtimes, "get"),
    }


def test_the_page_only_looks() -> None:
    """`within` of both makes one LIST of each, and `tests/web/test_access.py` holds that the page changes nothing."""
    assert allowed(ROLES, "airflow/airflow-api-server") == {
        Permission("models", *ISVC, "list"),
        Permission("models", *LEASE, "list"),
    }


def test_the_guard_takes_away_and_reads_no_secret() -> None:
    """`release/guard.py`; what it calls is compared with this in tests/e2e/test_rbac.py."""
    guard = list(yaml.safe_load_all((MANIFESTS / "guard.yaml").read_text()))
    assert allowed(guard, "airflow/model-release-guard") == {
        *(Permission("models", *ISVC, verb) for verb in ("get", "patch")),
        *(Permission("models", "serving.knative.dev", "revisions", verb) for verb in ("get", "delete")),
        Permission("models", "gateway.networking.k8s.io", "httproutes", "get"),
        *(Permission("models", *LEASE, verb) for verb in ("get", "list", "create", "patch")),
    }
    (deployment,) = [one for one in guard if one["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["command"][:4] == ["python", "-m", "model_release", "guard"]


def test_17_18_the_table_in_the_docs_is_what_each_account_may() -> None:
    """Number 18: the table is compared with the manifests, and those with what releases called: tests/e2e/test_rbac.py,
    and tests/tasks/test_guard_rights.py for the guard."""
    rows = re.findall(r"^\| `(airflow/[a-z-]+)` \|[^|]*\|([^|]*)\|$", SECURITY.read_text(), re.MULTILINE)
    told = {account: {one.strip() for one in re.findall(r"`([^`]+)`", said)} for account, said in rows}
    for account, said in told.items():
        may = {f"{one.verb} {one.resource}" for one in allowed([*ROLES, *GUARD], account)}
        assert said == may, account
    made = [one["metadata"] for one in [*ROLES, *GUARD] if one["kind"] == "ServiceAccount"]
    assert set(told) == {f"{one['namespace']}/{one['name']}" for one in made}


def test_17_18_a_service_in_standard_mode_can_be_released_with_role_yaml_alone() -> None:
    """Number 18: the refusal said that role.yaml has `get httproutes`, which it had not."""
    assert Permission("models", *ROUTES, "get") in permissions(WHOLE, "models")


def test_every_role_is_bound_and_every_binding_has_its_role() -> None:
    made = {(one["kind"], one["metadata"]["name"]) for one in ROLES if one["kind"].endswith("Role")}
    bound = {(one["roleRef"]["kind"], one["roleRef"]["name"]) for one in ROLES if one["kind"].endswith("Binding")}
    assert made == bound
    accounts = {
        f"{one['metadata']['namespace']}/{one['metadata']['name']}" for one in ROLES if one["kind"] == "ServiceAccount"
    }
    named = {
        f"{subject['namespace']}/{subject['name']}"
        for one in ROLES
        for subject in one.get("subjects", ())
        if subject["kind"] == "ServiceAccount"
    }
    assert accounts == named
