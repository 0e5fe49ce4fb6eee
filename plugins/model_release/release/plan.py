"""What a release will need, by what Prometheus knows of the stable revision: said by the command, the preflight and the
page before anything moves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from model_release.errors import MetricsRefused, NotReady
from model_release.spec import ModelSpec

if TYPE_CHECKING:
    from model_release.judging import Past, Policy
    from model_release.judging.bake import Bake
    from model_release.judging.foretold import Plan
    from model_release.judging.proposal import Proposal
    from model_release.metrics import Before, Prometheus

# What is assumed of a service of which nobody knows how busy it is.
ASSUMED = 10.0
# A release is refused by no less: a service that is younger is not known.
LEAST_WINDOWS = 60
LEAST_REQUESTS = 100
# And no limit is proposed by fewer requests.
LEAST_COUNTED = 1000
GO_ANYWAY = (
    "or approval: on_inconclusive, and a person decides at the deadline; or rollout.if_too_slow: go, and it is tried "
    "all the same"
)
NOTHING = "nothing is stable yet"


@dataclass(frozen=True)
class Foreseen:
    """`past`: in one line, what stable did, or why that is not known and what was assumed. `known`: whether the plan is
    of this service's own past and traffic, long enough to refuse a release by it. `goes`: why it goes on even where it
    cannot end in time, by the model file; nothing where it does not. `bake`: None where nothing is watched on."""

    past: str
    known: bool
    plan: Plan
    goes: str
    bake: Bake | None = None

    @property
    def sentences(self) -> tuple[str, ...]:
        """A line for each thing that is to be known before the release."""
        bake = () if self.bake is None or self.plan.never else (self.bake.sentence,)
        return self.past, *self.plan.sentences, *bake

    @property
    def trouble(self) -> str:
        """That good canaries would not be promoted in time, with what would let them, in one line; else nothing. Of
        what is not known nothing is said."""
        return self.plan.refusal if self.known else ""

    @property
    def refusal(self) -> str:
        """The trouble, where it ends the release: it would be rolled back at its deadline, and nobody wanted it so."""
        return "" if self.goes or not self.trouble else f"{self.trouble}; {GO_ANYWAY}"

    def to_dict(self) -> dict[str, Any]:
        """JSON, for the record and for programs."""
        told = self.plan.to_dict() | {"sentences": list(self.sentences), "refusal": self.refusal}
        bake = 0.0 if self.bake is None else self.bake.minutes
        return told | {"past": self.past, "known": self.known, "bake_minutes": bake}


def foresee(
    spec: ModelSpec,
    prometheus: Prometheus | None,
    revision: str | None,
    started: str | None,
    *,
    now: datetime | None = None,
    per_second: float | None = None,
    unknown: str = NOTHING,
) -> Foreseen:
    """The plan of a release beside the stable `revision`, whose name has meant what it does since `started`.

    Asked again, it looks again; never an error for what Prometheus cannot say. `per_second` is taken instead of the
    traffic that was counted, and `unknown` says why there is no `revision`.

    Raises:
        PolicyError: the model file's figures cannot be judged by.
    """
    from model_release.judging import Policy
    from model_release.judging.plan import chosen_deadline, plan

    policy = Policy.from_dict(spec.policy(_first(spec)))
    found: Before | None
    if revision is None:
        found, why = None, unknown
    else:
        found, why = stable_before(spec, prometheus, revision, started, now or datetime.now(UTC))
    rate = found.requests_per_second if found else None
    counted, past = rate is not None, found.past if found else None
    asked = per_second if per_second is not None else ASSUMED if rate is None else rate
    enough = found is not None and found.windows >= LEAST_WINDOWS
    requests = sum(side.requests or 0 for side in past.windows) if past else 0
    traffic = per_second is not None or counted
    known = traffic and enough and requests >= LEAST_REQUESTS
    if spec.rollout.deadline is None and known:
        window = spec.rollout.window.total_seconds()
        minutes = chosen_deadline(policy, requests_per_second=asked, window_seconds=window, past=past)
        spec = as_chosen(spec, minutes)
    return Foreseen(
        past=_told(policy, past, why, traffic=traffic),
        known=known,
        plan=plan(policy, past=past, **_traffic(spec, asked)),
        goes=_goes(spec),
        bake=_bake(spec, asked, past, known=known),
    )


def _bake(spec: ModelSpec, per_second: float, past: Past | None, *, known: bool) -> Bake | None:
    """The bake that the model file gives or, where it does not say, the one that is chosen by what is known."""
    from model_release.judging import Policy
    from model_release.judging.bake import bake

    if not spec.bakes:
        return None
    # What is known late says nothing before: the bake is that much longer.
    late, rollout = spec.judge.delay.total_seconds() / 60, spec.rollout
    found = bake(
        Policy.from_dict(spec.policy(None)),
        requests_per_second=per_second,
        window_seconds=rollout.window.total_seconds(),
        past=past,
        minutes=None if rollout.bake is None and known else spec.baked.total_seconds() / 60 - late,
    )
    return replace(found, minutes=found.minutes + late)


def as_chosen(spec: ModelSpec, deadline: float, bake: float = 0.0) -> ModelSpec:
    """The model file with the deadline and the bake that were chosen for a release, in minutes, where it does not give
    them: two windows at least, and no bake where nothing can be watched on."""
    least, given = 2 * spec.rollout.window, spec.rollout
    chosen: dict[str, timedelta] = {}
    if given.deadline is None:
        chosen["deadline"] = max(timedelta(minutes=deadline), least)
    if given.bake is None and bake and spec.bakes:
        chosen["bake"] = max(timedelta(minutes=bake), least)
    return spec.model_copy(update={"rollout": given.model_copy(update=chosen)})


def calibrated(
    spec: ModelSpec, prometheus: Prometheus, revision: str, started: str | None, *, now: datetime | None = None
) -> tuple[tuple[Proposal, ...], str]:
    """The limits that stable's own past proposes, and that past in one line.

    Raises:
        NotReady: there is no past, or too little of it to set a limit by.
    """
    from model_release.judging import Policy
    from model_release.judging.proposal import propose

    policy = Policy.from_dict(spec.policy(_first(spec)))
    found, why = stable_before(spec, prometheus, revision, started, now or datetime.now(UTC))
    rate = found.requests_per_second if found else None
    requests = sum(side.requests or 0 for side in found.past.windows) if found else 0
    if found is None or rate is None or not requests:
        raise NotReady(f"there is no past to calibrate by: {why}")
    if found.windows < LEAST_WINDOWS or requests < LEAST_COUNTED:
        raise NotReady(
            f"{requests} requests in {found.windows} windows are too little to set a limit by; {LEAST_COUNTED} in "
            f"{LEAST_WINDOWS} are the least{f' ({why})' if why else ''}"
        )
    told = _told(policy, found.past, why, traffic=True)
    return propose(policy, found.past, **_traffic(spec, rate)), f"{told}, at {rate:.3g} requests a second"


def _traffic(spec: ModelSpec, per_second: float) -> dict[str, Any]:
    rollout = spec.rollout
    return {
        "requests_per_second": per_second,
        "deadline_minutes": rollout.longest.total_seconds() / 60,
        "window_seconds": rollout.window.total_seconds(),
    }


def _goes(spec: ModelSpec) -> str:
    if spec.approval == "on_inconclusive":
        return "a person is asked at the deadline, by approval: on_inconclusive"
    return "it is tried all the same, by rollout.if_too_slow: go" if spec.rollout.if_too_slow == "go" else ""


def _first(spec: ModelSpec) -> int:
    """Some share of the canary's: the plan moves it by the policy."""
    return spec.rollout.steps[0] if spec.rollout.steps else 1


def stable_before(
    spec: ModelSpec, prometheus: Prometheus | None, revision: str, started: str | None, now: datetime
) -> tuple[Before | None, str]:
    """What there is of the stable `revision` before `now`, and why there is no more; its name has meant what it does
    since `started`. Asked again, it reads the same windows. Never an error."""
    from model_release.metrics import read_before

    if prometheus is None:
        return None, "Prometheus was not asked"
    if started is None or revision == f"{spec.service.name}-predictor":
        return None, f"since when {revision} has meant what it means now is not known"
    try:
        found = read_before(
            prometheus,
            spec.judge,
            namespace=spec.service.namespace,
            revision=revision,
            since=datetime.fromisoformat(started),
            before=now,
            window=spec.rollout.window,
        )
    except MetricsRefused as error:  # the connection says what cannot be
        return None, str(error)
    if not found.past.windows:
        return found, found.trouble or f"{revision} had no request that Prometheus knows of"
    return found, found.trouble


def _told(policy: Policy, past: Past | None, why: str, *, traffic: bool) -> str:
    from model_release.judging import Judge

    if past is not None and past.windows:
        return f"stable: {Judge(policy, past).before}" + (f" (not further: {why})" if why else "")
    busy = "" if traffic else f"{ASSUMED:g} requests a second and "
    return f"no past: {why}; assumed are {busy}bad requests one by one, at a fifth of each limit"
