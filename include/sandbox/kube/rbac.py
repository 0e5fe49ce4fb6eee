"""What calls need, in the words of RBAC, and what Roles allow: so that the two can be compared.

Calls are those of `GET /-/calls`; Roles and their bindings are manifests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from sandbox.interfaces import Manifest

ROLES = ("Role", "ClusterRole")
BINDINGS = {"RoleBinding": "Role", "ClusterRoleBinding": "ClusterRole"}


class Permission(NamedTuple):
    """One verb on one resource; `namespace` "" is the whole cluster."""

    namespace: str
    group: str
    resource: str  # with its subresource: pods/log
    verb: str

    def __str__(self) -> str:
        where = f"in namespace {self.namespace}" if self.namespace else "in the whole cluster"
        return f"{self.verb} {self.resource}{'.' if self.group else ''}{self.group} {where}"


def needed(calls: Iterable[Mapping[str, object]], agent: str) -> set[Permission]:
    """What the recorded calls of one agent take."""
    return {
        Permission(
            str(call["namespace"]),
            str(call["group"]),
            f"{call['resource']}/{call['subresource']}" if call["subresource"] else str(call["resource"]),
            str(call["verb"]),
        )
        for call in calls
        if call["agent"] == agent
    }


def allowed(manifests: Iterable[Manifest], account: str) -> set[Permission]:
    """What a service account (`namespace/name`) may by the Roles that are bound to it."""
    documents = list(manifests)
    roles = {(one["kind"], _where(one), one["metadata"]["name"]): one for one in documents if one["kind"] in ROLES}
    found: set[Permission] = set()
    for binding in documents:
        if binding["kind"] in BINDINGS and account in _accounts(binding):
            role = binding["roleRef"]
            # A RoleBinding may name a ClusterRole; what it allows stays in the binding's namespace.
            where = _where(binding) if role["kind"] == "Role" else ""
            found |= permissions(roles[role["kind"], where, role["name"]], _where(binding))
    return found


def permissions(role: Manifest, namespace: str) -> set[Permission]:
    """What a Role allows in a namespace. Wildcards stay as they are, and equal nothing that was called."""
    return {
        Permission(namespace, group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def _accounts(binding: Manifest) -> set[str]:
    subjects = binding.get("subjects", ())
    return {f"{one['namespace']}/{one['name']}" for one in subjects if one["kind"] == "ServiceAccount"}


def _where(obj: Manifest) -> str:
    return str(obj["metadata"].get("namespace", ""))
