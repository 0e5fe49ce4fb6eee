"""Text from forms, files and people ends up as text."""

from __future__ import annotations

import json
from html.parser import HTMLParser

from model_release.web.render import environment

from .conftest import Open
from .makers import LABELS, lease_of, record_of
from .world import World

HOSTILE = "<script>alert('x')</script>\"'><img src=x onerror=alert(1)>{{7*7}}</textarea>"


class Reader(HTMLParser):
    """What a browser would make of a page: its elements with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def hostile(world: World) -> str:
    """A release whose every text is hostile."""
    record = record_of(world.specs["faces"], evaluated=True, number=9, outcome="rolled_back", reason=HOSTILE)
    record.run |= {"note": HOSTILE, "url": "javascript:alert(1)"}
    record.version = HOSTILE
    record.baseline = {"revision": HOSTILE, "storage_uri": HOSTILE}
    record.canary = {"revision": HOSTILE}
    record.source = {"origin": HOSTILE, HOSTILE: "x"}
    record.plan = record.plan and record.plan | {
        "sentences": [HOSTILE],
        "metrics": [one | {"name": HOSTILE} for one in record.plan["metrics"]],
    }
    record.retrospect = {"sentence": HOSTILE}
    record.record_approval("2026-11-23T02:00:00Z", HOSTILE, HOSTILE, HOSTILE)
    record.record_traffic("2026-11-23T02:01:00Z", HOSTILE, 0, {HOSTILE: 100})
    record.steps[-1]["windows"][-1]["error"] = HOSTILE
    text = json.dumps(record.evaluation)
    for label in LABELS:
        text = text.replace(json.dumps(label), json.dumps(HOSTILE + label))
    record.evaluation = json.loads(text)
    record.evaluation["gates"][0]["sentence"] = HOSTILE
    record.evaluation["comparison"]["skipped"] = HOSTILE
    world.add(record)
    world.held["faces"] = lease_of("faces", frozen=HOSTILE)
    world.unread = (HOSTILE,)
    return record.release


def test_hostile_text_is_shown_as_text_everywhere(world: World, browse: Open) -> None:
    name = hostile(world)
    pages = ("/", "/releases", "/services/models/faces", f"/releases/{name}", f"/releases/{name}?looks=all")
    for path in pages:
        answer = browse().get(path)
        assert answer.status_code == 200, (path, answer.text[-300:])
        read = Reader(answer.text)
        assert "alert" in "".join(read.words) or path == "/", "the text is shown"
        for tag, attributes in read.elements:
            assert tag not in ("img", "iframe", "object", "style", "base"), path
            assert tag != "script" or (attributes.get("src") or "").startswith("/model-releases/static/"), path
            assert not any(name.startswith("on") for name in attributes), path
            assert "style" not in attributes, "an inline style is what the policy forbids"
            for link in ("href", "src", "action"):
                assert not (attributes.get(link) or "").lower().startswith(("javascript", "data", "//")), path


def test_what_the_address_says_is_shown_as_text(browse: Open) -> None:
    for path in (f"/services/models/{'%3Cimg%20src=x%3E'}", "/releases?outcome=%3Cimg%20src=x%3E", "/dags/%3Cimg%3E"):
        answer = browse().get(path)
        assert "<img" not in answer.text
        assert "&lt;img" in answer.text


def test_json_is_no_html(world: World, browse: Open) -> None:
    answer = browse().get(f"/api/releases/{hostile(world)}")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.json()["reason"] == HOSTILE
    assert answer.json()["links"]["run"] is None, "javascript: is no link"


def test_no_template_marks_anything_as_safe() -> None:
    made = environment("")
    names = made.list_templates()
    assert names
    for name in names:
        source, _, _ = made.loader.get_source(made, name) if made.loader else ("", None, None)
        assert "|safe" not in source.replace(" ", ""), name
        assert "autoescape" not in source, name
        assert "<style" not in source, name
        assert " style=" not in source, name
