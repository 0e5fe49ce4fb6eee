"""The hand that waits until a canary's traffic is back with its baseline: a run's, a person's.

Who looks again anyway (`drive`, `guard`) goes step by step with `cluster.settle.roll_back` instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from model_release.cluster.progress import Progress, State, wait
from model_release.cluster.release import Phase
from model_release.cluster.settle import assess_rolled_back, roll_back
from model_release.errors import NotSettled

if TYPE_CHECKING:
    from model_release.cluster.change import Prove, Remember
    from model_release.cluster.leases import Leases
    from model_release.cluster.release import Owner, Release
    from model_release.cluster.services import InferenceServices


def take_back(
    services: InferenceServices,
    release: Release,
    remember: Remember,
    *,
    seconds: float,
    prove: Prove | None = None,
    tell: Callable[[Progress], None] = lambda _: None,
) -> Progress:
    """Takes the traffic off the canary, and waits for `seconds` until the baseline has it, by name. Again: finds it.

    Raises:
        NotSettled: it did not take effect, and why.
    """
    barred = list(release.barred)

    def note(revision: str) -> None:
        remember(revision)
        barred.append(revision)

    def step() -> Progress:
        now = replace(release, barred=tuple(barred))
        live = roll_back(services, now, note, prove)
        progress = assess_rolled_back(live, now)
        if live is not None and live.is_stopped and progress.state is State.LOST:
            return Progress(State.READY, f"{progress.sentence}; nobody is served, and it starts without the canary")
        return progress

    progress = wait(step, seconds, poll=0.5, tell=tell)
    if progress.state is not State.READY:
        raise NotSettled(f"the roll-back did not take effect: {progress.sentence}")
    return progress


def restored(leases: Leases, namespace: str, name: str, owner: Owner) -> None:
    """Records that the baseline has the traffic again."""
    leases.update(namespace, name, owner, _restored)


def _restored(release: Release) -> Release:
    return replace(release, phase=Phase.RESTORED) if release.phase is Phase.CLOSING else release
