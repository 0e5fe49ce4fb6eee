"""The page in Airflow's own UI, while real releases run: what a person sees from the form to the verdict.

The releases are of versions that the store has: those of the end-to-end tests, which these follow in one session, or
of `make release`, which is run first where nothing was released yet.

The pictures in docs/screens are taken here: `make screens` runs these tests with SCREENS set to that folder.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

PROJECT = Path(__file__).resolve().parents[2]
DAG = "release_digits"
SERVICE = "models/digits"


def picture(page: Any, name: str) -> None:
    """Keeps what the page shows, when pictures are wanted."""
    if folder := os.environ.get("SCREENS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


class Person:
    """Somebody in Airflow's UI, signed in."""

    def __init__(self, browser: Any, live: Any, *, theme: str = "light", width: int = 1280) -> None:
        from sandbox.airflow import USER

        self.url = str(live.airflow.url)
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
        self.page = context.new_page()
        self.page.set_default_timeout(30_000)
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

    def trigger(self, version: str, note: str, name: str | None = None) -> None:
        """Fills in the form of a run, and submits it."""
        self.page.goto(f"{self.url}/dags/{DAG}")
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


@pytest.fixture
def person(browser: Any, live: Any) -> Iterator[Any]:
    """Signs people in; each looks with a theme and a width of their own."""
    known: list[Person] = []

    def sign_in(**how: Any) -> Person:
        known.append(Person(browser, live, **how))
        return known[-1]

    yield sign_in
    for one in known:
        one.close()


@pytest.fixture(scope="module")
def records(live: Any) -> list[dict[str, Any]]:
    """What was released so far: a good version that is not live, and a bad one, among others; and users who ask."""
    if not any(record["outcome"] == "rolled_back" for record in live.records()):
        command = [sys.executable, "-m", "sandbox", "release"]
        path = os.pathsep.join(str(PROJECT / part) for part in ("plugins", "include"))
        subprocess.run(
            [*command, "--state", str(live.state), "--airflow", str(live.project)],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            timeout=900,
            check=False,
        )
    live.sandbox("load", "--service", SERVICE, "--rate", "40")
    found: list[dict[str, Any]] = live.records()
    assert {"first", "promoted", "rolled_back"} <= {record["outcome"] for record in found}
    return found


def row(live: Any) -> Any:
    """What a program sees of the service."""
    import requests

    api = live.airflow
    api.call("GET", "/dags", params={"limit": 1})
    headers = {"Authorization": api._session.headers["Authorization"]}
    answer = requests.get(f"{api.url}/model-releases/api/fleet", headers=headers, timeout=30)
    assert answer.status_code == 200
    return next(found for found in answer.json()["services"] if found["service"] == SERVICE)


def until(holds: Callable[[Any], Any], live: Any, what: str, patience: float = 240.0) -> Any:
    """The service's row, once it is as said."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if holds(found := row(live)):
            return found
        time.sleep(0.5)
    raise AssertionError(f"{what}: not within {patience:.0f} s; {row(live)}")


def is_canary(found: Any) -> bool:
    return bool(found["canary"] and found["canary"]["percent"])


@pytest.mark.e2e
@pytest.mark.walk
def test_a_canary_from_the_form_to_its_promotion(live: Any, records: list[dict[str, Any]], person: Any) -> None:
    at_rest = until(lambda found: not found["stage"] and found["stable"], live, "a service at rest")
    good = {record["version"] for record in records if record["outcome"] in ("first", "promoted")}
    version = sorted(good - {at_rest["stable"]["version"]})[0]
    one, dark = person(), person(theme="dark")
    one.trigger(version, "Asked for in a browser", "form")
    found = until(is_canary, live, "a canary")
    release = found["last"]["release"]
    frame = one.open("/")
    frame.get_by_text("on the canary").wait_for()
    picture(one.page, "fleet")
    seen = dark.open(f"/releases/{release}")
    seen.locator("body").evaluate("() => { window.kept = true }")
    seen.get_by_text("Note: Asked for in a browser").wait_for()
    frame = one.open(f"/services/{SERVICE}?range=5m")
    frame.locator(".chart canvas").first.wait_for()
    picture(one.page, "service-canary")
    seen.locator("#course .chart canvas").first.wait_for(timeout=60_000)
    picture(dark.page, "release-canary-dark")
    seen.locator("#how").get_by_text("Promoted", exact=True).wait_for(timeout=240_000)
    assert seen.locator("body").evaluate("() => window.kept"), "it came by itself, without a reload"
    assert live.service().storage_uri.endswith(f"/{version}/")
    picture(dark.page, "release-promoted-dark")
    until(lambda found: not found["stage"], live, "the release's end")


@pytest.mark.e2e
@pytest.mark.walk
def test_a_roll_back_says_why(live: Any, records: list[dict[str, Any]], person: Any) -> None:
    until(lambda found: not found["stage"], live, "a service at rest")
    bad = next(record["version"] for record in records if record["outcome"] == "rolled_back")
    one = person()
    one.trigger(bad, "The bad one, once more")
    found = until(is_canary, live, "a canary")
    release = found["last"]["release"]
    frame = one.open(f"/releases/{release}")
    frame.locator("#how").get_by_text("Rolled back", exact=True).wait_for(timeout=240_000)
    assert "canary requests failed" in frame.locator("[data-announce]").inner_text()
    frame.locator("#course .chart canvas").first.wait_for()
    picture(one.page, "release-rolled-back")
    one.open("/releases")
    picture(one.page, "history")
    narrow = person(width=390)
    narrow.page.goto(f"{narrow.url}/model-releases/releases/{release}")
    narrow.page.get_by_text("Rolled back", exact=True).first.wait_for()
    assert narrow.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    narrow.page.locator("#course .chart canvas").first.wait_for()
    picture(narrow.page, "release-rolled-back-narrow")


@pytest.mark.e2e
@pytest.mark.walk
def test_dag_and_run_have_a_tab_of_the_page(live: Any, records: list[dict[str, Any]], person: Any) -> None:
    run = records[-1]["run"]["run_id"]
    one = person()
    one.page.goto(f"{one.url}/dags/{DAG}")
    one.page.get_by_role("link", name="Service").click()
    one.frame.get_by_role("heading", name=SERVICE).wait_for()
    one.page.goto(f"{one.url}/dags/{DAG}/runs/{quote(run, safe='')}/plugin/release")
    one.frame.get_by_role("heading", name="What happened").wait_for()
