"""The drive of a run's canary, put together from Airflow's connections, and what it leaves for the record."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from model_release.errors import MetricsRefused
from model_release.release.advance import Rules
from model_release.release.drive import Drive
from model_release.spec import ModelSpec, format_duration
from model_release.tasks import connections, records
from model_release.tasks.run import Run

if TYPE_CHECKING:
    from model_release.cluster.change import Canary
    from model_release.cluster.release import Release, Watched
    from model_release.judging import Past
    from model_release.judging.record import Record
    from model_release.release.look import Watch


def began_with(release: Release, now: ModelSpec) -> ModelSpec:
    """The model file that the release began with; one that was edited since counts from the next release on."""
    return ModelSpec.model_validate_json(release.spec) if release.spec else now


def rules(spec: ModelSpec) -> Rules:
    """What the model file says about the way of a canary."""
    return Rules(spec.rollout.steps, spec.approval, format_duration(spec.answer_within))


def past(spec: ModelSpec, release: Release, claimed: datetime) -> tuple[Past, str]:
    """What stable did before the release was claimed, for its judge, and a sentence about it. Asked again, it reads the
    same windows. Never an error: without a past more requests are needed, and nothing else is lost."""
    from model_release.judging import Judge, Past, Policy
    from model_release.metrics import read_past

    revision, started = release.stable.revision, release.stable.started
    nothing = Past((), revision)
    if revision is None:
        return nothing, "no past: nothing was stable before this release"
    if started is None or revision == f"{release.name}-predictor":
        return nothing, f"no past: since when {revision} has meant what it means now is not known"
    try:
        found, trouble = read_past(
            connections.prometheus(),
            spec.judge,
            namespace=release.namespace,
            revision=revision,
            since=datetime.fromisoformat(started),
            before=claimed,
            window=spec.rollout.window,
        )
    except MetricsRefused as error:  # the connection says what cannot be
        found, trouble = nothing, str(error)
    before = Judge(Policy.from_dict(spec.policy(spec.rollout.steps[0])), found).before
    if not before:
        return nothing, f"no past: {trouble or f'{revision} had no request that Prometheus knows of'}"
    return found, f"stable before this release: {before}" + (f" (not further: {trouble})" if trouble else "")


def drive(spec: ModelSpec, canary: Canary, run: Run, hand: str, before: Past | None) -> Drive:
    """A drive that goes on from what the lease says. `hand` calls the cluster, and is named as who looked; `before` is
    what `past` found."""
    from model_release.cluster.inference_service import InferenceService, InferenceServices
    from model_release.cluster.leases import Leases
    from model_release.cluster.release import Owner
    from model_release.tasks.proof import prover

    client = connections.cluster(hand)
    leases = Leases(client)

    def prove(live: InferenceService) -> None:
        lease = leases.read(canary.namespace, canary.name)
        release = lease.release if lease else None
        baseline = release.baseline if release else None
        prover(baseline.storage_uri if baseline else None, lambda *_: None)(live)

    return Drive(
        canary=canary,
        rules=rules(spec),
        services=InferenceServices(client),
        leases=leases,
        owner=Owner(run.dag_id, run.run_id, run.url, run.installation),
        watch=lambda stretch: watch(spec, canary, stretch, before),
        prove=prove,
        window=spec.rollout.window,
        patience=spec.rollout.ready_within,
        hand=hand,
    )


def watch(spec: ModelSpec, canary: Canary, stretch: Watched, before: Past | None) -> Watch:
    """The watch of a stretch of time that the lease names."""
    from model_release.judging import Judge, Policy
    from model_release.metrics import ValueReader, WindowReader
    from model_release.release.look import Watch

    opened = datetime.fromisoformat(str(stretch.opened_at))
    policy = Policy.from_dict(
        spec.policy(stretch.percent, guard=stretch.beside_question, again=stretch.again),
    )
    named = {entry.name for entry in (*policy.limits, *policy.values)}
    # In the bake nothing is read that can only be judged beside stable.
    judged = spec.judge.model_copy(update={"metrics": [one for one in spec.judge.metrics if one.name in named]})
    prometheus, stable = connections.prometheus(), None if stretch.percent is None else canary.baseline
    return Watch(
        reader=WindowReader(
            prometheus,
            judged,
            namespace=canary.namespace,
            canary=canary.revision,
            stable=stable,
            start=opened,
            window=spec.rollout.window,
        ),
        values=ValueReader(
            prometheus,
            [value for value in spec.judge.values if value.name in named],
            namespace=canary.namespace,
            service=canary.name,
            canary=canary.revision,
            stable=stable,
            shares=judged.metrics,
        ),
        judge=Judge(policy, before),
        canary=canary,
        percent=stretch.percent,
        window=spec.rollout.window,
        opened=opened,
        deadline=opened + _length(spec, stretch),
    )


def _length(spec: ModelSpec, stretch: Watched) -> timedelta:
    if stretch.percent is None:
        return spec.rollout.bake
    return spec.answer_within if stretch.beside_question else spec.rollout.deadline


def outcome(done: Drive) -> dict[str, Any]:
    """What a drive that is over hands to its task: JSON, stored by Airflow."""
    assert done.done is not None
    return {"decision": done.done.decision, "reason": done.done.reason, **counted(done)}


def counted(done: Drive) -> dict[str, Any]:
    """What was counted and moved, for the record: `put` reads it."""
    before = next((one.judge.past for one in done.watches.values()), None)
    return {
        "past": before.to_dict() if before else None,
        "steps": [
            {
                "percent": one.percent,
                "opened": one.opened.isoformat(),
                "policy": one.judge.policy.to_dict(),
                "windows": [window.to_dict() for window in one.windows],
                "final": one.final,
            }
            for one in done.watches.values()
        ],
        "moved": [vars(one) for one in done.moved],
    }


def told(found: dict[str, Any]) -> Past | None:
    """What the drive's judge was told of stable's past, from what `counted` gave; an older edition's told nothing."""
    from model_release.judging import Past

    return Past.from_dict(found["past"]) if found.get("past") else None


def put(record: Record, spec: ModelSpec, found: dict[str, Any]) -> None:
    """Into the record what `counted` gave: each step is judged again from its counts. Again: it replaces itself; what
    the record has of a step from a later look stands."""
    from model_release.judging import Policy, Window, judge

    before = told(found)
    for step in found["steps"]:
        opened = datetime.fromisoformat(step["opened"])
        windows = [Window.from_dict(one) for one in step["windows"]]
        if not windows and not step["final"]:
            continue
        if not step["final"] and records.windows_of(record, step["percent"], opened) > len(windows):
            continue
        policy = Policy.from_dict(step["policy"])
        record.record_past(before)
        records.put_step(
            record,
            spec,
            percent=step["percent"],
            opened=opened,
            policy=policy,
            windows=windows,
            final=step["final"],
            verdict=judge(policy, windows, before, final=step["final"]),
        )
    for move in found["moved"]:
        record.record_traffic(move["time"], move["change"], move["percent"], move["revisions"])
