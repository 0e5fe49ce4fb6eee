"""The Releases page as an app: every route behind the sign-in, every answer with the headers that protect it.

Airflow mounts apps of plugins without any authentication (docs/facts.md#apps-of-plugins-are-open), so this one brings
it: a route cannot be added without. Only the static files, which hold no data, are open.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.staticfiles import StaticFiles

from model_release.errors import ReleaseError
from model_release.web.access import Access, Viewer
from model_release.web.render import HERE, environment
from model_release.web.routes import Pages

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from model_release.web.sources import Sources

# Nothing from another host, nothing inline, and in no frame but Airflow's own.
CSP = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    )
)
HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_TITLES = {401: "Please sign in", 403: "Not for you to see", 404: "There is nothing here", 422: "Not understood"}


def create_app(sources: Sources, access: Access, prefix: str) -> FastAPI:
    """The app, to be mounted at `prefix` (a path without a slash at its end; Airflow's own path included)."""

    def signed_in(request: Request, user: Any = Depends(access.user)) -> None:  # noqa: B008 -- FastAPI's way
        request.state.viewer = Viewer(access, user, sources.models())

    app = FastAPI(
        title="Releases",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        dependencies=[Depends(signed_in)],
    )
    app.add_middleware(_Protected)
    templates = environment(prefix)
    app.include_router(Pages(sources, templates).router())
    app.mount("/static", _Files(directory=HERE / "static"), name="static")

    def refused(request: Request, status: int, detail: str, headers: Any = None) -> Response:
        if wants_json(request):
            return JSONResponse({"detail": detail}, status, headers)
        page = templates.get_template("message.html").render(
            title=_TITLES.get(status, "Something is wrong"),
            detail=detail,
            login=access.login(f"{prefix}/") if status == 401 else None,
            poll=None,
        )
        return HTMLResponse(page, status, headers)

    @app.exception_handler(AnyHTTPException)
    async def http_refused(request: Request, error: AnyHTTPException) -> Response:
        return refused(request, error.status_code, str(error.detail), error.headers)

    @app.exception_handler(RequestValidationError)
    async def not_understood(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return refused(request, 422, f"{where}: {first['msg']}")

    @app.exception_handler(ReleaseError)
    async def trouble(request: Request, error: ReleaseError) -> Response:
        return refused(request, 503 if error.transient else 502, str(error))

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        # Outside of every middleware, so it brings the headers itself; what it was, is in the log.
        return refused(request, 500, f"The page could not be made ({type(error).__name__}).", HEADERS)

    return app


def wants_json(request: Request) -> bool:
    """A program that asks gets JSON: below /api always, elsewhere when it accepts JSON and not HTML."""
    accepts = request.headers.get("accept", "")
    below = request.url.path.removeprefix(request.scope.get("root_path", ""))
    return below.startswith("/api/") or ("application/json" in accepts and "text/html" not in accepts)


class _Files(StaticFiles):
    """The same names hold other files after an upgrade: a browser that has one asks whether it is still the same."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        answer = super().file_response(*args, **kwargs)
        answer.headers["Cache-Control"] = "no-cache"
        return answer


class _Protected:
    """Adds the headers to every answer, those of errors and of static files included."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *headers]
            await send(message)

        await self._app(scope, receive, protected)
