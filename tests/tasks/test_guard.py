"""The guard on a real API server: it closes what nobody looks at, and nothing else. The clock is given."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import CoordinationV1Api
from tests.patience import LIMIT

from model_release.cluster.lease import GUARD, GUARD_SECONDS, LEASE_SECONDS, RELEASE, Lease
from model_release.cluster.release import Cause, Release
from model_release.release.guard import GRACE, Beats, Guard
from sandbox.interfaces import Phase, PodState
from sandbox.kube.faults import Fault

from .driven import NEW, OWNER, STABLE, Scene, dies, scene, until

__all__ = ["scene"]  # the fixture of a staged canary

QUIET = LEASE_SECONDS + 1.0
BEGAN = datetime.now(UTC)
OTHER = json.dumps(Release(OWNER).as_dict())


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Guarded:
    """A canary that is open, and a guard that has seen its lease once."""

    scene: Scene
    clock: Clock
    guard: Guard

    def closes(self, *guards: Guard) -> list[str]:
        """Looks until users have the stable revision again; a test that hangs is ended from outside."""
        lines: list[str] = []
        while self.scene.serving != {STABLE: 100}:
            for guard in guards or (self.guard,):
                lines += guard.look()
        return lines


def guard_of(scene: Scene, clock: Callable[[], float]) -> Guard:
    return Guard(scene.kube.leases, scene.kube.services, ["models"], clock)


@pytest.fixture
def guarded(scene: Scene) -> Guarded:
    drive, clock = scene.drive(), Clock()
    until(drive, lambda: scene.at(25).looks)
    guard = guard_of(scene, clock)
    assert guard.look() == []
    return Guarded(scene, clock, guard)


def test_a_canary_that_nobody_looks_at_is_closed_and_says_why(guarded: Guarded) -> None:
    guarded.clock.now += LEASE_SECONDS - 1
    assert guarded.guard.look() == []
    assert guarded.scene.serving == {STABLE: 75, NEW: 25}
    guarded.clock.now += 2
    lines = guarded.closes()
    assert lines[0].startswith(f"models/digits: {NEW} closed: nobody looked for 61 s; ")
    claim = guarded.scene.claim
    assert (claim.closed, claim.promoted, claim.owner) == ("closed: nobody looked for 61 s", False, OWNER)


def test_who_looks_again_finds_it_closed_and_ends_it_as_rolled_back(guarded: Guarded) -> None:
    guarded.clock.now += QUIET
    guarded.closes()
    drive = guarded.scene.drive()
    guarded.scene.at(25).judged = "promote"
    until(drive, lambda: drive.done)
    assert drive.done is not None
    assert (drive.done.decision, drive.done.reason) == ("rollback", "closed: nobody looked for 61 s")
    assert guarded.scene.serving == {STABLE: 100}


def test_a_canary_that_is_looked_at_is_left_alone_however_skewed_the_clocks_are(guarded: Guarded) -> None:
    drive = guarded.scene.drive()
    for _ in range(3):
        guarded.clock.now += LEASE_SECONDS - 1
        drive.look()
        assert guarded.guard.look() == []
    assert guarded.scene.serving == {STABLE: 75, NEW: 25}


def test_a_guard_that_starts_late_waits_for_a_whole_duration_first(guarded: Guarded) -> None:
    guarded.clock.now += 100 * QUIET
    late = guard_of(guarded.scene, guarded.clock)
    assert late.look() == []
    assert guarded.scene.serving == {STABLE: 75, NEW: 25}
    guarded.clock.now += QUIET
    guarded.closes(late)


def test_two_guards_do_no_harm(guarded: Guarded) -> None:
    other = guard_of(guarded.scene, guarded.clock)
    other.look()
    guarded.clock.now += QUIET
    guarded.closes(guarded.guard, other)
    assert guarded.scene.claim.closed == "closed: nobody looked for 61 s"


def test_what_a_killed_guard_had_begun_the_next_one_ends_at_once(guarded: Guarded) -> None:
    """Killed between the word in the lease and the write of the split. Nobody has to wait for another duration."""
    guarded.scene.kube.leases.update(
        "models", "digits", OWNER, lambda now: now.close("closed: nobody looked for 61 s", Cause.GUARD)
    )
    guarded.closes(guard_of(guarded.scene, guarded.clock))


def test_a_canary_that_its_own_hand_takes_back_is_told_once(guarded: Guarded) -> None:
    """Each look of that hand renews the lease; the gateway is slow."""
    scene, drive = guarded.scene, guarded.scene.drive()
    guarded.scene.kube.server.faults.active.append(Fault(away="gateway"))
    drive.close("12 of 300 failed", Cause.EVIDENCE)
    told, looks = [], 0
    while looks < 4 or scene.serving != {STABLE: 100}:
        drive.look()
        told += guarded.guard.look()
        looks += 1
    assert len(told) <= len(set(told)) <= 2, told


def test_a_dead_canary_is_let_go(guarded: Guarded) -> None:
    scene = guarded.scene
    scene.kube.pods.phases["v2"] = PodState(Phase.CRASHED, 0, "boom", 1)
    while scene.kube.live().ready:
        pass
    guarded.clock.now += QUIET
    guarded.closes()


def test_what_was_promoted_stays_and_is_told_once(guarded: Guarded) -> None:
    drive = guarded.scene.drive()
    guarded.scene.at(25).judged = guarded.scene.at(50).judged = "promote"
    until(drive, lambda: drive.done)
    guarded.guard.look()
    guarded.clock.now += QUIET
    assert guarded.guard.look() == [f"models/digits: {NEW} is promoted, and nobody looks at it"]
    assert guarded.guard.look() == []
    assert guarded.scene.serving == {NEW: 100}


@pytest.mark.parametrize("is_dead", [False, True])
def test_a_promoted_one_that_was_to_be_taken_back_goes_back_when_nobody_does_it(
    guarded: Guarded, is_dead: bool
) -> None:
    """Evidence in the bake, or its death, was recorded; then the triggerer was killed."""
    scene, drive = guarded.scene, guarded.scene.drive()
    scene.at(25).judged = scene.at(50).judged = "promote"
    until(drive, lambda: drive.done)
    if is_dead:
        dies(scene, "v2")
    scene.kube.leases.update("models", "digits", OWNER, lambda now: now.close("12 of 300 failed", Cause.EVIDENCE))
    assert guarded.guard.look() == [], "its own hand has a whole duration"
    assert scene.serving == {NEW: 100}
    guarded.clock.now += QUIET
    guarded.closes()
    assert scene.claim.closed == "12 of 300 failed"


def test_a_promoted_one_that_is_dead_and_watched_by_nobody_is_told_and_not_undone(guarded: Guarded) -> None:
    scene, drive = guarded.scene, guarded.scene.drive()
    scene.at(25).judged = scene.at(50).judged = "promote"
    until(drive, lambda: drive.done)
    dies(scene, "v2")
    guarded.guard.look()
    guarded.clock.now += QUIET
    (line,) = guarded.guard.look()
    assert line.startswith(f"models/digits: {NEW} is promoted, and nobody looks at it; {NEW} is dead: ")
    assert scene.serving == {NEW: 100}


def test_a_release_that_gave_its_lease_free_is_none_of_its_business(guarded: Guarded) -> None:
    guarded.scene.kube.leases.give_free("models", "digits", OWNER)
    guarded.clock.now += QUIET
    assert guarded.guard.look() == []
    assert guarded.scene.serving == {STABLE: 75, NEW: 25}


def test_after_the_api_was_away_who_looks_has_time_to_come_back(guarded: Guarded) -> None:
    guarded.scene.kube.fault("list", "leases", status=503)
    guarded.clock.now += 5 * QUIET
    (line,) = guarded.guard.look()
    assert line.startswith("The cluster does not answer: ")
    assert guarded.guard.look() == [], "said once"
    guarded.scene.kube.server.faults.active.clear()
    assert guarded.guard.look() == []
    guarded.clock.now += GRACE - 1
    assert guarded.guard.look() == []
    guarded.clock.now += 2
    guarded.closes()


def test_rights_that_are_missing_are_named_and_the_other_services_go_on(guarded: Guarded) -> None:
    guarded.scene.kube.fault("patch", "inferenceservices", status=403)
    guarded.clock.now += QUIET
    (line,) = guarded.guard.look()
    assert line.startswith("models/digits: ")
    assert "403" in line or "may not" in line or "forbidden" in line.lower()
    guarded.scene.kube.server.faults.active.clear()
    guarded.closes()


def test_a_namespace_that_may_not_be_listed_is_named_and_hides_no_other(guarded: Guarded) -> None:
    guard = Guard(guarded.scene.kube.leases, guarded.scene.kube.services, ["models", "other"], guarded.clock)
    guarded.scene.kube.fault_in("list", "leases", "other", status=403)
    (line,) = guard.look()
    assert line.startswith("Nobody guards namespace other: ")
    assert guard.look() == [], "said once"
    guarded.clock.now += QUIET
    guarded.closes(guard)


@pytest.mark.parametrize("meanwhile", ["renewed", "promoted"])
def test_who_comes_between_the_guards_read_and_its_write_is_not_undone(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    """The triggerer was slow, and comes back in the moment in which the guard acts."""
    scene, get = guarded.scene, guarded.scene.kube.services.get
    drive, came = scene.drive("triggerer"), list[str]()

    def comes_back(*place: str) -> Any:
        monkeypatch.setattr(scene.kube.services, "get", get)
        came.append(meanwhile)
        live = get(*place)
        if meanwhile == "promoted":
            scene.at(25).judged = scene.at(50).judged = "promote"
            until(drive, lambda: drive.done)
        else:
            drive.look()
        return live

    guarded.clock.now += QUIET
    monkeypatch.setattr(scene.kube.services, "get", comes_back)
    assert guarded.guard.look() == []
    assert came == [meanwhile]
    assert scene.claim.closed is None
    assert scene.serving == ({NEW: 100} if meanwhile == "promoted" else {STABLE: 75, NEW: 25})


@pytest.mark.parametrize(
    "text", ['{"owner": ', '{"owner": {"dag_id": "a"}}', '{"owner": {}, "from": "a newer edition"}', "by hand"]
)
def test_a_lease_that_cannot_be_read_is_told_and_nothing_moves(guarded: Guarded, text: str) -> None:
    body = {"metadata": {"annotations": {"model-release/claim": text}}}
    CoordinationV1Api(guarded.scene.kube.client).patch_namespaced_lease("model-release-digits", "models", body)
    guarded.clock.now += QUIET
    (line,) = guarded.guard.look()
    assert "annotation model-release/claim cannot be read" in line
    assert guarded.guard.look() == []
    assert guarded.scene.serving == {STABLE: 75, NEW: 25}


def test_it_says_that_it_runs(guarded: Guarded) -> None:
    leases = guarded.scene.kube.leases
    assert Beats().alive(leases.guard("models"))
    assert [one.service for one in leases.all(["models"])] == ["digits"]
    assert not Beats().alive(None)


@pytest.mark.parametrize("hours", [-5, 5])
def test_a_guard_whose_clock_is_wrong_is_seen_by_its_beat_and_missed_without_one(hours: float) -> None:
    clock, beats = Clock(), Beats(lambda: clock.now)
    assert not beats.alive(beat(hours)), "at first sight there is only what it says"
    for second in range(2, 10, 2):
        clock.now += 2
        assert beats.alive(beat(hours, second))
    clock.now += GUARD_SECONDS - 1
    assert beats.alive(beat(hours, 8))
    clock.now += 2
    assert not beats.alive(beat(hours, 8)), "dead, though by its clock it may be tomorrow"


def beat(hours: float, seconds: float = 0) -> Lease:
    when = BEGAN + timedelta(hours=hours, seconds=seconds)
    metadata = {"name": GUARD, "namespace": "models", "uid": "u"}
    return Lease({"metadata": metadata, "spec": {"renewTime": when.isoformat(), "leaseDurationSeconds": GUARD_SECONDS}})


def test_a_service_may_be_called_as_the_guard_is(guarded: Guarded) -> None:
    """Its lease and the guard's own are two, and the guard looks at the one."""
    leases = guarded.scene.kube.leases
    for name in ("release-guard", "guard"):
        leases.acquire("models", name, OWNER)
    guarded.guard.look()
    assert leases.guard("models").release is None
    assert sorted(one.service for one in leases.within("models")) == ["digits", "guard", "release-guard"]


def test_somebody_elses_lease_of_its_name_is_told_and_left(guarded: Guarded) -> None:
    api = CoordinationV1Api(guarded.scene.kube.client)
    api.patch_namespaced_lease(GUARD, "models", {"metadata": {"labels": None}, "spec": {"holderIdentity": "other"}})
    (line,) = guarded.guard.look()
    assert line.startswith("Nobody can see that namespace models is guarded: ")
    assert "Lease models/model-release.guard is somebody else's: it has no label " in line
    assert guarded.guard.look() == [], "said once"
    assert api.read_namespaced_lease(GUARD, "models").spec.holder_identity == "other"


@pytest.mark.parametrize("where", ["beat", "lease", "service"])
def test_an_answer_that_nobody_expected_is_one_line_and_the_other_services_go_on(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    kube = guarded.scene.kube
    if where == "beat":
        monkeypatch.setattr(kube.leases, "beat", lambda _: {}["metadata"])
    elif where == "lease":
        within = kube.leases.within
        odd = {"spec": {"holderIdentity": "x", "leaseDurationSeconds": "soon"}}
        metadata = {"name": "model-release-another", "namespace": "models", "annotations": {RELEASE: OTHER}}
        monkeypatch.setattr(kube.leases, "within", lambda it: [Lease({"metadata": metadata, **odd}), *within(it)])
    else:
        kube.leases.acquire("models", "another", OWNER)
        get = kube.services.get
        monkeypatch.setattr(kube.services, "get", lambda *it: {}["spec"] if "another" in it else get(*it))
        facts = {"baseline": guarded.scene.claim.baseline, "closed": "closed: because"}
        kube.leases.update("models", "another", OWNER, lambda claim: replace(claim, **facts))
    (line,) = guarded.guard.look()
    assert "the API gave an odd answer (" in line
    assert guarded.guard.look() == [], "said once"
    guarded.clock.now += QUIET
    guarded.closes()


def test_a_look_now_and_then_goes_on_until_it_has_seen_who_looks(guarded: Guarded) -> None:
    """What `--once` goes by."""
    guard = guard_of(guarded.scene, guarded.clock)
    for status in (503, 403):
        guarded.scene.kube.fault("list", "leases", status=status)
        guard.look()
        assert guard.undecided == ["namespace models"], "who may not look has seen nothing"
        guarded.scene.kube.server.faults.active.clear()
    guard.look()
    assert guard.undecided == ["models/digits"]
    guarded.scene.drive().look()
    guard.look()
    assert guard.undecided == [], "somebody looks"
    late = guard_of(guarded.scene, guarded.clock)
    late.look()
    guarded.clock.now += QUIET
    guarded.closes(late)
    late.look()
    assert late.undecided == [], "closed"


def test_once_by_command_closes_what_nobody_looks_at_and_ends(guarded: Guarded, tmp_path: Path) -> None:
    """As somebody's own scheduler runs it, each time without a memory of the time before."""
    scene = guarded.scene
    api = CoordinationV1Api(scene.kube.client)
    api.patch_namespaced_lease("model-release-digits", "models", {"spec": {"leaseDurationSeconds": 1}})
    command = [sys.executable, "-m", "model_release", "guard", "--once", "--namespace", "models", "--interval", "0.2"]
    command += ["--kubeconfig", str(scene.kube.server.kubeconfig), "--touch", str(tmp_path / "looked")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"models/digits: {NEW} closed: nobody looked for " in done.stdout
    assert done.stdout.rstrip().endswith("Each release is looked at, or its canary is closed.")
    assert scene.serving == {STABLE: 100}
    assert (tmp_path / "looked").exists()


def test_it_needs_neither_airflow_nor_a_store_nor_prometheus() -> None:
    code = (
        "import sys, model_release.commands.guard, model_release.release.guard, model_release.cluster.lease;"
        "unwanted = {'airflow', 'boto3', 'torch', 'model_release.metrics', 'model_release.tasks'};"
        "print(sorted(unwanted & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
