"""What the controllers that start and stop processes have in common: which run, and which are being stopped."""

from __future__ import annotations

import asyncio
import logging

from sandbox.interfaces import Phase, PodState, RevisionKey, RevisionTemplate, Workloads
from sandbox.kube.reconcilers import Objects
from sandbox.kube.registry import Registry

log = logging.getLogger(__name__)


class Processes(Objects):
    """The processes of one kind of object, by the object's name."""

    def __init__(self, registry: Registry, manager: str, workloads: Workloads) -> None:
        super().__init__(registry, manager)
        self._workloads = workloads
        self._running: dict[RevisionKey, str] = {}  # → uid of the object that was started
        self._removals: dict[RevisionKey, asyncio.Task[None]] = {}

    def states(self) -> dict[RevisionKey, PodState]:
        return {key: self._workloads.state(key) for key in self._running}

    def serves(self, key: RevisionKey) -> bool:
        """Whether its processes answer now."""
        return key in self._running and self._workloads.state(key).phase is Phase.READY

    async def removed(self) -> bool:
        """Wait until what is being stopped has stopped; False when there was nothing."""
        pending = list(self._removals.values())
        await asyncio.gather(*pending)
        return bool(pending)

    async def _start(self, template: RevisionTemplate, uid: str) -> None:
        if template.key in self._removals:
            return  # it is still being stopped; the next round starts it
        self._running[template.key] = uid
        try:
            await self._workloads.ensure(template)
        except Exception:
            log.exception("%s could not be started; it is tried again", template.key.name)

    def _stop(self, key: RevisionKey) -> None:
        self._running.pop(key, None)
        self._removals[key] = asyncio.create_task(self._remove(key))

    async def _remove(self, key: RevisionKey) -> None:
        try:
            await self._workloads.remove(key)
        except Exception:
            log.exception("%s could not be stopped", key.name)
        finally:
            self._removals.pop(key, None)
