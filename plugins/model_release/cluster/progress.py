"""How far a change of the cluster has come, told by pure functions that a task or a trigger may poll."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from model_release.cluster.inference_service import InferenceService
from model_release.errors import ClusterUnavailable

# How long a sign of failure may last, in seconds. A container that crashed once may come up the second time; a pod
# that fits on no node waits for the cluster's autoscaler (docs/facts.md#how-a-failing-revision-shows).
FAILED_LOAD_GRACE = 10.0
NOT_READY_GRACE = 60.0


class State(StrEnum):
    """Where a change stands."""

    WAITING = "waiting"
    FAILING = "failing"  # a sign of failure that may pass by itself; `Progress.grace` says how long it may last
    READY = "ready"
    FAILED = "failed"
    WRONG_BASELINE = "wrong baseline"  # settle, then begin anew (docs/facts.md#the-late-roll-back-race)
    LOST = "lost"  # somebody else changed the service: settle, do not judge

    @property
    def over(self) -> bool:
        """Whether waiting longer can change nothing."""
        return self not in (State.WAITING, State.FAILING)


@dataclass(frozen=True)
class Progress:
    """A state, one sentence a person understands, and the revision it is about."""

    state: State
    sentence: str
    revision: str | None = None
    grace: float = 0.0  # seconds; only with FAILING

    def __str__(self) -> str:
        return self.sentence


class Patience:
    """Turns FAILING into FAILED once it has lasted for its grace without a break.

    Remembers one moment; a trigger that is moved to another triggerer begins a new grace, which costs seconds.
    """

    def __init__(self) -> None:
        self._since: float | None = None

    def judge(self, progress: Progress, now: float) -> Progress:
        """`progress`, or the same as FAILED. `now`: seconds of any clock that never goes back."""
        if progress.state is not State.FAILING:
            self._since = None
            return progress
        if self._since is None:
            self._since = now
        return replace(progress, state=State.FAILED) if now - self._since >= progress.grace else progress


def wait(
    assess: Callable[[], Progress],
    deadline: float,
    *,
    poll: float = 0.5,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    tell: Callable[[Progress], None] = lambda _: None,
) -> Progress:
    """Call `assess` every `poll` seconds until its state is over, for `deadline` seconds at most.

    Returns the last progress; its state is WAITING or FAILING when the deadline passed. `tell` gets each progress
    whose sentence is new. An API that is away meanwhile counts as waiting.

    Raises:
        ClusterUnavailable: when the API was still away at the deadline.
    """
    patience, told, end = Patience(), "", clock() + deadline
    while True:
        try:
            progress = patience.judge(assess(), clock())
            if progress.sentence != told:
                told = progress.sentence
                tell(progress)
            if progress.state.over or clock() >= end:
                return progress
        except ClusterUnavailable:
            if clock() >= end:
                raise
        sleep(min(poll, max(0.0, end - clock())))


def trouble_of(live: InferenceService, revision: str | None) -> Progress | None:
    """A sign that the newest revision fails, with KServe's own message; None when there is none.

    `revision` is its name once status shows it: before, what status says of the model is about the one before.
    """
    status, predictor = live.model_status, live.conditions.get("PredictorReady")
    if status.transition == "InvalidSpec":
        return Progress(State.FAILING, f"{live.key}: {failure_of(live)}", revision, FAILED_LOAD_GRACE)
    if revision is not None and status.transition == "BlockedByFailedLoad":
        return Progress(State.FAILING, f"{revision} {failure_of(live)}", revision, FAILED_LOAD_GRACE)
    if predictor is not None and predictor.reason == "ReconcileFailed":
        return _refused(predictor.message, revision or live.key)
    if predictor is not None and predictor.status == "False":
        said = predictor.message or predictor.reason
        return Progress(State.FAILING, f"{revision or live.key} is not ready: {said}", revision, NOT_READY_GRACE)
    return None


def _refused(said: str, what: str) -> Progress:
    """KServe took the spec, and Knative's webhook has the last word; one that does not answer is not saying no."""
    if "denied the request" in said:
        words = " ".join(said.partition("denied the request: ")[2].split())
        return Progress(State.FAILING, f"{what} is refused by Knative: {words}", grace=FAILED_LOAD_GRACE)
    if "failed calling webhook" in said:
        return Progress(State.WAITING, f"{what}: KServe cannot act now: {said}")
    return Progress(State.FAILING, f"{what} is not ready: {said}", grace=NOT_READY_GRACE)


def failure_of(live: InferenceService) -> str:
    """`fails to load (exit code 1): No model found in …`."""
    status = live.model_status
    predictor = live.conditions.get("PredictorReady")
    said = status.failure or (predictor.message if predictor else "") or "KServe gives no reason"
    code = "" if status.exit_code is None else f" (exit code {status.exit_code})"
    # The end of a log tells what failed; its beginning is a traceback.
    return f"fails to load{code}: {said if len(said) <= 500 else '…' + said[-500:]}"
