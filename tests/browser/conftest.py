"""Chromium, and the pages served alone over a world written by hand."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from tests.patience import LIMIT, until
from tests.web.world import Gate, World, example

from model_release.web.app import create_app
from sandbox.browser import chromium

PREFIX = "/model-releases"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The live tests release what the end-to-end tests have released, and so come after them."""
    items.sort(key=lambda item: item.path.name == "test_live.py" and item.path.parent.name == "browser")


@pytest.fixture(scope="module")  # Playwright keeps an event loop in this thread, and later tests have their own
def browser() -> Iterator[Any]:
    """Chromium, started once."""
    with chromium() as started:
        yield started


@dataclass
class Site:
    """The pages over a world, on a port of their own; the world may be exchanged at any moment."""

    world: World
    url: str = ""
    server: Any = field(default=None)


@pytest.fixture(scope="session")
def _site() -> Iterator[Site]:
    site = Site(example(datetime.now(UTC)))

    class Exchanged:
        """Passes every question on to the world of the moment."""

        def __getattr__(self, name: str) -> Any:
            return getattr(site.world, name)

    outer = FastAPI()
    outer.mount(PREFIX, create_app(Exchanged(), Gate(everybody="ada"), PREFIX))

    @outer.get("/airflow")
    def airflow(theme: str = "dark") -> Any:
        """A page that shows ours as Airflow does: in a sandboxed frame, with its theme as a class."""
        from fastapi.responses import HTMLResponse

        return HTMLResponse(
            f'<!doctype html><html class="{theme}"><link rel="icon" href="data:,"><body>'
            '<iframe id="frame" width="1200" height="800" '
            f'sandbox="allow-scripts allow-same-origin allow-forms allow-downloads" src="{PREFIX}/"></iframe>'
        )

    site.server = uvicorn.Server(uvicorn.Config(outer, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=site.server.run, daemon=True)
    thread.start()
    until(lambda: site.server.started, "the pages' server does not start")
    port = site.server.servers[0].sockets[0].getsockname()[1]
    site.url = f"http://127.0.0.1:{port}"
    try:
        yield site
    finally:
        site.server.should_exit = True
        thread.join(LIMIT)


@pytest.fixture
def site(_site: Site) -> Site:
    """The example's world, fresh for each test."""
    _site.world = example(datetime.now(UTC))
    return _site


@dataclass
class Watched:
    """A page, and what it did that it should not: other hosts asked, errors, violations of the policy."""

    page: Any
    hosts: set[str] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)

    def hear(self, told: Any) -> None:
        """What Chromium says of the frame is true, and Airflow's choice."""
        if told.type in ("error", "warning") and "can escape its sandboxing" not in told.text:
            self.complaints.append(told.text)


@pytest.fixture
def watched(browser: Any, site: Site) -> Iterator[Any]:
    """Opens pages that are watched; what they complained of fails the test at its end."""
    contexts: list[Any] = []
    pages: list[Watched] = []

    def open_(path: str, *, width: int = 1280, theme: str = "light", whole: bool = False) -> Watched:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
        contexts.append(context)
        context.set_default_timeout(LIMIT * 1000)
        one = Watched(context.new_page())
        pages.append(one)
        one.page.on("request", lambda request: one.hosts.add(request.url.split("/")[2]))
        one.page.on("console", one.hear)
        one.page.on("pageerror", lambda error: one.complaints.append(str(error)))
        one.page.goto(f"{site.url}{path}" if whole else f"{site.url}{PREFIX}{path}")
        return one

    yield open_
    for context in contexts:
        context.close()
    for one in pages:
        assert one.complaints == []
        assert one.hosts <= {site.url.removeprefix("http://")}, "no other host is asked for anything"
