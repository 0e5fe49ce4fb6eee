"""Somebody in Airflow's UI, as far as these tests need one; and what a program sees of a service meanwhile."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
from tests.patience import LIMIT
from tests.patience import until as wait_for


def picture(page: Any, name: str) -> None:
    """Keeps what the page shows, when pictures are wanted."""
    if folder := os.environ.get("SCREENS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"), animations="disabled")


class Person:
    """Signed in, with a theme and a width of window of their own."""

    def __init__(self, browser: Any, live: Any, *, theme: str = "light", width: int = 1280) -> None:
        from sandbox.airflow import USER

        self.url = str(live.airflow.url)
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        # Without motion: pictures are the same each time, and nothing is painted for ever where there is no GPU.
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme, reduced_motion="reduce"
        )
        self.page = context.new_page()
        self.page.set_default_timeout(LIMIT * 1000)
        self.page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        self.page.on(
            "console", lambda told: self.complaints.append(told.text) if "Content Security" in told.text else 0
        )
        self.page.goto(self.url)
        self.page.fill('input[name="username"]', USER)
        self.page.fill('input[name="password"]', live.airflow._password)
        self.page.keyboard.press("Enter")
        self.page.get_by_role("link", name="Releases").first.wait_for()

    @property
    def frame(self) -> Any:
        """Our page within Airflow's."""
        return self.page.frame_locator("iframe")

    def open(self, path: str) -> Any:
        """A path of ours, within Airflow's page."""
        self.page.goto(f"{self.url}/plugin/releases/model-releases{path}")
        self.frame.get_by_role("heading", level=1).wait_for()
        return self.frame

    def mark(self) -> None:
        """Leaves a mark on our page, which is gone when it is loaded again."""
        self.frame.locator("body").evaluate("() => { window.kept = true }")

    @property
    def reloaded(self) -> bool:
        return not self.frame.locator("body").evaluate("() => window.kept")

    def trigger(self, dag: str, version: str, note: str, name: str | None = None) -> None:
        """Fills in the form of a run, and submits it; `name` is that of a picture of the form."""
        self.page.goto(f"{self.url}/dags/{dag}")
        self.page.get_by_role("button", name=re.compile("Trigger")).first.click()
        self.page.locator('[name="element_note"]').fill(note)
        self.page.locator('[name="element_version"]').fill(version)
        if name is not None:
            picture(self.page, name)
        self.page.get_by_role("dialog").get_by_role("button", name="Trigger", exact=True).last.click()

    def close(self) -> None:
        self.page.context.close()
        assert self.complaints == []
        assert {host for host in self.hosts if not host.startswith("127.0.0.1")} <= {"localhost"}


def row(live: Any, service: str) -> Any:
    """What a program sees of the service."""
    api = live.airflow
    api.call("GET", "/dags", params={"limit": 1})
    headers = {"Authorization": api._session.headers["Authorization"]}
    answer = requests.get(f"{api.url}/model-releases/api/fleet", headers=headers, timeout=LIMIT)
    assert answer.status_code == 200
    return next(found for found in answer.json()["services"] if found["service"] == service)


def until(holds: Callable[[Any], Any], live: Any, service: str, what: str) -> Any:
    """The service's row, once it is as said."""

    def seen() -> Any:
        found = row(live, service)
        return found if holds(found) else None

    return wait_for(seen, lambda: f"{what}: {row(live, service)}")


def is_at_rest(found: Any) -> bool:
    return bool(not found["stage"] and found["stable"])


def is_canary(found: Any) -> bool:
    return bool(found["canary"] and found["canary"]["percent"])
