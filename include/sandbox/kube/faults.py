"""Faults on purpose, for tests: answers that fail, permissions that are missing, a controller that is late.

Set over HTTP on loopback (`POST /-/faults`), kept in memory. Also here: which calls were made since the start,
from which the project's RBAC rules are derived (`GET /-/calls`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from sandbox.interfaces import Manifest, RevisionTemplate
from sandbox.kube import errors
from sandbox.kube.errors import ApiError
from sandbox.kube.resources import Kind

_REASONS = {
    401: ("Unauthorized", "Unauthorized"),
    429: ("TooManyRequests", "the server has received too many requests and has asked us to try again later"),
    500: ("InternalError", "Internal error occurred: a fault that the sandbox was asked for"),
    503: ("ServiceUnavailable", "the server is currently unable to handle the request"),
    504: ("Timeout", "the server was unable to return a response in the time allotted"),
}


@dataclass(frozen=True)
class Call:
    """One request, in the words of RBAC."""

    verb: str
    kind: Kind
    namespace: str
    name: str | None
    subresource: str | None = None

    def refusal(self, status: int) -> ApiError:
        if status == 403:
            return errors.forbidden(self.kind, self.verb, self.namespace, self.name)
        if status == 404:
            return errors.not_found(self.kind, self.name or "")
        if status == 409:
            return errors.conflict(self.kind, self.name or "")
        reason, text = _REASONS.get(status, ("InternalError", f"status {status}, as the sandbox was asked for"))
        return ApiError(status, reason, text)


# Parts of the cluster that can be away: Knative's controllers, its webhook, the gateway's controller.
Part = Literal["knative", "knative-webhook", "gateway"]


class Match(BaseModel):
    """Which calls a fault is for; what is left out matches everything."""

    model_config = ConfigDict(extra="forbid")
    verb: str | None = None
    resource: str | None = None  # plural, as in RBAC rules
    subresource: str | None = None
    namespace: str | None = None
    name: str | None = None

    def hits(self, call: Call) -> bool:
        said = {
            "verb": call.verb,
            "resource": call.kind.plural,
            "subresource": call.subresource,
            "namespace": call.namespace,
            "name": call.name,
        }
        return all(said[k] == v for k, v in self.model_dump(exclude_none=True).items())


class Pods(BaseModel):
    """What becomes of pods, of one version (the last part of its storage URI) or of one revision.

    `ready_after`: they are not ready before so many seconds from the start of their containers, also after a crash.
    `killed`: their processes end as soon as they are ready.
    """

    model_config = ConfigDict(extra="forbid")
    version: str | None = None
    revision: str | None = None
    ready_after: float = Field(0.0, ge=0.0, le=3600.0)
    killed: bool = False

    def hits(self, template: RevisionTemplate) -> bool:
        version = template.storage_uri.rstrip("/").rpartition("/")[2]
        return self.version in (None, version) and self.revision in (None, template.key.name)


class Fault(BaseModel):
    """One fault: for the next `times` matching calls (None: for all), answer `status` after `delay` seconds.

    `every` lets calls through in between: 2 fails the first, the third, the fifth. `after_write` lets the request take
    effect before it fails. `drop` closes the connection without an answer. `status` None only delays. `late` holds
    back the configuration controller for that many rounds when a configuration of the name in `match` has work to
    do: Knative's Route is then reconciled before its Configuration (docs/facts.md#the-late-roll-back-race).

    `away` stops a part of the cluster until the fault is taken away: nothing is failed then, nothing is done either.
    `pods` makes pods slow, or kills them `times` times, each when it has been ready for `delay` seconds.
    """

    model_config = ConfigDict(extra="forbid")
    match: Match = Field(default_factory=Match)
    status: int | None = Field(None, ge=400, le=599)
    times: int | None = Field(None, ge=1)
    every: int = Field(1, ge=1)
    seen: int = Field(0, ge=0)  # matching calls so far, those that were let through included
    after_write: bool = False
    drop: bool = False
    delay: float = Field(0.0, ge=0.0, le=600.0)
    late: int | None = Field(None, ge=1, le=100)
    away: Part | None = None
    pods: Pods | None = None

    @property
    def hits_calls(self) -> bool:
        """Whether it is for calls of the API at all."""
        return self.late is None and self.away is None and self.pods is None


class CallLine(NamedTuple):
    agent: str
    verb: str
    group: str
    resource: str
    subresource: str
    namespace: str


@dataclass
class Faults:
    active: list[Fault] = field(default_factory=list)
    _calls: Counter[CallLine] = field(default_factory=Counter)

    def record(self, call: Call, agent: str) -> None:
        kind = call.kind
        line = CallLine(agent, call.verb, kind.group, kind.plural, call.subresource or "", call.namespace)
        self._calls[line] += 1

    def calls(self) -> list[Manifest]:
        return [{**line._asdict(), "count": count} for line, count in sorted(self._calls.items())]

    def take(self, call: Call) -> Fault | None:
        """The first fault for this call, counted down."""
        for fault in self.active:
            if fault.hits_calls and fault.match.hits(call):
                fault.seen += 1
                if (fault.seen - 1) % fault.every == 0:
                    self._count_down(fault)
                    return fault
        return None

    def allows(self, call: Call) -> bool:
        """Whether no 403 is set for this call: what a SelfSubjectAccessReview answers."""
        return not any(f.status == 403 and f.match.hits(call) for f in self.active)

    def is_away(self, part: Part) -> bool:
        return any(fault.away == part for fault in self.active)

    def ready_after(self, template: RevisionTemplate) -> float:
        """Seconds that its containers take at least."""
        found = (f.pods.ready_after for f in self.active if f.pods and f.pods.hits(template))
        return max(found, default=0.0)

    def kills(self, template: RevisionTemplate, ready_for: float) -> bool:
        """Whether it is to be killed now, as it has been ready for so many seconds; each yes is counted down."""
        for fault in self.active:
            if fault.pods and fault.pods.killed and fault.pods.hits(template) and ready_for >= fault.delay:
                self._count_down(fault)
                return True
        return False

    def holds_back(self, configuration: Manifest) -> bool:
        """Whether the configuration controller is late now; each asking is one round less."""
        meta = configuration["metadata"]
        for fault in self.active:
            if fault.late is None or fault.match.name not in (None, meta["name"]):
                continue
            if fault.match.namespace not in (None, meta["namespace"]):
                continue
            fault.late -= 1
            if not fault.late:
                self.active.remove(fault)
            return True
        return False

    def _count_down(self, fault: Fault) -> None:
        if fault.times is None:
            return
        fault.times -= 1
        if not fault.times:
            self.active.remove(fault)
