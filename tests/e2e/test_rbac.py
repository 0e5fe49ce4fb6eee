"""include/manifests/roles.yaml against what whole releases called: nothing is missing, nothing is there for show."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.patience import LIMIT

from sandbox.kube.rbac import Permission, needed, permissions

pytestmark = pytest.mark.e2e

ROLES = list(
    yaml.safe_load_all((Path(__file__).parents[2] / "include" / "manifests" / "roles.yaml").read_text())
)  # fmt: skip
GUARD = list(
    yaml.safe_load_all((Path(__file__).parents[2] / "include" / "manifests" / "guard.yaml").read_text())
)  # fmt: skip
REVISION = ("models", "serving.knative.dev", "revisions")
ISVC = ("models", "serving.kserve.io", "inferenceservices")
LEASE = ("models", "coordination.k8s.io", "leases")

# What three releases without an accident do not need; each is made, with its reason, by the tests named here.
# Of a dead canary: tests/cluster/test_dead.py.
# Of a service in Standard mode: tests/e2e/test_standard.py.
ROUTES = Permission("models", "gateway.networking.k8s.io", "httproutes", "get")
DEAD = {Permission(*REVISION, "get"), Permission(*REVISION, "delete"), ROUTES}
RARE = {
    "worker": {
        *DEAD,
        Permission(*ISVC, "delete"),  # a first deployment undone: tests/cluster/test_settle.py
        # The sandbox runs no Deployments; where they are, the preflight reads two versions from them.
        Permission("kserve", "apps", "deployments", "get"),
        Permission("knative-serving", "apps", "deployments", "get"),
    },
    "triggerer": DEAD,
    "guard": {  # what nobody looks at: tests/tasks/test_guard.py
        *DEAD,
        Permission(*ISVC, "get"),
        Permission(*ISVC, "patch"),
    },
    "sweep": {
        *DEAD,  # what a run left behind: tests/tasks/test_sweep.py
        Permission(*ISVC, "patch"),
        Permission(*ISVC, "delete"),
        Permission(*LEASE, "patch"),
        Permission(*LEASE, "list"),  # where it may not list them in the whole cluster: tests/cluster/test_lease.py
    },
}


@pytest.fixture(scope="module")
def calls(live: Any, story: Any) -> list[dict[str, Any]]:
    """Every call since the sandbox began, by who made it; a sweep among them."""
    run_id = live.airflow.trigger("sweep", {})
    assert live.finished("sweep", run_id)["state"] == "success"
    url = live.status["parts"]["kubernetes"]["url"]
    with urllib.request.urlopen(f"{url}/-/calls", timeout=LIMIT) as answer:
        found: list[dict[str, Any]] = json.load(answer)
    return found


# Everybody may who is logged in (system:basic-user).
BASIC = {Permission("", "authorization.k8s.io", "selfsubjectaccessreviews", "create")}
ALSO = {"worker": ("preflight",)}


def granted(name: str) -> set[Permission]:
    found: set[Permission] = set()
    names = {f"model-release-{one}" for one in (name, *ALSO.get(name, ()))}
    for role in [*ROLES, *GUARD]:
        if role["kind"] in ("Role", "ClusterRole") and role["metadata"]["name"] in names:
            found |= permissions(role, role["metadata"].get("namespace", ""))
    return found


@pytest.mark.parametrize("name", sorted(RARE))
def test_a_role_is_exactly_what_was_called(calls: list[dict[str, Any]], name: str) -> None:
    called, may = needed(calls, f"model-release-{name}") - BASIC, granted(name)
    assert called, f"nobody called as model-release-{name}: {sorted({call['agent'] for call in calls})}"
    assert sorted(map(str, called - may)) == [], "roles.yaml lacks these"
    assert sorted(map(str, may - called - RARE[name])) == [], "roles.yaml allows these, and nobody calls them"
    assert RARE[name] <= may, "a rare permission that roles.yaml no longer gives"


def test_nobody_else_of_this_project_called(calls: list[dict[str, Any]]) -> None:
    ours = {call["agent"] for call in calls if call["agent"].startswith("model-release")}
    assert ours <= {f"model-release-{one}" for one in ("worker", "triggerer", "sweep", "page", "guard")}
