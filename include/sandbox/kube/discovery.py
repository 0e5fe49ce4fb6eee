"""What clients ask before they ask for objects: version, groups, resources, OpenAPI. Pure functions."""

from __future__ import annotations

from sandbox.interfaces import Manifest
from sandbox.kube import schema
from sandbox.kube.errors import no_such_path
from sandbox.kube.resources import INFERENCE_SERVICES, KINDS, Kind

VERSION = {
    "major": "1",
    "minor": "34",
    "gitVersion": "v1.34.0+sandbox",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "none",
    "compiler": "none",
    "platform": "linux/amd64",
}


def answer(path: str) -> Manifest:
    """The document at a discovery path (`/api`, `/apis/serving.kserve.io/v1beta1`, `/openapi/v3/…`); 404 otherwise."""
    parts = [part for part in path.split("/") if part]
    match parts:
        case ["version"]:
            return VERSION
        case ["api"]:
            return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
        case ["apis"]:
            groups = dict.fromkeys(k.group for k in KINDS if k.group)
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(g) for g in groups]}
        case ["apis", group]:
            return _group(group)
        case ["api" | "apis", *_]:
            return _resources("/".join(parts))
        case ["openapi", "v3"]:
            roots = dict.fromkeys(k.root for k in KINDS)
            return {"paths": {r: {"serverRelativeURL": f"/openapi/v3/{r}?hash=1"} for r in roots}}
        case ["openapi", "v3", *rest]:
            return _openapi("/".join(rest))
        case _:
            raise no_such_path()


def _group(group: str) -> Manifest:
    versions = dict.fromkeys(k.version for k in KINDS if k.group == group)
    listed = [{"groupVersion": f"{group}/{v}", "version": v} for v in versions]
    if not listed or not group:
        raise no_such_path()
    return {"kind": "APIGroup", "apiVersion": "v1", "name": group, "versions": listed, "preferredVersion": listed[0]}


def _resources(root: str) -> Manifest:
    listed: list[Manifest] = []
    for kind in _kinds(root):
        listed.append(
            {
                "name": kind.plural,
                "singularName": kind.singular,
                "namespaced": kind.namespaced,
                "kind": kind.title,
                "verbs": list(kind.verbs),
                "shortNames": list(kind.short),
                "categories": list(kind.categories),
            }
        )
        for sub in subresources(kind):
            verbs = ["get"] if sub == "log" else ["get", "patch", "update"]
            listed.append(
                {"name": f"{kind.plural}/{sub}", "singularName": "", "namespaced": kind.namespaced,
                 "kind": kind.title, "verbs": verbs}
            )  # fmt: skip
    group_version = _kinds(root)[0].api_version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": listed}


def subresources(kind: Kind) -> list[str]:
    """Parts of an object that have a path of their own."""
    if kind.plural == "pods":
        return ["log", "status"]
    return ["status"] if kind.has_status else []


def _kinds(root: str) -> list[Kind]:
    found = [k for k in KINDS if k.root == root]
    if not found:
        raise no_such_path()
    return found


def _openapi(root: str) -> Manifest:
    """Enough of OpenAPI v3 for kubectl: which kinds there are, and that writes take `fieldValidation`."""
    paths: Manifest = {}
    schemas: Manifest = {}
    query = ("fieldValidation", "fieldManager", "dryRun", "force")
    parameters = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in query]
    for kind in _kinds(root):
        named = {"group": kind.group, "version": kind.version, "kind": kind.title}
        operation = {
            "parameters": parameters,
            "responses": {"200": {"description": "OK"}},
            "x-kubernetes-group-version-kind": named,
        }
        base = f"/{root}" + ("/namespaces/{namespace}" if kind.namespaced else "") + f"/{kind.plural}"
        paths[base] = {
            "get": {**operation, "x-kubernetes-action": "list"},
            "post": {**operation, "x-kubernetes-action": "post"},
        }
        paths[f"{base}/{{name}}"] = {
            "get": {**operation, "x-kubernetes-action": "get"},
            "put": {**operation, "x-kubernetes-action": "put"},
            "patch": {**operation, "x-kubernetes-action": "patch"},
        }
        open_object = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        described = schema.inference_service() if kind is INFERENCE_SERVICES else open_object
        schemas[f"{kind.group or 'core'}.{kind.version}.{kind.title}"] = {
            **described,
            "x-kubernetes-group-version-kind": [named],
        }
    info = {"title": "Kubernetes, as far as the sandbox needs it", "version": VERSION["gitVersion"]}
    return {"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": schemas}}
