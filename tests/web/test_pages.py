"""What the pages say, in every state, and how little they read for it."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from model_release.cluster.lease import GUARD, Lease
from model_release.cluster.release import Cause
from model_release.errors import ClusterUnavailable
from model_release.judging import Policy, Side, Window, judge
from model_release.release.index import Entry
from model_release.web import past
from model_release.web.evidence import evidence, progress
from model_release.web.live import standing

from .conftest import Open, row
from .makers import NOW, VERSIONS, at, claim_of, guard_of, lease_of, record_of, service_of, spec
from .world import World


def test_the_fleet_says_who_serves_what(browse: Open) -> None:
    found = row(browse, "models/digits")
    assert found["state"]["name"] == "canary"
    assert found["stable"] == {"revision": "digits-predictor-00001", "version": VERSIONS[0]}
    assert found["canary"] == {"revision": "digits-predictor-00002", "version": VERSIONS[1], "percent": 10}
    assert [(part["role"], part["percent"]) for part in found["split"]] == [("stable", 90), ("canary", 10)]
    assert found["stage"] == "open at 10 %"
    assert found["verdict"]["name"] == "continue"
    assert "canary requests failed" in found["verdict"]["reason"]
    assert row(browse, "models/plants")["last"]["outcome"]["name"] == "rolled_back"
    assert row(browse, "models/receipts")["frozen"] == "audit until Friday (Grace)"
    assert row(browse, "models/street-signs")["state"]["name"] == "waking"
    new = row(browse, "models/x-rays")
    assert (new["state"]["name"], new["last"], new["split"]) == ("absent", None, [])


def test_canaries_come_first_and_what_needs_a_look_second(browse: Open) -> None:
    names = [it["service"] for it in browse().get("/api/fleet").json()["services"]]
    assert names[0] == "models/digits"
    assert set(names[1:3]) == {"models/receipts", "models/street-signs"}


def test_a_staged_canary_has_no_traffic_and_is_named() -> None:
    told = standing(service_of("digits", {1: 100, 2: 0}), None, None, ["digits"])
    assert told["state"]["name"] == "staged"
    assert told["canary"]["percent"] == 0


def test_one_that_was_taken_back_is_no_canary_to_come() -> None:
    release = claim_of("digits", "r", 10).close("Rolled back: too many errors", Cause.EVIDENCE)
    told = standing(service_of("digits", {1: 100, 2: 0}), lease_of("digits", release), None, ["digits"])
    assert (told["state"]["name"], told["stage"]) == ("taken_back", "closing")


def test_a_lease_that_cannot_be_read_is_told() -> None:
    broken = lease_of("digits")
    broken.raw["metadata"]["annotations"]["model-release/claim"] = "{"
    broken.raw["spec"] = {"holderIdentity": "x"}
    told = standing(service_of("digits", {1: 100}), broken, None, ["digits"])
    assert "cannot be read" in told["trouble"]
    assert told["state"]["name"] == "releasing"


# Who looks

LOOKED = re.compile(r'id="looked">last look .*? by (\w+)<')
NO_GUARD = "No guard runs"


def test_an_open_canary_says_who_looked_last_and_when(browse: Open) -> None:
    found = row(browse, "models/digits")
    assert found["looked"] == {"at": at(-0.1), "by": "triggerer"}
    page = browse().get("/services/models/digits").text
    who = LOOKED.search(page)
    assert who is not None
    assert who[1] == "triggerer"
    assert f'datetime="{at(-0.1)}"' in page
    assert row(browse, "models/faces")["looked"] is None, "nobody releases to it"


@pytest.mark.parametrize(("seconds_ago", "runs"), [(None, False), (3, True), (3600, False)])
def test_it_is_told_beside_an_open_canary_that_no_guard_runs(
    world: World, browse: Open, seconds_ago: float | None, runs: bool
) -> None:
    if seconds_ago is not None:
        world.held[GUARD] = guard_of(seconds_ago)
    assert row(browse, "models/digits")["guard"] is runs
    for path in ("/", "/services/models/digits"):
        assert browse().get(path).text.count(NO_GUARD) == (0 if runs else 1), path
    assert NO_GUARD not in browse().get("/services/models/faces").text, "it has no canary"


def test_where_leases_cannot_be_read_nobody_knows_whether_a_guard_runs(world: World, browse: Open) -> None:
    world.fault.leases = ClusterUnavailable("no answer")
    found = row(browse, "models/digits")
    assert (found["guard"], found["looked"]) == (None, None)
    for path in ("/", "/services/models/digits"):
        assert NO_GUARD not in browse().get(path).text, path


def test_a_lease_that_was_never_renewed_names_no_moment() -> None:
    found = standing(service_of("digits", {1: 90, 2: 10}), _unrenewed(), None, ["digits"])
    assert found["looked"] is None
    assert found["stage"] == "open at 10 %"


def _unrenewed() -> Lease:
    lease = lease_of("digits", claim_of("digits", "digits-1", 10))
    del lease.raw["spec"]["renewTime"]
    return lease


# Reads


def test_the_fleet_reads_one_list_for_each_namespace_and_the_records_of_what_runs(world: World, browse: Open) -> None:
    many: dict[str, Any] = {f"m{i}": spec(f"m{i}", namespace=f"team-{i % 2}") for i in range(50)}
    world.specs = many
    world.records.clear()
    for i, one in enumerate(many.values()):
        pattern = record_of(one, looks=1)
        for n in range(40):
            started = (NOW - timedelta(days=n)).isoformat()
            world.add(replace(pattern, started=started, release=f"{one.model}-20260101T000000-{n:08x}"))
        if i < 3:
            world.add(record_of(one, outcome=None, started=NOW, number=99, looks=1))
    world.reads.clear()
    browse().get("/")
    assert dict(world.reads) == {"LIST inferenceservices": 2, "LIST leases": 2, "index": 50, "record": 3}
    world.reads.clear()
    browse().get("/releases")
    assert set(world.reads) == {"index"}
    assert 50 <= world.reads["index"] <= 53, (
        "a little of each store, and more of the three that have more of the newest"
    )
    world.reads.clear()
    browse().get("/releases?model=m7")
    assert dict(world.reads) == {"index": 1}
    name = next(iter(world.records))
    world.reads.clear()
    browse().get(f"/releases/{name}")
    assert dict(world.reads) == {"record": 1}
    world.reads.clear()
    browse().get("/services/team-1/m7")
    assert dict(world.reads) == {"LIST inferenceservices": 1, "LIST leases": 1, "index": 1, "record": 1}


def test_a_shared_store_is_asked_once_for_all_of_its_services(world: World, browse: Open) -> None:
    world.specs = {f"m{i}": spec(f"m{i}", store="s3://models/shared/") for i in range(20)}
    world.records.clear()
    for one in world.specs.values():
        world.add(record_of(one, looks=1))
    world.reads.clear()
    found = browse().get("/api/fleet").json()["services"]
    assert len(found) == 20
    assert all(it["last"] for it in found)
    assert world.reads["index"] == 1


# History


def test_pages_of_history_hold_every_release_once_and_in_order(world: World, browse: Open) -> None:
    """Stores of very different pace, merged a page at a time."""
    world.specs = {"quick": spec("quick"), "slow": spec("slow"), "rare": spec("rare")}
    world.records.clear()
    for name, hours, many in (("quick", 1, 23), ("slow", 7, 9), ("rare", 60, 2)):
        for n in range(many):
            world.add(
                record_of(world.specs[name], started=NOW - timedelta(hours=hours * n, seconds=len(name)), number=n)
            )
    seen: list[str] = []
    before = None
    for _ in range(20):
        page = past.releases(world, world.specs, before=before, limit=5)
        seen += [it["release"] for it in page["releases"]]
        before = page["next"]
        if before is None:
            break
    wanted = sorted((Entry.of(one) for one in world.records.values()), key=lambda one: one.cursor, reverse=True)
    assert seen == [entry.release for entry in wanted]


def test_filters_and_an_unknown_outcome(browse: Open) -> None:
    found = browse().get("/api/releases", params={"outcome": "rolled_back"}).json()["releases"]
    assert [it["model"] for it in found] == ["plants"]
    found = browse().get("/api/releases", params={"outcome": "running"}).json()["releases"]
    assert [it["model"] for it in found] == ["digits"]
    assert browse().get("/api/releases", params={"outcome": "fine"}).status_code == 422
    assert browse().get("/api/releases", params={"limit": 100000}).status_code == 422
    assert "No release fits" in browse().get("/releases?outcome=published").text
    assert browse().get("/releases?model=&service=&outcome=").status_code == 200


# One release


def test_a_release_shows_every_look_and_the_course(world: World) -> None:
    record = next(one for one in world.records.values() if one.model == "faces")
    told = evidence(record)
    assert len(told["looks"]) == sum(len(step["windows"]) for step in record.steps)
    course = told["course"]
    steps = len(record.steps)
    assert len(course["times"]) == len(told["looks"]) + steps - 1 == len(course["for"]) == len(course["against"])
    assert course["times"] == sorted(course["times"])
    gap = len(record.steps[0]["windows"])
    assert course["for"][gap] is None, "the evidence of a step begins anew"
    assert course["for"][gap - 1] >= 1, "what decided is beyond the threshold"
    assert max(value for value in course["against"] if value is not None) < 1
    assert told["looks"][-1]["decision"]["name"] == "promote"


def test_progress_is_logarithmic_and_unknown_stays_unknown() -> None:
    assert progress(1, 600) == 0
    assert progress(600, 600) == 1
    assert progress(24.4948974278, 600) == pytest.approx(0.5)
    assert progress(None, 600) is None
    assert progress(5, 1) is None


def test_a_window_without_data_is_a_gap(world: World) -> None:
    record = next(one for one in world.records.values() if one.model == "receipts")
    record.steps[0]["windows"][1]["canary"] = {"requests": None, "bad": {"errors": None, "slow": None}}
    told = evidence(record)
    assert told["looks"][1]["canary"]["requests"] is None
    assert told["course"]["metrics"]["errors"]["window"][1] is None


def test_labels_are_two_bars_each_and_the_one_that_moved_has_a_course(world: World, browse: Open) -> None:
    record = next(one for one in world.records.values() if one.model == "faces")
    policy = Policy.from_dict(
        {"metrics": [{"name": "errors", "max_rate": 0.1}, {"name": "predictions", "max_shift": 0.1}]}
    )

    def side(sad: int, happy: int) -> Side:
        return Side(sad + happy, {"errors": 0}, labels={"predictions": {"<b>sad</b>": sad, "happy": happy}})

    windows = [Window(side(9, 1), side(20, 80), start=at(i / 6), end=at((i + 1) / 6)) for i in range(30)]
    verdict = judge(policy, windows)
    assert verdict.decision == "rollback"
    record.steps.clear()
    record.record_step(
        10, NOW.isoformat(), window_seconds=10, policy=policy, windows=windows, final=False, verdict=verdict
    )
    told = evidence(record)
    assert told["metrics"][1]["labels"][1] == {"label": "happy", "canary": 0.1, "stable": 0.8}
    course = told["course"]["metrics"]["predictions"]
    assert course["canary"] == [None] * len(course["limit"]), "the interval is that of the distance"
    assert (set(course["limit"]), course["lower"][-1]) == ({0.1}, told["metrics"][1]["lower"])
    text = browse().get(f"/releases/{record.release}").text
    assert text.count("happy on canary: 10 % of the answers") == 1
    assert text.count("happy on stable: 80 % of the answers") == 1
    assert "<b>sad</b>" not in text


def test_the_page_of_a_release_in_each_state(world: World, browse: Open) -> None:
    for record in world.records.values():
        text = browse().get(f"/releases/{record.release}").text
        for part in ("Evidence", "What happened", "Plan", "Every look", "Changes of traffic", "Answers of people"):
            assert part in text
        assert ("Versions compared" in text) == (record.evaluation is not None)
        if record.evaluation:
            # A limit that could not be asked has not failed.
            gates = r"(Passed|Failed|Not asked)\W.*?(Accuracy 91|Regressions \(at most)"
            assert re.findall(gates, text, re.DOTALL) == [
                ("Passed", "Accuracy 91"),
                ("Not asked", "Regressions (at most"),
            ]
            rows = re.findall(r'data-name="Slice">([^<]+)<.*?Of all such" class="num">([^<]*)<', text, re.DOTALL)
            assert [(name, share.replace("\N{NO-BREAK SPACE}", " ")) for name, share in rows] == [
                ("country=fr", "4 % – 12.7 %"),
                ("country=none", "0 % – 1.1 %"),
                ("folder=phone", "–"),
            ]
        assert ("Before any user" in text) == (record.shadow is not None)
    bare = record_of(world.specs["faces"], outcome="failed", number=5, reason="The archive could not be made.")
    bare.steps, bare.traffic, bare.plan, bare.baseline, bare.canary = [], [], None, None, None
    world.add(bare)
    text = browse().get(f"/releases/{bare.release}").text
    assert "No window was judged in this release" in text
    assert "No plan was recorded" in text
    assert "no traffic was moved" in text


def test_the_plan_is_shown_as_it_was_said_also_an_older_ones(world: World, browse: Open) -> None:
    record = next(one for one in world.records.values() if one.model == "faces")
    text = browse().get(f"/releases/{record.release}").text
    for words in (
        "a good canary needs about 14 min",
        "in bursts of 2.4",
        "0.75\N{NO-BREAK SPACE}%",
        "the deadline at the latest",
        "6.5 min",
    ):
        assert words in text
    record.plan = {"sentences": ["At 1200 requests a minute and 10 % …"], "steps": [{"share": 0.1}], "possible": True}
    assert "At 1200 requests a minute" in browse().get(f"/releases/{record.release}").text


def test_a_record_that_cannot_be_judged_again_is_still_shown(world: World, browse: Open) -> None:
    record = next(one for one in world.records.values() if one.model == "plants")
    record.steps[0]["windows"][0]["canary"]["requests"] = -1
    answer = browse().get(f"/releases/{record.release}")
    assert answer.status_code == 200
    assert "cannot be judged again" in answer.text
    assert "Rolled back" in answer.text


def test_a_run_without_a_record_waits_for_it(browse: Open) -> None:
    text = browse().get("/dags/release_digits/runs/manual__2026-11-23T02:00:00+00:00").text
    assert "Nothing recorded yet" in text
    assert 'data-poll="3"' in text


def test_a_run_of_a_model_shows_its_release(world: World, browse: Open) -> None:
    record = next(one for one in world.records.values() if one.model == "digits" and one.outcome)
    text = browse().get(f"/dags/release_digits/runs/{record.run['run_id']}").text
    assert record.release in text


# Keeping a page at the present


def test_an_unchanged_page_is_a_304(world: World, browse: Open) -> None:
    first = browse().get("/")
    again = browse().get("/", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    world.live["digits"] = service_of("digits", {1: 70, 2: 30})
    changed = browse().get("/", headers={"if-none-match": first.headers["etag"]})
    assert changed.status_code == 200
    assert "30 %" in changed.text


def test_a_running_release_is_looked_at_more_often(world: World, browse: Open) -> None:
    running = next(one for one in world.records.values() if one.outcome is None)
    over = next(one for one in world.records.values() if one.outcome == "promoted")
    assert 'data-poll="3"' in browse().get(f"/releases/{running.release}").text
    assert 'data-poll="15"' in browse().get(f"/releases/{over.release}").text
