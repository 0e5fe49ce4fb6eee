from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from model_release.web.app import create_app

from .world import Gate, World, example

PREFIX = "/model-releases"


@pytest.fixture
def world() -> World:
    return example()


Open = Callable[..., TestClient]


@pytest.fixture
def browse(world: World) -> Open:
    """A client of the app as Airflow mounts it; signed in as `user`, or as nobody."""

    def open_(user: str | None = "ada", gate: Gate | None = None, accept: str = "text/html") -> TestClient:
        outer = FastAPI()
        outer.mount(PREFIX, create_app(world, gate or Gate(), PREFIX))
        headers = {"accept": accept} | ({"x-user": user} if user else {})
        return TestClient(outer, base_url=f"http://testserver{PREFIX}", headers=headers, raise_server_exceptions=False)

    return open_


def row(browse: Open, name: str) -> dict[str, Any]:
    """A service of the fleet, as the page's own API tells of it."""
    found: dict[str, Any] = next(it for it in browse().get("/api/fleet").json()["services"] if it["service"] == name)
    return found
