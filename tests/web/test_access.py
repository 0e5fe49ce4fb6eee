"""Who sees what: nobody without a sign-in, and nobody a release of a DAG that is not theirs to read."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from fastapi.routing import APIRoute

from model_release.web.app import HEADERS, create_app

from .conftest import Open
from .makers import NOW, claim_of, lease_of, record_of, service_of, spec
from .world import Gate, World

PAGES = ("/", "/releases", "/services/models/digits", "/dags/release_digits", "/dags/release_digits/runs/manual__0")
DATA = ("/api/fleet", "/api/releases", "/api/services/models/digits", "/api/services/models/digits/traffic")


def of_release(world: World, model: str) -> list[str]:
    name = next(name for name, record in world.records.items() if record.model == model)
    api = f"/api/releases/{name}"
    return [f"/releases/{name}", api, f"{api}/record", f"{api}/traffic"]


def test_anonymous_is_401_on_every_route_there_is(world: World, browse: Open) -> None:
    app = create_app(world, Gate(), "/model-releases")
    paths = [route.path for route in app.routes if isinstance(route, APIRoute)]
    assert len(paths) >= 13
    for path in paths:
        for text in ("namespace", "name", "dag_id", "run_id:path"):
            path = path.replace(f"{{{text}}}", "x")
        answer = browse(user=None).get(path)
        assert answer.status_code == 401, path
        assert "digits" not in answer.text
    assert not world.reads, "nothing is read for somebody unknown"


@pytest.mark.parametrize("path", PAGES)
def test_an_anonymous_page_offers_to_sign_in(browse: Open, path: str) -> None:
    answer = browse(user=None).get(path)
    assert answer.status_code == 401
    assert 'href="/auth/login/?next=/model-releases/"' in answer.text


@pytest.mark.parametrize("path", DATA)
def test_an_anonymous_program_gets_json(browse: Open, path: str) -> None:
    answer = browse(user=None, accept="application/json").get(path)
    assert (answer.status_code, answer.json()) == (401, {"detail": "Not authenticated"})


def test_static_files_are_open_and_hold_no_data(browse: Open) -> None:
    answer = browse(user=None).get("/static/style.css")
    assert answer.status_code == 200
    assert browse(user=None).get("/static/../app.py").status_code in (401, 404)
    assert browse(user=None).get("/static/%2e%2e/app.py").status_code in (401, 404)


@pytest.mark.parametrize("name", ["style.css", "live.js", "charts.js", "picture.js", "theme.js", "icon.svg"])
def test_static_files_are_asked_for_again_after_an_upgrade(browse: Open, name: str) -> None:
    """Their names stay the same, and a browser left to itself keeps a file for a tenth of its age."""
    answer = browse(user=None).get(f"/static/{name}")
    assert answer.headers["cache-control"] == "no-cache"
    again = browse(user=None).get(f"/static/{name}", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.headers["cache-control"]) == (304, "no-cache")


def test_without_the_dag_its_releases_are_403_and_in_no_list(world: World, browse: Open) -> None:
    gate = Gate({"eve": {"release_faces"}})
    seen = browse("eve", gate)
    for path in (*PAGES[2:], *DATA[2:], *of_release(world, "digits")):
        answer = seen.get(path)
        assert answer.status_code == 403, path
        assert "predictor" not in answer.text
    for path in ("/releases?model=digits", "/releases?service=models/digits", "/api/releases?model=digits"):
        assert seen.get(path).status_code == 403, path
    fleet = seen.get("/api/fleet").json()
    assert [row["service"] for row in fleet["services"]] == ["models/faces"]
    assert {row["model"] for row in seen.get("/api/releases").json()["releases"]} == {"faces"}
    assert "digits" not in seen.get("/").text + seen.get("/releases").text
    for path in of_release(world, "faces"):
        assert seen.get(path).status_code == 200


def test_models_that_share_service_and_store_stay_apart(world: World, browse: Open) -> None:
    """The index of a shared store holds both; one of them is not eve's to see, and is the newer one."""
    world.specs = {
        "ours": spec("ours", service="shared", store="s3://models/shared/"),
        "theirs": spec("theirs", service="shared", store="s3://models/shared/"),
    }
    mine = world.add(record_of(world.specs["ours"]))
    theirs = world.add(record_of(world.specs["theirs"], number=3))
    eve = browse("eve", Gate({"eve": {"release_ours"}}))
    row = eve.get("/api/fleet").json()["services"][0]
    assert row["last"]["release"] == mine.release
    assert row["models"] == ["ours"]
    for path in ("/", "/releases", "/services/models/shared", f"/releases/{mine.release}"):
        answer = eve.get(path)
        assert answer.status_code == 200, path
        assert theirs.release not in answer.text
    assert eve.get(f"/releases/{theirs.release}").status_code == 403
    # The one that runs now is theirs: how the service stands is told, and not whose doing it is.
    world.live["shared"] = service_of("shared", {1: 90, 2: 10})
    world.held["shared"] = lease_of("shared", claim_of("theirs", theirs.release, 10))
    for path in ("/api/fleet", "/api/services/models/shared", "/api/services/models/shared/traffic"):
        assert "theirs" not in eve.get(path).text, path
    row = eve.get("/api/services/models/shared").json()
    assert (row["canary"]["percent"], row["stage"], row["holder"]) == (10, "open at 10 %", None)
    assert browse().get("/api/services/models/shared").json()["release"] == theirs.release
    # A record under another model's name is nobody's.
    world.records[f"ours-20260101T000000-{1:08x}"] = theirs
    assert eve.get(f"/releases/ours-20260101T000000-{1:08x}").status_code == 404


@pytest.mark.parametrize("others", [["ours"], ["ours", "too"]])
def test_what_is_hidden_does_not_hide_what_may_be_seen(world: World, browse: Open, others: list[str]) -> None:
    """The newest sixty releases of a shared service are not eve's to see; her own is older than all of them."""
    names = [*others, "theirs"]
    world.specs = {name: spec(name, service="shared", store="s3://models/shared/") for name in names}
    mine = world.add(record_of(world.specs["ours"], started=NOW - timedelta(days=9)))
    for number in range(60):
        world.add(record_of(world.specs["theirs"], started=NOW - timedelta(hours=number), number=100 + number))
    eve = browse("eve", Gate({"eve": {f"release_{name}" for name in others}}))
    assert [one["release"] for one in eve.get("/api/releases").json()["releases"]] == [mine.release]
    assert eve.get("/api/releases").json()["next"] is None
    assert mine.release in eve.get("/releases").text
    page = eve.get("/services/models/shared").text
    assert mine.release in page
    assert "Nothing was ever released here" not in page


def test_what_does_not_exist_is_404_in_words(browse: Open) -> None:
    for path in ("/services/models/nothing", "/releases/nothing", "/releases/ghost-20260101T000000-00000000", "/what"):
        answer = browse().get(path)
        assert answer.status_code == 404, path
        assert "There is nothing here" in answer.text
    assert browse().get("/releases/digits-20260101T000000-00000000").status_code == 404
    assert browse().get("/dags/sweep").status_code == 200


def test_nothing_but_reading(browse: Open) -> None:
    for method in ("post", "put", "patch", "delete"):
        assert getattr(browse(), method)("/api/fleet").status_code == 405
        assert getattr(browse(user=None), method)("/").status_code in (401, 405)


@pytest.mark.parametrize("path", ["/", "/api/fleet", "/static/live.js", "/releases/nothing", "/releases?outcome=no"])
@pytest.mark.parametrize("user", ["ada", None])
def test_every_answer_has_the_headers(browse: Open, path: str, user: str | None) -> None:
    answer = browse(user).get(path)
    assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'self'"


def test_a_broken_page_has_the_headers_and_tells_no_secret(
    world: World, browse: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Any:
        raise RuntimeError("password=hunter2")

    monkeypatch.setattr(world, "models", broken)
    answer = browse().get("/")
    assert answer.status_code == 500
    assert answer.headers["content-security-policy"] == HEADERS["Content-Security-Policy"]
    assert "hunter2" not in answer.text


def test_pages_and_programs_see_the_same(browse: Open) -> None:
    page = browse(accept="application/json").get("/")
    assert page.headers["content-type"] == "application/json"
    assert page.json() == browse().get("/api/fleet").json()
