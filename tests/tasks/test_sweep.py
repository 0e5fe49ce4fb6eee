"""What the sweep does with each state that a lease and a service can be in, against the sandbox's real API server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from model_release.cluster import rollout
from model_release.cluster.change import Baseline, Canary
from model_release.cluster.leases import Leases
from model_release.cluster.progress import State, wait
from model_release.cluster.release import Cause, Order, Owner, Phase, Release, Watched
from model_release.cluster.rollout import death_of
from model_release.cluster.services import InferenceServices
from model_release.errors import NotSettled
from model_release.judging.record import Record
from model_release.spec import ModelSpec
from model_release.tasks import connections, records, sweep
from model_release.tasks.sweep import Sweep, sweep_dag
from sandbox.interfaces import Phase as Pod
from sandbox.interfaces import PodState
from sandbox.kube.faults import Fault, Match
from sandbox.kube.server import Cluster

from .cluster import Pods, cluster, wanted
from .parsing import HEAVY, Parsing

PROJECT = Path(__file__).resolve().parents[2]
HERE, ELSEWHERE = "http://here:8080", "https://elsewhere"


class NamedPods(Pods):
    """Two services in one namespace have no pod in common."""

    def state(self, key: Any) -> Any:
        found = super().state(key)
        return replace(found, pods=tuple(f"{key.name}-{pod}" for pod in found.pods))


@dataclass
class World:
    """A cluster, the runs that are over, and the decision records."""

    spec: ModelSpec
    services: InferenceServices
    leases: Leases
    server: Cluster
    pods: Pods
    over: set[str] = field(default_factory=set)
    records: dict[str, Record] = field(default_factory=dict)

    def named(self, name: str) -> ModelSpec:
        return self.spec.model_copy(update={"service": self.spec.service.model_copy(update={"name": name})})

    def live(self, name: str = "digits") -> Any:
        return self.services.get("models", name)

    def lease(self, name: str = "digits") -> Any:
        return self.leases.read("models", name)

    def stage(self, version: str, name: str = "digits") -> tuple[Baseline, Canary]:
        asked = wanted(self.named(name), version)
        baseline = rollout.baseline_of(self.live(name), asked)
        rollout.stage(self.services, asked, baseline)
        found = wait(lambda: rollout.assess_staged(self.live(name), asked, baseline), 5, poll=0.01)
        assert found.state is State.READY, found
        return baseline, rollout.canary_of(self.live(name), baseline)

    def abandon(self, name: str = "digits", *, percent: int = 30, installation: str = HERE) -> tuple[Owner, Canary]:
        """v1 is stable, v2 is open, and a lease says who did it."""
        self.stage("v1", name)
        baseline, canary = self.stage("v2", name)
        rollout.shift(self.services, canary, percent)
        found = wait(lambda: rollout.assess_split(self.live(name), canary, percent), 5, poll=0.01)
        assert found.state is State.READY, found
        owner = Owner("release_digits", f"run-{name}", f"{installation}/runs/1", installation)
        self.leases.acquire("models", name, owner, f"{name}-20260301")
        facts = {"baseline": baseline, "canary": canary.revision, "template": canary.template, "phase": Phase.OPEN}
        self.leases.update("models", name, owner, lambda now: replace(now, **facts, watches=(Watched(percent, "x"),)))
        return owner, canary

    def sweep(self, *names: str, run: str = "sweep-1") -> list[str]:
        """Runs the task once, as run `run` of the DAG; earlier sweeps are over."""
        self.over |= {f"sweep-{number}" for number in range(10)} - {run}
        task = Sweep(task_id="sweep", services=[[self.named(name)] for name in names or ("digits",)])
        return task.sweep(SimpleNamespace(run_id=run))

    def assert_settled(self, name: str = "digits") -> None:
        live = self.live(name)
        assert (live.canary_percent, live.storage_uri) == (None, "s3://models/digits/versions/v1/")
        assert live.serving == {live.latest_created: 100}
        assert self.lease(name).holder is None


@pytest.fixture
def world(tmp_path: Path, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    pods = NamedPods()
    with cluster(tmp_path, pods) as (server, client):
        made = World(spec, InferenceServices(client), Leases(client), server, pods)

        def change(_: ModelSpec, run: Any, edit: Any) -> Record:
            record = made.records.setdefault(
                run.release, Record.new(run.release, model="digits", service="s", version=None, started="t")
            )
            edit(record)
            return record

        monkeypatch.setattr(connections, "cluster", lambda *_: client)
        monkeypatch.setattr(sweep, "installation", lambda: HERE)
        monkeypatch.setattr(sweep, "run_is_over", lambda owner: owner.run_id in made.over)
        monkeypatch.setattr(records, "change", change)
        yield made


def test_a_service_at_rest_and_one_that_was_never_claimed(world: World) -> None:
    world.stage("v1")
    before = world.live().resource_version
    assert world.sweep("digits", "unknown") == []
    assert world.live().resource_version == before


def test_a_live_run_is_let_alone(world: World) -> None:
    world.abandon()
    before, lease = world.live().resource_version, world.lease().raw
    assert world.sweep() == []
    assert (world.live().resource_version, world.lease().raw) == (before, lease)


def test_a_closed_canary_whose_run_never_ends_is_settled_after_a_while(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A3: the deferred task instance was deleted; the run looks alive for ever, and the guard closed it."""
    owner, _ = world.abandon()
    why = "closed: nobody looked for 63 s"
    world.leases.update("models", "digits", owner, lambda now: now.close(why, Cause.EVIDENCE))
    assert world.sweep() == [], "its own run has the time to settle it"
    monkeypatch.setattr(sweep, "LEFT", timedelta(0))
    assert len(world.sweep(run="sweep-2")) == 1
    world.assert_settled()
    record = world.records["digits-20260301"]
    assert record.outcome == "rolled_back"
    assert record.reason.startswith(f"{why} (")


def test_a_run_that_is_over_is_settled_and_its_record_finished(world: World) -> None:
    owner, _ = world.abandon()
    world.over.add(owner.run_id)
    (line,) = world.sweep()
    restored = world.live().latest_created
    assert line == (
        f"models/digits: left by release_digits run-digits (open at 30 %): {restored} has all of the traffic"
    )
    world.assert_settled()
    record = world.records["digits-20260301"]
    assert (record.outcome, record.reason) == ("failed", f"its run ended without settling; {line}")
    assert record.traffic[-1]["revisions"] == {restored: 100}
    assert world.sweep(run="sweep-2") == []


def test_what_was_promoted_stands(world: World) -> None:
    owner, canary = world.abandon()
    world.leases.update("models", "digits", owner, lambda now: replace(now, phase=Phase.PROMOTED))
    rollout.promote(world.services, canary, 30)
    world.over.add(owner.run_id)
    (line,) = world.sweep()
    assert line.endswith(f"{canary.revision} was promoted and has all of the traffic")
    assert world.live().serving == {canary.revision: 100}
    assert world.records["digits-20260301"].outcome == "promoted"
    assert world.lease().holder is None


@pytest.mark.parametrize("was_closed", [False, True])
def test_what_was_promoted_and_died_is_told_and_goes_back_when_that_was_recorded(
    world: World, was_closed: bool
) -> None:
    owner, canary = world.abandon()
    world.leases.update("models", "digits", owner, lambda now: replace(now, phase=Phase.PROMOTED))
    rollout.promote(world.services, canary, 30)
    found = wait(lambda: rollout.assess_promoted(world.live(), canary), 600, poll=0.01)
    assert found.state is State.READY, found
    world.pods.phases["v2"] = PodState(Pod.CRASHED, 0, "boom", 1)
    while death_of(world.live(), canary.revision) is None:
        pass
    if was_closed:
        world.leases.update("models", "digits", owner, lambda now: now.close(f"{canary.revision} is dead", Cause.DEAD))
    world.over.add(owner.run_id)
    (line,) = world.sweep()
    if was_closed:
        world.assert_settled()
        assert world.records["digits-20260301"].outcome == "rolled_back"
    else:
        assert f"{canary.revision} was promoted and has all of the traffic, and is dead: " in line
        assert world.live().serving == {canary.revision: 100}


def test_a_lease_of_a_run_that_touched_nothing_is_given_free(world: World) -> None:
    world.stage("v1")
    world.leases.acquire("models", "digits", Owner("release_digits", "gone", "url", HERE))
    world.over.add("gone")
    assert world.sweep() == ["models/digits: left by release_digits gone (claimed): nothing was touched"]
    assert world.lease().holder is None


def test_another_airflows_release_and_a_strangers_lease_are_only_told(world: World) -> None:
    owner, _ = world.abandon(installation=ELSEWHERE)
    world.over.add(owner.run_id)
    before = world.live().resource_version
    (line,) = world.sweep()
    assert "is being released by another Airflow, release_digits run-digits (open at 30 %" in line
    assert line.endswith(owner.url)
    assert world.live().resource_version == before
    assert world.lease().holder == owner.identity


def test_a_canary_with_traffic_and_no_lease_is_told_and_stays(world: World) -> None:
    owner, canary = world.abandon()
    world.leases.give_free("models", "digits", owner)
    (line,) = world.sweep()
    assert line.startswith(f"models/digits: {canary.revision} takes 30 % and no release claims it")
    assert world.live().canary_percent == 30


def test_a_frozen_service_is_settled_and_stays_frozen(world: World) -> None:
    owner, _ = world.abandon()
    world.leases.freeze("models", "digits", "incident 7")
    world.over.add(owner.run_id)
    assert len(world.sweep()) == 1
    world.assert_settled()
    assert world.lease().frozen == "incident 7"


def test_one_that_cannot_be_settled_fails_the_run_and_hides_no_other(world: World) -> None:
    lost, _ = world.abandon("letters")
    good, _ = world.abandon("digits")
    world.over |= {lost.run_id, good.run_id}
    other = Baseline(uid="of another object", revision="letters-predictor-00001", template={})
    world.leases.update("models", "letters", lost, lambda claim: replace(claim, baseline=other))
    with pytest.raises(NotSettled, match=r"models/letters is not settled: .* made anew by another hand"):
        world.sweep("letters", "digits")
    world.assert_settled("digits")
    held = world.lease("letters").release
    assert (held.owner.dag_id, held.inherited.owner) == ("sweep", lost), "no release may begin before it is settled"
    with pytest.raises(NotSettled, match="models/letters is not settled"):
        world.sweep("letters", "digits", run="sweep-2")
    assert world.lease("letters").release.inherited.owner == lost


def test_a_sweep_that_died_is_gone_on_with(world: World) -> None:
    owner, _ = world.abandon()
    world.over.add(owner.run_id)
    died = Owner("sweep", "sweep-1", "url", HERE)
    world.leases.acquire("models", "digits", died, over=owner)
    world.leases.bar("models", "digits", died)("digits-predictor-00002")
    (line,) = world.sweep(run="sweep-2")
    assert line.startswith("models/digits: left by release_digits run-digits (open at 30 %)")
    world.assert_settled()


def test_what_a_dead_settle_had_barred_is_barred_for_the_next(world: World) -> None:
    owner, _ = world.abandon()
    died, following = (Owner("sweep", f"sweep-{number}", "url", HERE) for number in (1, 2))
    world.leases.bar("models", "digits", owner)("a")
    world.leases.acquire("models", "digits", died, over=owner)
    world.leases.bar("models", "digits", died)("b")
    lease = world.leases.acquire("models", "digits", following, over=died)
    assert lease.release.inherited.owner == owner
    assert lease.release.left.barred == ("a", "b")
    assert Release(died).left == Release(died)


def test_a_service_whose_model_file_is_gone_is_settled_by_its_lease(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []

    def prover(uri: str | None, log: Any) -> Any:
        asked.append(uri)
        return lambda live: None

    monkeypatch.setattr(sweep, "prover", prover)
    owner, _ = world.abandon("letters")
    world.over.add(owner.run_id)
    (line,) = world.sweep("digits")
    assert line.startswith("models/letters: left by release_digits run-letters (open at 30 %): letters-predictor-0000")
    world.assert_settled("letters")
    assert set(asked) == {"s3://models/digits/versions/v1/"}
    assert world.sweep("digits", run="sweep-2") == []


def test_leases_that_may_not_be_listed_hide_no_service_of_a_model_file(world: World) -> None:
    owner, _ = world.abandon()
    world.over.add(owner.run_id)
    world.server.faults.active.append(Fault(match=Match(verb="list", resource="leases"), status=403))
    refused, settled = world.sweep()
    assert refused.startswith(
        "Not swept: services whose model file is gone: list leases models/: forbidden; needs verb"
    )
    assert settled.startswith("models/digits: left by")
    world.assert_settled()


def test_one_namespace_is_listed_where_all_may_not_be(world: World) -> None:
    owner, _ = world.abandon("letters")
    world.over.add(owner.run_id)
    world.server.faults.active.append(Fault(match=Match(verb="list", resource="leases"), status=403, times=1))
    (line,) = world.sweep("digits")
    assert line.startswith("models/letters: left by")


def test_a_release_that_a_person_had_taken_back_is_recorded_as_that(world: World) -> None:
    owner, canary = world.abandon()
    order = Order("roll_back", "anna", "users complain", "2026-03-01T02:00:00.000+00:00", canary.revision)
    world.leases.update(
        "models", "digits", owner, lambda now: replace(now, order=order).close(str(order), Cause.PERSON)
    )
    world.over.add(owner.run_id)
    world.sweep()
    record = world.records["digits-20260301"]
    assert record.outcome == "rolled_back"
    assert record.reason.startswith("Rolled back by anna: users complain (its run ended without settling; ")
    assert [(one["who"], one["decision"]) for one in record.approvals] == [("anna", "roll_back")]


def test_a_release_whose_canary_was_closed_is_recorded_as_rolled_back(world: World) -> None:
    owner, _ = world.abandon()
    world.leases.update("models", "digits", owner, lambda now: now.close("closed: nobody looked for 61 s", Cause.GUARD))
    world.over.add(owner.run_id)
    world.sweep()
    record = world.records["digits-20260301"]
    assert record.outcome == "rolled_back"
    assert record.reason.startswith("closed: nobody looked for 61 s (its run ended without settling; ")


def test_a_model_file_that_cannot_be_read_stops_no_other_service(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text((PROJECT / "include" / "models" / "digits.yaml").read_text())
    (tmp_path / "broken.yaml").write_text("model: broken\n")
    task: Any = sweep_dag(tmp_path, schedule=None).get_task("sweep")
    assert [spec.model for specs in task.services for spec in specs] == ["digits"]
    assert len(task.unread) == 1
    assert "broken.yaml:1" in task.unread[0]


def test_the_dag_is_light_and_never_overlaps_itself(parsing: Parsing) -> None:
    code = (
        "import runpy, sys, json\n"
        f"dag = runpy.run_path({str(PROJECT / 'dags' / 'sweep.py')!r})['sweep']\n"
        f"print(json.dumps([sorted(set({HEAVY!r}) & set(sys.modules)), dag.max_active_runs, dag.catchup]))"
    )
    assert parsing(code) == [[], 1, False]
