"""The pages, and the same as JSON. All of it is GET: who wants to act does so in Airflow."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from jinja2 import Environment

from model_release.errors import SpecError
from model_release.judging.record import Record
from model_release.web import past
from model_release.web.access import Viewer, dag_of
from model_release.web.fleet import fleet
from model_release.web.release import release
from model_release.web.service import service, traffic
from model_release.web.sources import Sources, read
from model_release.web.traffic import RANGES, series

Json = dict[str, Any]

# Seconds between two looks of an open page: at a canary, and at what rests.
BUSY, CALM = 3, 15

_RELEASE = re.compile(r"(?P<model>[a-z][-a-z0-9]*)-\d{8}T\d{6}(-[0-9a-f]{8})?")
_NEVER_CACHED = {"Cache-Control": "private, no-cache"}


def viewer(request: Request) -> Viewer:
    """The signed-in user of this request, whom the app's own dependency has noted before any route is asked."""
    found: Viewer = request.state.viewer
    return found


Who = Annotated[Viewer, Depends(viewer)]


class Pages:
    """The routes over their sources. Each is small: who may see it, what it shows, HTML or JSON."""

    def __init__(self, sources: Sources, templates: Environment) -> None:
        self._sources, self._templates = sources, templates

    def router(self) -> APIRouter:
        router = APIRouter()

        @router.get("/")
        def show_fleet(request: Request, who: Who) -> Response:
            shown = fleet(self._sources, who.specs, who.troubles)
            busy = any(row["stage"] or row["canary"] for row in shown["services"])
            return self._page(request, "fleet.html", shown, busy)

        @router.get("/releases")
        def show_history(
            request: Request,
            who: Who,
            model: str | None = None,
            service: str | None = None,
            outcome: str | None = None,
            before: str | None = None,
        ) -> Response:
            asked = {"model": model, "service": service, "outcome": outcome}
            shown = self._history(who, asked, before, past.PAGE)
            choices = {
                "model": sorted(who.specs),
                "service": sorted({spec.service.key for spec in who.specs.values()}),
                "outcome": list(past.CHOICES),
            }
            kept = {key: value for key, value in asked.items() if value}
            older = urlencode({**kept, "before": shown["next"]}) if shown["next"] else None
            page = shown | {"asked": asked, "choices": choices, "first": not before, "older": older}
            return self._page(request, "history.html", page | {"kept": urlencode(kept)}, busy=False)

        @router.get("/releases/{name}")
        def show_release(request: Request, name: str, who: Who, looks: str | None = None) -> Response:
            shown = self._release(who, name)
            return self._page(request, "release.html", shown | {"every_look": looks == "all"}, shown["running"])

        @router.get("/services/{namespace}/{name}")
        def show_service(request: Request, namespace: str, name: str, who: Who, range: str | None = None) -> Response:
            key = f"{namespace}/{name}"
            shown = service(self._sources, key, who.of_service(key))
            return self._service_page(request, shown, range)

        @router.get("/dags/{dag_id}")
        def show_dag(request: Request, dag_id: str, who: Who, range: str | None = None) -> Response:
            spec = self._spec_of_dag(who, dag_id)
            if spec is None:
                return self._message(request, f"{dag_id} releases no model", "Its runs leave no decision records.")
            shown = service(self._sources, spec.service.key, who.of_service(spec.service.key))
            return self._service_page(request, shown, range)

        @router.get("/dags/{dag_id}/runs/{run_id:path}")
        def show_run(request: Request, dag_id: str, run_id: str, who: Who, looks: str | None = None) -> Response:
            spec = self._spec_of_dag(who, dag_id)
            if spec is None:
                return self._message(request, f"{dag_id} releases no model", "Its runs leave no decision records.")
            name = self._sources.release_of(spec, run_id)
            record = self._sources.releases(spec.store).record(name) if name else None
            if record is None:
                return self._message(
                    request,
                    "Nothing recorded yet",
                    "The release writes its first words when it has found its version. This page looks again.",
                    poll=BUSY,
                )
            shown = self._shown(record, spec) | {"every_look": looks == "all"}
            return self._page(request, "release.html", shown, shown["running"])

        @router.get("/api/fleet")
        def api_fleet(who: Who) -> Response:
            return _json(fleet(self._sources, who.specs, who.troubles))

        @router.get("/api/releases")
        def api_history(
            who: Who,
            model: str | None = None,
            service: str | None = None,
            outcome: str | None = None,
            before: str | None = None,
            limit: Annotated[int, Query(ge=1, le=200)] = past.PAGE,
        ) -> Response:
            return _json(self._history(who, {"model": model, "service": service, "outcome": outcome}, before, limit))

        @router.get("/api/releases/{name}")
        def api_release(name: str, who: Who) -> Response:
            return _json(self._release(who, name))

        @router.get("/api/releases/{name}/record")
        def api_record(name: str, who: Who) -> Response:
            return _json(self._record(who, name).to_dict())

        @router.get("/api/releases/{name}/traffic")
        def api_release_traffic(name: str, who: Who) -> Response:
            return _json(self._release_traffic(who, name))

        @router.get("/api/services/{namespace}/{name}")
        def api_service(namespace: str, name: str, who: Who) -> Response:
            key = f"{namespace}/{name}"
            return _json(service(self._sources, key, who.of_service(key)))

        @router.get("/api/services/{namespace}/{name}/traffic")
        def api_traffic(namespace: str, name: str, who: Who, range: str = "1h") -> Response:
            key = f"{namespace}/{name}"
            return _json(traffic(self._sources, key, who.of_service(key), _range(range)))

        return router

    # What is shown

    def _history(self, who: Viewer, asked: Json, before: str | None, limit: int) -> Json:
        if asked["model"]:
            who.of_model(asked["model"])
        if asked["service"]:
            who.of_service(asked["service"])
        filters = {key: value or None for key, value in asked.items()}
        try:
            return past.releases(self._sources, who.specs, **filters, before=before or None, limit=limit)
        except SpecError as error:
            raise HTTPException(422, str(error)) from error

    def _record(self, who: Viewer, name: str) -> Record:
        match = _RELEASE.fullmatch(name)
        if match is None:
            raise HTTPException(404, f"{name} is no release's name.")
        spec = who.of_model(match["model"])
        record = self._sources.releases(spec.store).record(name)
        # Models that share a store: what is said of permission is said of the record's own model.
        if record is None or record.model != spec.model:
            raise HTTPException(404, f"The store has no record of {name}.")
        return record

    def _release(self, who: Viewer, name: str) -> Json:
        record = self._record(who, name)
        return self._shown(record, who.of_model(record.model))

    def _shown(self, record: Record, spec: Any) -> Json:
        return release(record, spec, read(self._sources.addresses).value or {})

    def _release_traffic(self, who: Viewer, name: str) -> Json:
        """The service's lines while the release ran, and a little before and after."""
        record = self._record(who, name)
        shown = self._shown(record, who.of_model(record.model))
        span = past.span(record)
        part = read(lambda: series(self._sources.prometheus(), who.of_model(record.model), start=span[0], end=span[1]))
        roles = {revision: role for role, revision in shown["revisions"].items() if revision}
        return {
            "start": span[0],
            "end": span[1],
            "roles": roles,
            "marks": shown["marks"],
            "lines": part.value,
            "trouble": part.trouble,
            "troubles": [],
        }

    def _spec_of_dag(self, who: Viewer, dag_id: str) -> Any:
        for model in who.models.specs:
            if dag_of(model) == dag_id:
                return who.of_model(model)
        return None

    # How it is answered

    def _service_page(self, request: Request, shown: Json, asked: str | None) -> Response:
        busy = bool(shown["stage"] or shown["canary"])
        chosen = _range(asked) if asked else ("15m" if busy else "1h")
        return self._page(request, "service.html", shown | {"range": chosen, "ranges": list(RANGES)}, busy)

    def _page(self, request: Request, template: str, shown: Json, busy: bool) -> Response:
        accepts = request.headers.get("accept", "")
        if "application/json" in accepts and "text/html" not in accepts:
            return _json(shown)
        body = self._templates.get_template(template).render(data=shown, **shown, poll=BUSY if busy else CALM).encode()
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        headers = {**_NEVER_CACHED, "ETag": tag, "Vary": "Accept, Cookie"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return HTMLResponse(body, headers=headers)

    def _message(self, request: Request, title: str, detail: str, poll: int | None = None) -> Response:
        page = self._templates.get_template("message.html").render(title=title, detail=detail, login=None, poll=poll)
        return HTMLResponse(page, headers=_NEVER_CACHED)


def _range(asked: str) -> str:
    if asked not in RANGES:
        raise HTTPException(422, f"range: {asked!r} is none of {', '.join(RANGES)}")
    return asked


def _json(shown: Json) -> Response:
    return JSONResponse(shown, headers=_NEVER_CACHED)
