"""Three of Kubernetes' four kinds of patch, as pure functions; the fourth, server-side apply, is `ownership`."""

from __future__ import annotations

import copy
from typing import Any

from sandbox.interfaces import Manifest
from sandbox.kube.errors import ApiError, bad_request

# Lists that Kubernetes treats as maps, by the name of their field, with the key that tells items apart
# (x-kubernetes-patch-merge-key of the core kinds, x-kubernetes-list-map-keys of KServe's CRD).
MERGE_KEYS = {
    "conditions": "type",
    "containers": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "initContainers": "name",
    "ownerReferences": "uid",
    "ports": "containerPort",
    "secrets": "name",
    "volumeMounts": "mountPath",
    "volumes": "name",
}


def merge_key(field: str, *lists: Any) -> str | None:
    """The key of a list that is a map, or None when it (or one of its items) is not one."""
    key = MERGE_KEYS.get(field)
    keyed = all(isinstance(item, dict) and key in item for items in lists for item in items or [])
    return key if key and keyed else None


def merge(target: Any, patch: Any) -> Any:
    """JSON merge patch (RFC 7386): null deletes, lists are replaced."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


def strategic(target: Any, patch: Any) -> Any:
    """Strategic merge patch: as `merge`, but lists with a merge key are merged item by item."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    directive = patch.get("$patch")
    if directive == "replace":
        return {k: v for k, v in patch.items() if k != "$patch"}
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if key.startswith("$deleteFromPrimitiveList/"):
            field = key.split("/", 1)[1]
            result[field] = [item for item in result.get(field, []) if item not in value]
        elif key.startswith("$"):
            continue  # $setElementOrder and $retainKeys order what the merge below already keeps
        elif value is None:
            result.pop(key, None)
        elif isinstance(value, list):
            result[key] = _strategic_list(key, result.get(key), value)
        else:
            result[key] = strategic(result.get(key), value)
    return result


def _strategic_list(field: str, target: Any, patch: list[Any]) -> list[Any]:
    if any(isinstance(item, dict) and item.get("$patch") == "replace" for item in patch):
        return [item for item in patch if "$patch" not in item]
    key = merge_key(field, patch)
    if not key or not isinstance(target, list):
        return copy.deepcopy(patch)
    merged = {item.get(key): item for item in target}
    for item in patch:
        if item.get("$patch") == "delete":
            merged.pop(item[key], None)
        else:
            merged[item[key]] = strategic(merged.get(item[key]), item)
    return list(merged.values())


def json_patch(document: Manifest, operations: Any) -> Manifest:
    """JSON patch (RFC 6902), all or nothing. A failed `test` or a path that is not there is a 422."""
    if not isinstance(operations, list) or not all(isinstance(op, dict) for op in operations):
        raise bad_request("a JSON patch is a list of operations")
    holder: dict[str, Any] = {"": copy.deepcopy(document)}
    for operation in operations:
        try:
            _run(holder, operation)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            path, op = operation.get("path"), operation.get("op")
            raise _refused(f"{op} operation does not apply: doc is missing path: {path}") from error
    result: Manifest = holder[""]
    return result


def _refused(message: str) -> ApiError:
    return ApiError(422, "Invalid", f"the server rejected our request due to an error in our request: {message}")


def _steps(pointer: str) -> list[str]:
    if pointer and not pointer.startswith("/"):
        raise _refused(f"{pointer!r} is not a JSON pointer: it must begin with '/'")
    return [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")]


def _locate(holder: dict[str, Any], pointer: str) -> tuple[Any, str | int]:
    """The container that a pointer points into, and the key or index in it."""
    *parents, last = _steps(pointer)
    node: Any = holder
    for step in parents:
        node = node[int(step)] if isinstance(node, list) else node[step]
    if isinstance(node, list):
        return node, len(node) if last == "-" else int(last)
    return node, last


def _run(holder: dict[str, Any], operation: Manifest) -> None:
    op = operation["op"]
    node, key = _locate(holder, operation["path"])
    if op in ("move", "copy"):
        source, source_key = _locate(holder, operation["from"])
        value = copy.deepcopy(source[source_key])
        if op == "move":
            del source[source_key]
            node, key = _locate(holder, operation["path"])
        op = "add"
    elif op in ("add", "replace", "test"):
        value = operation["value"]
    if op == "add" and isinstance(node, list):
        node.insert(int(key), value)
    elif op == "add":
        node[key] = value
    elif op == "replace":
        if isinstance(node, dict) and key not in node:
            raise KeyError(key)
        node[key] = value
    elif op == "remove":
        del node[key]
    elif op == "test":
        if node[key] != value:
            raise _refused(f"testing value {operation['path']} failed")
    else:
        raise _refused(f"unknown operation {op!r}")
