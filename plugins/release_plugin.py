"""The one file that Airflow loads as a plugin: the Releases page, and its tabs on a DAG and on a run.

Scheduler, triggerer and every task load plugins, too, and need nothing of the page: the app, and all that it imports,
is made by the first request that comes for it.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from airflow.plugins_manager import AirflowPlugin

from model_release.addresses import ROUTE


class FirstAsked:
    """An ASGI app that is made when it is first asked for, in a thread: making it takes a second, once."""

    def __init__(self) -> None:
        self._app: Any = None
        self._lock = asyncio.Lock()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._app is None:
            async with self._lock:
                self._app = self._app or await asyncio.to_thread(self._made)
        await self._app(scope, receive, send)

    @staticmethod
    def _made() -> Any:
        from model_release.web import airflow
        from model_release.web.app import create_app

        sources = airflow.AirflowSources(airflow.model_files())
        sources.warm()
        return create_app(sources, airflow.AirflowAccess(), f"{airflow.prefix()}{ROUTE}")

    def __repr__(self) -> str:
        return "model_release.web.app"


def _below() -> str:
    """Airflow's own path, where a proxy puts one before it."""
    from urllib.parse import urlsplit

    from airflow.configuration import conf

    return urlsplit(str(conf.get("api", "base_url", fallback=""))).path.rstrip("/") + ROUTE


def _view(name: str, destination: str, url_route: str, path: str) -> dict[str, str]:
    below = _below()
    return {
        "name": name,
        "destination": destination,
        "url_route": url_route,
        "href": f"{below}{path}",
        "icon": f"{below}/static/icon.svg",
        "icon_dark_mode": f"{below}/static/icon-dark.svg",
    }


class ReleasePlugin(AirflowPlugin):
    """The page in Airflow's navigation, the service on its DAG's page, the release on its run's."""

    name = "model_release"
    fastapi_apps: ClassVar[list[dict[str, Any]]] = [{"app": FirstAsked(), "url_prefix": ROUTE, "name": "Releases"}]
    external_views: ClassVar[list[dict[str, Any]]] = [
        {**_view("Releases", "nav", "releases", "/"), "nav_top_level": True},
        _view("Service", "dag", "released-service", "/dags/{DAG_ID}"),
        _view("Release", "dag_run", "release", "/dags/{DAG_ID}/runs/{RUN_ID}"),
    ]
