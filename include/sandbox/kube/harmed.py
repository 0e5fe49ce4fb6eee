"""Faults of pods: some that take long to be ready, some whose processes are killed."""

from __future__ import annotations

from dataclasses import replace
from time import monotonic

from sandbox.interfaces import Phase, PodState, RevisionKey, RevisionTemplate, Workloads
from sandbox.kube.faults import Faults

# Seconds for which a process that was killed may still be told to be ready.
DYING = 0.5


class Harmed:
    """Workloads to which happens what the faults say; without faults it is as if it were not there.

    Whoever asks for a state drives it: a process is killed when it is next looked at.
    """

    def __init__(self, workloads: Workloads, faults: Faults) -> None:
        self._workloads, self._faults = workloads, faults
        self._templates: dict[RevisionKey, RevisionTemplate] = {}
        self._began: dict[RevisionKey, float] = {}  # when its containers last began
        self._ready: dict[RevisionKey, float] = {}  # since when it is ready
        self._killed: dict[RevisionKey, float] = {}  # when it last was

    async def ensure(self, template: RevisionTemplate) -> None:
        if template.key not in self._templates:
            self._began[template.key] = monotonic()
        self._templates[template.key] = template
        await self._workloads.ensure(template)

    async def remove(self, key: RevisionKey) -> None:
        for kept in (self._templates, self._began, self._ready, self._killed):
            kept.pop(key, None)
        await self._workloads.remove(key)

    def kill(self, key: RevisionKey) -> None:
        self._workloads.kill(key)

    def log(self, key: RevisionKey, tail: int | None = None) -> str:
        return self._workloads.log(key, tail)

    def state(self, key: RevisionKey) -> PodState:
        state, now = self._workloads.state(key), monotonic()
        template = self._templates.get(key)
        if template is None:
            return state
        if state.phase is Phase.CRASHED:
            self._began[key] = now
        if state.phase is not Phase.READY:
            self._ready.pop(key, None)
            return state
        if now - self._began[key] < self._faults.ready_after(template):
            return replace(state, phase=Phase.STARTING, ready_replicas=0)
        since = self._ready.setdefault(key, now)
        is_dying = now - self._killed.get(key, -DYING) < DYING
        if not is_dying and self._faults.kills(template, now - since):
            self._killed[key] = now
            self._workloads.kill(key)
        return state
