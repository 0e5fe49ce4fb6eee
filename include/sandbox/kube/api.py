"""The Kubernetes API over HTTP: paths, verbs and media types in, objects, lists, Tables and Status bodies out."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import yaml
from aiohttp import web

from sandbox.interfaces import Manifest, Workloads
from sandbox.kube import admission, discovery, errors, ownership, patches, selectors, streams
from sandbox.kube.errors import ApiError
from sandbox.kube.faults import Call, Fault, Faults
from sandbox.kube.ownership import Writer
from sandbox.kube.registry import Registry, now
from sandbox.kube.resources import ACCESS_REVIEWS, BY_PATH, INFERENCE_SERVICES, KINDS, PODS, Kind
from sandbox.kube.tables import table

_VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_READS = ("get", "list", "watch")
APPLY = "application/apply-patch+yaml"
_PATCHES = ("application/json-patch+json", "application/merge-patch+json", APPLY)
_STRATEGIC = "application/strategic-merge-patch+json"


@dataclass(frozen=True)
class Asked:
    """A request, taken apart."""

    request: web.Request
    call: Call

    @property
    def kind(self) -> Kind:
        return self.call.kind

    @property
    def name(self) -> str:
        return self.call.name or ""

    @property
    def query(self) -> Any:
        return self.request.query

    @property
    def dry_run(self) -> bool:
        return "dryRun" in self.query

    def writer(self, operation: str = "Update") -> Writer:
        agent = self.request.headers.get("User-Agent", "unknown").split("/")[0]
        manager = self.query.get("fieldManager") or agent
        return Writer(manager, operation, self.call.subresource, self.kind.api_version)


def flag(request: web.Request, name: str) -> bool:
    """A boolean of the query; the Python client writes `True`, kubectl `true` or `1`."""
    return request.query.get(name, "").lower() in ("true", "1")


def parse(request: web.Request) -> Call:
    """The call that a path and a method mean. Raises 404 for what is not served, 405 for a verb that is not."""
    parts = [part for part in request.path.split("/") if part]
    group, version, rest = ("", parts[1], parts[2:]) if parts[0] == "api" else (parts[1], parts[2], parts[3:])
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2 and (group, version, rest[2]) in BY_PATH:
        namespace, rest = rest[1], rest[2:]
    kind = BY_PATH.get((group, version, rest[0]))
    if kind is None or len(rest) > 3:
        raise errors.no_such_path()
    name, subresource = (*rest[1:], None, None)[:2]
    if subresource is not None and subresource not in discovery.subresources(kind):
        raise errors.no_such_path()
    verb = _VERBS.get(request.method, request.method.lower())
    if name is None and request.method == "GET":
        verb = "watch" if flag(request, "watch") else "list"
    elif name is None and request.method == "DELETE":
        verb = "deletecollection"
    if verb not in kind.verbs or (name is None) != (verb in ("create", "list", "watch", "deletecollection")):
        text = "the server does not allow this method on the requested resource"
        raise ApiError(405, "MethodNotAllowed", text)
    return Call(verb, kind, namespace, name, subresource)


class Api:
    """Request handlers. Every answer that is not an object is a `Status`."""

    def __init__(self, registry: Registry, workloads: Workloads, faults: Faults) -> None:
        self._registry, self._workloads, self._faults = registry, workloads, faults

    def routes(self) -> list[web.RouteDef]:
        return [
            *(web.route("*", f"/{root}/{{rest:.+}}", self.handle) for root in dict.fromkeys(k.root for k in KINDS)),
            web.get("/{probe:healthz|readyz|livez}", self._healthy),
            web.get("/{path:.*}", self._discover),
        ]

    async def _healthy(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _discover(self, request: web.Request) -> web.Response:
        return web.json_response(discovery.answer(request.path))

    async def handle(self, request: web.Request) -> web.StreamResponse:
        call = parse(request)
        self._faults.record(call, request.headers.get("User-Agent", "unknown").split("/")[0])
        asked, fault = Asked(request, call), self._faults.take(call)
        if fault is None:
            return await self._answer(asked)
        return await self._fail(asked, fault)

    async def _fail(self, asked: Asked, fault: Fault) -> web.StreamResponse:
        await asyncio.sleep(fault.delay)
        if fault.status is None and not fault.drop:
            return await self._answer(asked)
        if fault.after_write:
            await self._answer(asked)
        if fault.drop and asked.request.transport is not None:
            asked.request.transport.abort()
        raise asked.call.refusal(fault.status or 503)

    async def _answer(self, asked: Asked) -> web.StreamResponse:
        call = asked.call
        if call.subresource == "log":
            return await self._log(asked)
        match call.verb:
            case "watch":
                return await streams.watch(asked.request, self._registry.store, call.kind, call.namespace)
            case "list":
                return self._list(asked)
            case "get":
                return self._object(asked, self._registry.get(call.kind, call.namespace, asked.name))
            case "create":
                return await self._create(asked)
            case "update":
                return await self._update(asked)
            case "patch":
                return await self._patch(asked)
            case "delete":
                return await self._delete(asked)
            case _:
                return self._delete_all(asked)

    def _object(self, asked: Asked, obj: Manifest, status: int = 200, warnings: tuple[str, ...] = ()) -> web.Response:
        headers = {"Warning": ", ".join(f'299 - "{w}"' for w in warnings)} if warnings else None
        body = obj
        if asked.call.verb in _READS and "as=Table" in asked.request.headers.get("Accept", ""):
            version = obj["metadata"]["resourceVersion"]
            body = table(asked.kind, [obj], version, asked.query.get("includeObject", "Metadata"))
        return web.json_response(body, status=status, headers=headers)

    def _list(self, asked: Asked) -> web.Response:
        matches = selectors.both(asked.query.get("labelSelector"), asked.query.get("fieldSelector"))
        store, kind = self._registry.store, asked.kind
        found = [o for o in store.all(kind.id, asked.call.namespace or None) if matches(o)]
        if "as=Table" in asked.request.headers.get("Accept", ""):
            include = asked.query.get("includeObject", "Metadata")
            return web.json_response(table(kind, found, str(store.version), include))
        meta = {"resourceVersion": str(store.version)}
        return web.json_response(
            {"kind": f"{kind.title}List", "apiVersion": kind.api_version, "metadata": meta, "items": found}
        )

    async def _create(self, asked: Asked) -> web.Response:
        obj = await _body(asked.request)
        if asked.kind is ACCESS_REVIEWS:
            return web.json_response(self._review(obj), status=201)
        warnings = _check_fields(asked, obj)
        namespace = asked.call.namespace or ("default" if asked.kind.namespaced else "")
        created = self._registry.create(asked.kind, namespace, obj, asked.writer(), asked.dry_run)
        return self._object(asked, created, 201, warnings)

    async def _update(self, asked: Asked) -> web.Response:
        obj = await _body(asked.request)
        warnings = _check_fields(asked, obj)
        changed = self._write(asked, obj)
        return self._object(asked, changed, warnings=warnings)

    async def _patch(self, asked: Asked) -> web.Response:
        media, text = asked.request.content_type, await asked.request.text()
        accepted = _PATCHES if asked.kind.custom else (*_PATCHES, _STRATEGIC)
        if media not in accepted:
            raise errors.unsupported_media_type(", ".join(accepted))
        if media == APPLY:
            return self._apply(asked, _parsed(text))
        patch = _parsed(text)
        current = self._registry.get(asked.kind, asked.call.namespace, asked.name)
        if media == "application/json-patch+json":
            new = patches.json_patch(current, patch)
        elif not isinstance(patch, dict):
            raise errors.bad_request("a merge patch is an object")
        else:
            new = patches.strategic(current, patch) if media == _STRATEGIC else patches.merge(current, patch)
        warnings = _check_fields(asked, new)
        return self._object(asked, self._write(asked, new), warnings=warnings)

    def _apply(self, asked: Asked, applied: Any) -> web.Response:
        if not asked.query.get("fieldManager"):
            text = 'PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch'
            raise ApiError(422, "Invalid", text)
        if not isinstance(applied, dict):
            raise errors.bad_request("the body of an apply is one object")
        kind, namespace, name = asked.kind, asked.call.namespace, asked.name
        meta = applied.setdefault("metadata", {})
        if meta.setdefault("name", name) != name:
            raise errors.bad_request(
                f"the name of the object ({meta['name']}) does not match the name on the URL ({name})"
            )
        if meta.pop("managedFields", None):
            raise errors.bad_request("metadata.managedFields must be nil")
        warnings, writer = _check_fields(asked, applied), asked.writer("Apply")
        live = self._registry.store.get(self._registry.key(kind, namespace, name))
        if live is None:
            owned = [writer.entry(set(ownership.leaves(applied)), now())]
            created = self._registry.create(kind, namespace, applied, writer, asked.dry_run, owned)
            return self._object(asked, created, 201, warnings)
        version = meta.pop("resourceVersion", None)
        new = ownership.apply(live, applied, writer, flag(asked.request, "force"), now())
        if version:
            new["metadata"]["resourceVersion"] = version
        return self._object(asked, self._write(asked, new, new["metadata"]["managedFields"]), warnings=warnings)

    def _write(self, asked: Asked, new: Manifest, managed: list[Manifest] | None = None) -> Manifest:
        namespace, writer = asked.call.namespace, asked.writer()
        return self._registry.update(asked.kind, namespace, asked.name, new, writer, asked.dry_run, managed)

    async def _delete(self, asked: Asked) -> web.Response:
        options = await _body(asked.request) if asked.request.can_read_body else {}
        kind, namespace, name = asked.kind, asked.call.namespace, asked.name
        meta = self._registry.get(kind, namespace, name)["metadata"]
        for field, value in (options.get("preconditions") or {}).items():
            if meta.get(field) != value:
                raise errors.conflict(kind, name)
        gone = self._registry.delete(kind, namespace, name, asked.dry_run or bool(options.get("dryRun")))
        if gone["metadata"].get("finalizers"):
            return web.json_response(gone)
        details = {"name": name, "group": kind.group, "kind": kind.plural, "uid": gone["metadata"]["uid"]}
        return web.json_response(_success() | {"details": details})

    def _delete_all(self, asked: Asked) -> web.Response:
        matches = selectors.both(asked.query.get("labelSelector"), asked.query.get("fieldSelector"))
        for obj in list(self._registry.store.all(asked.kind.id, asked.call.namespace or None)):
            if matches(obj):
                meta = obj["metadata"]
                self._registry.delete(asked.kind, meta.get("namespace", ""), meta["name"], asked.dry_run)
        return web.json_response(_success())

    def _review(self, review: Manifest) -> Manifest:
        said = review.get("spec", {}).get("resourceAttributes", {})
        kind = next((k for k in KINDS if (k.group, k.plural) == (said.get("group", ""), said.get("resource"))), None)
        allowed = kind is not None and self._faults.allows(
            Call(said.get("verb", ""), kind, said.get("namespace", ""), said.get("name"), said.get("subresource"))
        )
        reason = "" if kind else "the sandbox has no such resource"
        status = {"allowed": allowed} | ({"reason": reason} if reason else {})
        return {**review, "kind": ACCESS_REVIEWS.title, "apiVersion": ACCESS_REVIEWS.api_version, "status": status}

    async def _log(self, asked: Asked) -> web.StreamResponse:
        pod = self._registry.get(PODS, asked.call.namespace, asked.name)
        return await streams.log(asked.request, self._workloads, pod)


def _success() -> Manifest:
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise errors.bad_request(f"the body is neither JSON nor YAML: {error}") from error


async def _body(request: web.Request) -> Manifest:
    media = request.content_type
    if "protobuf" in media:
        raise errors.unsupported_media_type("application/json, application/yaml")
    parsed = _parsed(await request.text())
    if not isinstance(parsed, dict):
        raise errors.bad_request("the body of the request is not an object")
    return parsed


def _check_fields(asked: Asked, obj: Manifest) -> tuple[str, ...]:
    """Fields that the CRD does not know: refused when asked strictly, else warnings (and pruned on the way in)."""
    wanted = asked.query.get("fieldValidation", "Warn")
    if asked.kind is not INFERENCE_SERVICES or asked.call.subresource or wanted == "Ignore":
        return ()
    unknown = admission.unknown_fields(obj)
    if unknown and wanted == "Strict":
        raise admission.strict_decoding_error(unknown)
    return tuple(f'unknown field \\"{path}\\"' for path in unknown)
