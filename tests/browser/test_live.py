"""The page in Airflow's own UI, while real releases run: what a person sees from the form to the verdict.

The releases are of versions that the store has: those of the end-to-end tests, which these follow in one session, or
of `make release`, which is run first where nothing was released yet.

The pictures in docs/screens are taken here: `make screens` runs these tests with SCREENS set to that folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from tests.e2e.models import candidate
from tests.patience import until as wait_for

from .person import Person, is_at_rest, is_canary, picture, until

pytestmark = [pytest.mark.e2e, pytest.mark.walk]

PROJECT = Path(__file__).resolve().parents[2]
DAG = "release_digits"
SERVICE = "models/digits"
# A second service, where a person is asked before a promotion.
ASKED = "postcodes"


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
def records(live: Any) -> Iterator[list[dict[str, Any]]]:
    """What was released so far: a good version that is not live, and a bad one, among others; and users who ask."""
    if not any(record["outcome"] == "rolled_back" for record in live.records()):
        command = [sys.executable, "-m", "sandbox", "release"]
        path = os.pathsep.join(str(PROJECT / part) for part in ("plugins", "include"))
        subprocess.run(
            [*command, "--state", str(live.state), "--airflow", str(live.project)],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            check=False,
        )
    live.sandbox("load", "--service", SERVICE, "--rate", "40")
    found: list[dict[str, Any]] = live.records()
    assert {"first", "promoted", "rolled_back"} <= {record["outcome"] for record in found}
    yield found
    live.sandbox("load", "--end")


def test_a_canary_from_the_form_to_its_promotion(live: Any, records: list[dict[str, Any]], person: Any) -> None:
    at_rest = until(is_at_rest, live, SERVICE, "a service at rest")
    good = {record["version"] for record in records if record["outcome"] in ("first", "promoted")}
    version = sorted(good - {at_rest["stable"]["version"]})[0]
    one, dark, fleet = person(), person(theme="dark"), person()
    one.trigger(DAG, version, "Asked for in a browser", "form")
    release = until(is_canary, live, SERVICE, "a canary")["last"]["release"]
    frame = fleet.open("/")
    split = frame.locator(f'[id="s-{SERVICE}"] .canary-text')
    split.get_by_text("25 %").wait_for()
    fleet.mark()
    frame.locator('#pulse[data-state="live"]').wait_for()
    picture(fleet.page, "fleet")
    seen = dark.open(f"/releases/{release}")
    dark.mark()
    assert seen.locator("html").get_attribute("data-theme") == "dark"
    seen.get_by_text("Note: Asked for in a browser").wait_for()
    seen.locator("#course .chart canvas").first.wait_for()
    picture(dark.page, "release-canary-dark")
    frame = one.open(f"/services/{SERVICE}?range=5m")
    frame.locator(".chart canvas").first.wait_for()
    split.get_by_text("50 %").wait_for()
    picture(one.page, "service-canary")
    seen.locator("#how").get_by_text("Promoted", exact=True).wait_for()
    # The verdict stands there once the bake is over, too.
    seen.locator("[data-announce]").get_by_text("Promoted: 0 of").wait_for()
    split.wait_for(state="detached")
    assert not dark.reloaded, "it came by itself"
    assert not fleet.reloaded, "it came by itself"
    assert live.service().storage_uri.endswith(f"/{version}/")
    picture(dark.page, "release-promoted-dark")
    until(is_at_rest, live, SERVICE, "the release's end")
    run = live.records()[-1]["run"]["run_id"]
    conf = live.airflow.run(DAG, run)["conf"]
    assert (conf["version"], conf["note"]) == (version, "Asked for in a browser"), "what the form was given"


def test_a_roll_back_says_why(live: Any, records: list[dict[str, Any]], person: Any) -> None:
    until(is_at_rest, live, SERVICE, "a service at rest")
    bad = next(record["version"] for record in records if record["outcome"] == "rolled_back")
    one = person()
    one.trigger(DAG, bad, "The bad one, once more")
    release = until(is_canary, live, SERVICE, "a canary")["last"]["release"]
    frame = one.open(f"/releases/{release}")
    one.mark()
    frame.locator("#how").get_by_text("Rolled back", exact=True).wait_for()
    assert not one.reloaded, "it came by itself"
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


@pytest.fixture(scope="module")
def postcodes(live: Any, records: list[dict[str, Any]]) -> Iterator[str]:
    """The service where a person is asked: its first version is live, a better one is offered, users come."""
    content = yaml.safe_load((PROJECT / "include" / "models" / "digits.yaml").read_text())
    del content["training"]
    content |= {"model": ASKED, "source": {"directory": f"candidates/{ASKED}"}, "store": f"s3://models/{ASKED}/"}
    content |= {"approval": "before_promote", "answer_within": "5m"}
    content["service"]["name"] = ASKED
    content["rollout"] |= {"steps": [50], "bake": "0s"}
    candidate(live, ASKED, "20261101T000000", "first")
    (live.project / "include" / "models" / f"{ASKED}.yaml").write_text(yaml.safe_dump(content))
    dag = f"release_{ASKED}"
    live.airflow.wait_for_dag(dag)
    assert live.finished(dag, live.airflow.trigger(dag))["state"] == "success"
    live.sandbox("load", "--service", f"models/{ASKED}", "--rate", "40")
    candidate(live, ASKED, "20261102T000000", "better")
    return dag


def pending(live: Any, dag: str) -> Any:
    """The questions of the DAG that nobody has answered."""
    path = f"/dags/{dag}/dagRuns/~/hitlDetails"
    return live.airflow.call("GET", path, params={"response_received": "false"})["hitl_details"]


def test_an_approval_is_clicked_and_the_promotion_follows(live: Any, postcodes: str, person: Any) -> None:
    one, other = person(), person(theme="dark")
    run = live.airflow.trigger(postcodes)
    found = until(is_canary, live, f"models/{ASKED}", "a canary")
    seen = other.open(f"/releases/{found['last']['release']}")
    other.mark()
    question = f"{ASKED}: promote {found['canary']['revision']}?"
    # Airflow's list of required actions does not look again by itself.
    wait_for(lambda: pending(live, postcodes), "no question")
    one.page.goto(f"{one.url}/required_actions?response_received=false")
    one.page.get_by_text(question).first.click()
    one.page.get_by_text("The judge would promote it: 0 of").wait_for()
    one.page.locator('[name="element_reason"]').fill("Looks well in a browser")
    one.page.get_by_text("decide").first.wait_for()
    picture(one.page, "approval")
    assert live.service(ASKED).serving[found["canary"]["revision"]] == 50, "nothing moves before the answer"
    one.page.get_by_test_id("hitl-option-Promote").click()
    seen.locator("#how").get_by_text("Promoted", exact=True).wait_for()
    answer = seen.locator("#approvals tbody tr")
    answer.get_by_text("Looks well in a browser").wait_for()
    assert answer.locator('[data-name="Who"]').inner_text() == "admin"
    assert answer.locator('[data-name="Answer"]').inner_text() == "promote"
    seen.get_by_role("heading", name="Versions compared").evaluate("(heading) => heading.scrollIntoView()")
    picture(other.page, "release-versions-dark")
    assert not other.reloaded, "it came by itself"
    assert live.finished(postcodes, run)["state"] == "success"
    assert live.service(ASKED).serving == {found["canary"]["revision"]: 100}


def test_what_is_away_is_told_and_comes_back_by_itself(live: Any, records: list[dict[str, Any]], person: Any) -> None:
    until(is_at_rest, live, SERVICE, "a service at rest")
    one, store = person(), person(theme="dark")
    live.sandbox("stop", "prometheus")
    try:
        frame = one.open(f"/services/{SERVICE}?range=5m")
        frame.locator("#traffic .nodata").wait_for()
        assert "Prometheus" in frame.locator("#traffic .nodata").inner_text()
        frame.locator("#split").get_by_text("100 %").wait_for()
        assert frame.locator("#releases tbody tr").count() >= 3, "what does not need it is there"
        one.mark()
        picture(one.page, "prometheus-away")
    finally:
        live.sandbox("start", "prometheus")
    frame.locator(".chart canvas").first.wait_for()
    live.sandbox("stop", "s3")
    try:
        seen = store.open("/")
        seen.get_by_role("alert").get_by_text("Not everything can be shown").wait_for()
        store.mark()
        picture(store.page, "store-away-dark")
    finally:
        live.sandbox("start", "s3")
    seen.get_by_role("alert").wait_for(state="detached")
    assert not one.reloaded, "it came back by itself"
    assert not store.reloaded, "it came back by itself"


def test_dag_and_run_have_a_tab_of_the_page(live: Any, records: list[dict[str, Any]], person: Any) -> None:
    run = records[-1]["run"]["run_id"]
    one = person()
    one.page.goto(f"{one.url}/dags/{DAG}")
    one.page.get_by_role("link", name="Service").click()
    one.frame.get_by_role("heading", name=SERVICE).wait_for()
    one.page.goto(f"{one.url}/dags/{DAG}/runs/{quote(run, safe='')}/plugin/release")
    one.frame.get_by_role("heading", name="What happened").wait_for()
