"""The drive of a run's canary, put together from Airflow's connections, and what it leaves for the record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
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
    from model_release.judging import Past, Policy, Window
    from model_release.judging.record import Record
    from model_release.release.look import Stretch, Watch


def began_with(release: Release, now: ModelSpec) -> ModelSpec:
    """The model file that the release began with; one that was edited since counts from the next release on."""
    return ModelSpec.model_validate_json(release.spec) if release.spec else now


def rules(spec: ModelSpec, before: Past | None = None) -> Rules:
    """What the model file says about the way of a canary. `before`: what stable did, by whose traffic a ramp begins;
    without it, it begins at its first level."""
    first = _first_share(spec, before) if spec.rollout.ramp else 1
    return Rules(spec.rollout.steps, spec.approval, format_duration(spec.answer_within), first)


def _first_share(spec: ModelSpec, before: Past | None) -> int:
    from model_release.judging import Policy, ramp

    way = Policy.from_dict(spec.policy(1)).ramp
    counts = sorted(side.requests for side in (before.windows if before else ()) if side.requests)
    assert way is not None
    # Not the mean: stable had a part of the traffic only while it was the canary, and nights are quiet.
    busy = counts[9 * (len(counts) - 1) // 10] if counts else math.inf
    return round(100 * ramp.begin(way, busy))


def past(spec: ModelSpec, release: Release, claimed: datetime) -> tuple[Past, str]:
    """What stable did before the release was claimed, for its judge, and a sentence about it. Asked again, it reads the
    same windows. Never an error: without a past more requests are needed, and nothing else is lost."""
    from model_release.judging import Judge, Past, Policy
    from model_release.release.plan import stable_before

    revision = release.stable.revision
    nothing = Past((), revision)
    if revision is None:
        return nothing, "no past: nothing was stable before this release"
    try:
        prometheus = connections.prometheus()
    except MetricsRefused as error:  # the connection says what cannot be
        return nothing, f"no past: {error}"
    found, trouble = stable_before(spec, prometheus, revision, release.stable.started, claimed)
    before = Judge(Policy.from_dict(spec.policy(1)), found.past).before if found else ""
    if found is None or not before:
        return nothing, f"no past: {trouble}"
    return found.past, f"stable before this release: {before}" + (f" (not further: {trouble})" if trouble else "")


def drive(spec: ModelSpec, canary: Canary, run: Run, hand: str, before: Past | None) -> Drive:
    """A drive that goes on from what the lease says. `hand` calls the cluster, and is named as who looked; `before` is
    what `past` found."""
    from model_release.cluster.inference_service import InferenceService
    from model_release.cluster.leases import Leases
    from model_release.cluster.release import Owner
    from model_release.cluster.services import InferenceServices
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
        rules=rules(spec, before),
        services=InferenceServices(client),
        leases=leases,
        owner=Owner(run.dag_id, run.run_id, run.url, run.installation),
        watch=Watches(spec, canary, before),
        prove=prove,
        window=spec.rollout.window,
        patience=spec.rollout.ready_within,
        hand=hand,
    )


@dataclass
class Watches:
    """Makes the watch of the last of a release's stretches, with those before it. What was counted in one is kept for
    the next; made anew, all of it is read again."""

    spec: ModelSpec
    canary: Canary
    before: Past | None
    stretches: dict[str, Stretch] = field(default_factory=dict)

    def __call__(self, watched: Sequence[Watched]) -> Watch:
        from model_release.judging import Judge
        from model_release.release.look import Watch

        bake = watched[-1].percent is None
        earlier = [one for one in watched[:-1] if one.opened_at is not None and not bake]
        over = [self._stretch(one, earlier[:place]) for place, one in enumerate(earlier)]
        stretch = self._stretch(watched[-1], earlier)
        stretch.end, stretch.extension = _end(self.spec, watched)
        return Watch(stretch, Judge(stretch.policy, self.before), self.canary, over)

    def _stretch(self, one: Watched, earlier: Sequence[Watched]) -> Stretch:
        """A stretch as far as the lease knows it now, with what was counted in it so far; `earlier` are those before
        it."""
        from model_release.judging import Policy

        key = str(one.opened_at)
        if key not in self.stretches:
            policy = Policy.from_dict(self.spec.policy(one.percent, **self._answered(one, earlier)))
            self.stretches[key] = self._read_from(one, policy)
        stretch = self.stretches[key]
        stretch.most = None if one.until is None else self._windows(one)
        stretch.end = stretch.opened + (stretch.most or 0) * stretch.window
        return stretch

    def _windows(self, one: Watched) -> int:
        """How many windows of a stretch that is over count. An older edition's, and one that a person's word ended, say
        none: all that ended in it."""
        if one.windows is not None:
            return one.windows
        length = datetime.fromisoformat(str(one.until)) - datetime.fromisoformat(str(one.opened_at))
        return max(length // self.spec.rollout.window, 0)

    def _answered(self, one: Watched, earlier: Sequence[Watched]) -> dict[str, Any]:
        """What the policy says of a canary about which a person is asked, or was, and of one whose deadline was put
        off. One look at a deadline came before each of these, at most."""
        if one.beside_question:
            return {"guard": True, "answered": sum(map(self._windows, earlier))}
        looked = sum(before.beside_question or before.extended for before in (*earlier, one))
        last = max((place for place, before in enumerate(earlier) if before.beside_question), default=-1)
        if last < 0:
            return {"looked": looked}
        answered = sum(map(self._windows, earlier[: last + 1]))
        watched = sum(self._windows(before) for before in earlier if not before.beside_question)
        # Watched longer is as long again as it was watched before.
        return {"answered": answered, "least_windows": answered + watched if one.again else 1, "looked": looked}

    def _read_from(self, one: Watched, policy: Policy) -> Stretch:
        from model_release.metrics import ValueReader, WindowReader
        from model_release.release.look import Stretch

        opened, window = datetime.fromisoformat(str(one.opened_at)), self.spec.rollout.window
        named = {entry.name for entry in (*policy.limits, *policy.values)}
        # In the bake nothing is read that can only be judged beside stable.
        metrics = [metric for metric in self.spec.judge.metrics if metric.name in named]
        canary, prometheus = self.canary, connections.prometheus()
        stable = None if one.percent is None else canary.baseline
        return Stretch(
            reader=WindowReader(
                prometheus,
                self.spec.judge.model_copy(update={"metrics": metrics}),
                namespace=canary.namespace,
                canary=canary.revision,
                stable=stable,
                start=opened,
                window=window,
            ),
            values=ValueReader(
                prometheus,
                [value for value in self.spec.judge.values if value.name in named],
                namespace=canary.namespace,
                service=canary.name,
                canary=canary.revision,
                stable=stable,
                shares=metrics,
                since=opened,
            ),
            percent=one.percent,
            policy=policy,
            opened=opened,
            end=opened,
            window=window,
        )


def _end(spec: ModelSpec, stretches: Sequence[Watched]) -> tuple[datetime, timedelta | None]:
    """When the last stretch has no more windows, and by how much that may still be put off. The whole canary has one
    deadline, and another one after each word of a person; each may be extended once, by as much."""
    one, rollout = stretches[-1], spec.rollout
    opened = datetime.fromisoformat(str(one.opened_at))
    if one.percent is None:
        doubtful = any(before.confidence is not None for before in stretches)
        return opened + (2 if doubtful else 1) * spec.baked, None
    if one.beside_question:
        return opened + spec.answer_within, None
    asked = max((place for place, before in enumerate(stretches) if before.beside_question), default=-1)
    since = [each for each in stretches[asked + 1 :] if each.opened_at is not None]
    begun, extended = datetime.fromisoformat(str(since[0].opened_at)), any(each.extended for each in since)
    return begun + (2 if extended else 1) * rollout.longest, None if extended else rollout.longest


def outcome(done: Drive) -> dict[str, Any]:
    """What a drive that is over hands to its task: JSON, stored by Airflow."""
    assert done.done is not None
    return {"decision": done.done.decision, "reason": done.done.reason, **counted(done)}


def counted(done: Drive) -> dict[str, Any]:
    """What was counted and moved, for the record: `put` reads it. With the stretches before those that were watched:
    the drive that watched them may not have come to record all of it."""
    steps: dict[str, dict[str, Any]] = {}
    for watch in done.watches.values():
        before = watch.before if watch.has_caught_up else ()
        for place, one in enumerate(before):
            steps.setdefault(one.key, _step(one, one.carried, before[:place], final=False))
        # The last watch of a stretch knows how much of it counts for those after it.
        for one in before:
            steps[one.key]["windows"] = [window.to_dict() for window in one.carried]
        steps[watch.stretch.key] = _step(watch.stretch, watch.windows, before, final=watch.final)
    past = next((one.judge.past for one in done.watches.values()), None)
    return {
        "past": past.to_dict() if past else None,
        "steps": list(steps.values()),
        "moved": [vars(one) for one in done.moved],
    }


def _step(one: Stretch, windows: Sequence[Window], before: Sequence[Stretch], *, final: bool) -> dict[str, Any]:
    return {
        "percent": one.percent,
        "opened": one.key,
        "policy": one.policy.to_dict(),
        "windows": [window.to_dict() for window in windows],
        "final": final,
        "carried": [[earlier.key, len(earlier.carried)] for earlier in before],
    }


def told(found: dict[str, Any]) -> Past | None:
    """What the drive's judge was told of stable's past, from what `counted` gave; an older edition's told nothing."""
    from model_release.judging import Past

    return Past.from_dict(found["past"]) if found.get("past") else None


def put(record: Record, spec: ModelSpec, found: dict[str, Any]) -> None:
    """Into the record what `counted` gave: each step is judged again from its counts. Again: it replaces itself; what
    the record has of a step from a later look stands."""
    from model_release.judging import Policy, judge
    from model_release.judging.window import windows_from

    before = told(found)
    counts = {step["opened"]: step["windows"] for step in found["steps"]}
    for step in found["steps"]:
        if not step["windows"] and not step["final"]:
            continue
        opened = datetime.fromisoformat(step["opened"])
        has = records.windows_of(record, step["percent"], opened)
        if not step["final"] and has >= len(step["windows"]):
            continue
        carried = [(key, count) for key, count in step.get("carried", ())]
        windows, policy = windows_from(step["windows"]), Policy.from_dict(step["policy"])
        earlier = windows_from([one for key, count in carried for one in counts[key][:count]])
        record.record_past(before)
        records.put_step(
            record,
            spec,
            percent=step["percent"],
            opened=opened,
            policy=policy,
            windows=windows,
            final=step["final"],
            verdict=judge(policy, [*earlier, *windows], before, final=step["final"]),
            carried=carried,
        )
    for move in found["moved"]:
        record.record_traffic(move["time"], move["change"], move["percent"], move["revisions"])
