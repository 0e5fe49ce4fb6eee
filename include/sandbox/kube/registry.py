"""Create, update and delete by Kubernetes' rules, for the API and for the controllers alike.

What every kind has in common lives here: uid, generation, conflicts, the status subresource, finalizers, owners,
managed fields. What is particular to a kind comes in as admission (`Admission`).
"""

from __future__ import annotations

import copy
import re
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

from sandbox.interfaces import Manifest
from sandbox.kube import errors, ownership
from sandbox.kube.ownership import Writer
from sandbox.kube.resources import BY_ID, NAMESPACES, Kind
from sandbox.kube.store import Key, Store

# (new, old or None) → the object as it is stored; raises ApiError to refuse it.
Admission = Callable[[Manifest, Manifest | None], Manifest]

_NAME = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
_NAME_HELP = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', "
    "and must start and end with an alphanumeric character"
)
_FIXED = ("uid", "creationTimestamp", "generation", "name", "namespace", "deletionTimestamp", "generateName")


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Registry:
    """The rules between a request and the store. Methods are synchronous, hence atomic to each other."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.admission: dict[str, Admission] = {}

    def key(self, kind: Kind, namespace: str, name: str) -> Key:
        return Key(kind.id, namespace if kind.namespaced else "", name)

    def get(self, kind: Kind, namespace: str, name: str) -> Manifest:
        found = self.store.get(self.key(kind, namespace, name))
        if found is None:
            raise errors.not_found(kind, name)
        return found

    def create(
        self, kind: Kind, namespace: str, obj: Manifest, writer: Writer, dry_run: bool = False,
        managed: list[Manifest] | None = None,
    ) -> Manifest:  # fmt: skip
        """Store a new object. Raises 409 AlreadyExists, 404 for the namespace, 422, 400 for a wrong kind."""
        obj = copy.deepcopy(obj)
        meta = obj.setdefault("metadata", {})
        self._check_type(kind, obj)
        if kind.namespaced:
            if meta.setdefault("namespace", namespace) != namespace:
                raise errors.bad_request(
                    f"the namespace of the provided object does not match the namespace sent on the request: "
                    f"{meta['namespace']} is not {namespace}"
                )
            self._check_namespace(namespace)
        else:
            meta.pop("namespace", None)
        if not meta.get("name") and meta.get("generateName"):
            meta["name"] = meta["generateName"] + uuid.uuid4().hex[:5]
        name = meta.get("name") or ""
        if not name:
            raise errors.invalid(kind, "", ("metadata.name", "Required value: name or generateName is required"))
        if not _NAME.match(name) or len(name) > 253:
            raise errors.invalid(kind, name, ("metadata.name", f'Invalid value: "{name}": {_NAME_HELP}'))
        key = self.key(kind, namespace, name)
        if self.store.get(key) is not None:
            raise errors.already_exists(kind, name)
        if meta.get("resourceVersion"):
            raise errors.bad_request("resourceVersion should not be set on objects to be created")
        if kind.custom and kind.has_status:
            obj.pop("status", None)
        if kind is NAMESPACES:
            obj |= {"spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}}
        obj = self._admit(kind, obj, None)
        meta = obj["metadata"]
        meta.pop("deletionTimestamp", None)
        meta |= {"uid": str(uuid.uuid4()), "creationTimestamp": now(), "generation": 1}
        if managed is None:
            bare = {**obj, "metadata": {**meta, "managedFields": []}}
            managed = ownership.after_update({}, bare, writer, now())
        meta["managedFields"] = managed
        return obj if dry_run else self.store.put(key, obj)

    def update(
        self, kind: Kind, namespace: str, name: str, new: Manifest, writer: Writer, dry_run: bool = False,
        managed: list[Manifest] | None = None,
    ) -> Manifest:  # fmt: skip
        """Replace an object, or only its status when `writer.subresource` says so.

        A resourceVersion in `new` must be the stored one (409). A write that changes nothing is not a write:
        neither resourceVersion nor watch tell of it. `generation` grows only when the spec changes.
        """
        current = self.get(kind, namespace, name)
        new = copy.deepcopy(new)
        meta = new.setdefault("metadata", {})
        self._check_type(kind, new)
        if meta.get("name", name) != name:
            raise errors.bad_request(
                f"the name of the object ({meta['name']}) does not match the name on the URL ({name})"
            )
        if meta.get("resourceVersion") and meta["resourceVersion"] != current["metadata"]["resourceVersion"]:
            raise errors.conflict(kind, name)
        if meta.get("uid") and meta["uid"] != current["metadata"]["uid"]:
            raise errors.conflict(kind, name)
        if writer.subresource == "status":
            new = {**current, "status": new.get("status", {})}
            new["metadata"] = copy.deepcopy(current["metadata"])
        else:
            if kind.has_status:
                new.pop("status", None)
                new |= {"status": current["status"]} if "status" in current else {}
            for field in _FIXED:
                meta.pop(field, None)
                if field in current["metadata"]:
                    meta[field] = current["metadata"][field]
            new = self._admit(kind, new, current)
        meta = new["metadata"]
        if new.get("spec") != current.get("spec"):
            meta["generation"] = current["metadata"].get("generation", 1) + 1
        if managed is None:
            managed = ownership.after_update(current, new, writer, now())
        meta["managedFields"] = managed
        meta["resourceVersion"] = current["metadata"]["resourceVersion"]
        if _same(new, current):
            return current
        if dry_run:
            return new
        if meta.get("deletionTimestamp") and not meta.get("finalizers"):
            return self._remove(self.store_key(kind, new), new)
        return self.store.put(self.key(kind, namespace, name), new)

    def delete(self, kind: Kind, namespace: str, name: str, dry_run: bool = False) -> Manifest:
        """Delete an object and what it owns. With finalizers it is only marked; returns the object as it was last."""
        current = self.get(kind, namespace, name)
        if dry_run:
            return current
        if kind is NAMESPACES:
            self._empty_namespace(name)
        if current["metadata"].get("finalizers"):
            if current["metadata"].get("deletionTimestamp"):
                return current
            generation = current["metadata"].get("generation", 1) + 1
            current["metadata"] |= {
                "deletionTimestamp": now(), "deletionGracePeriodSeconds": 0, "generation": generation,
            }  # fmt: skip
            return self.store.put(self.key(kind, namespace, name), current)
        return self._remove(self.key(kind, namespace, name), current)

    @staticmethod
    def store_key(kind: Kind, obj: Manifest) -> Key:
        meta = obj["metadata"]
        return Key(kind.id, meta.get("namespace", "") if kind.namespaced else "", meta["name"])

    def _remove(self, key: Key, last: Manifest) -> Manifest:
        gone = self.store.drop(key)
        owner = last["metadata"]["uid"]
        for kind in BY_ID.values():
            for obj in list(self.store.all(kind.id, key.namespace if key.namespace else None)):
                if any(ref.get("uid") == owner for ref in obj["metadata"].get("ownerReferences", [])):
                    self.delete(kind, obj["metadata"].get("namespace", ""), obj["metadata"]["name"])
        return gone

    def _empty_namespace(self, namespace: str) -> None:
        for kind in BY_ID.values():
            if not kind.namespaced:
                continue
            for obj in list(self.store.all(kind.id, namespace)):
                if self.store.get(self.store_key(kind, obj)) is not None:
                    self.delete(kind, namespace, obj["metadata"]["name"])

    def _check_namespace(self, namespace: str) -> None:
        if self.store.get(Key(NAMESPACES.id, "", namespace)) is None:
            raise errors.not_found(NAMESPACES, namespace)

    @staticmethod
    def _check_type(kind: Kind, obj: Manifest) -> None:
        said = (obj.setdefault("apiVersion", kind.api_version), obj.setdefault("kind", kind.title))
        if said != (kind.api_version, kind.title):
            raise errors.bad_request(
                f"the API version in the data ({said[0]}, Kind={said[1]}) does not match the expected "
                f"({kind.api_version}, Kind={kind.title})"
            )

    def _admit(self, kind: Kind, new: Manifest, old: Manifest | None) -> Manifest:
        admit = self.admission.get(kind.id)
        return admit(new, old) if admit else new


def _same(new: Manifest, old: Manifest) -> bool:
    """Whether a write changes anything but the time at which a manager last wrote."""

    def bare(obj: Manifest) -> Manifest:
        entries = [{k: v for k, v in e.items() if k != "time"} for e in obj["metadata"].get("managedFields", [])]
        entries.sort(key=lambda e: (e["manager"], e["operation"], e.get("subresource") or ""))
        return {**obj, "metadata": {**obj["metadata"], "managedFields": entries}}

    return bare(new) == bare(old)
