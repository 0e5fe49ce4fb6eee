"""The decision record: what was planned, counted, decided and done in one release. Data only, no I/O.

Whoever stores it writes `to_json()`; whoever doubts a decision reads it with `from_json()` and calls `replay()`,
which judges the recorded counts again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from .judge import Judge
from .past import Past
from .policy import Policy
from .replay import Look, Replay, Replays, asked_for, placed
from .verdict import Verdict
from .window import Window, windows_from

FORMAT = 1
EDITION = 4  # of the judge that records name; a step that names none was judged by the first
Carried = tuple[str, int]  # when a step was opened, and how many of its windows
Outcome = Literal["promoted", "rolled_back", "first", "nothing_new", "inconclusive", "failed", "published"]
OUTCOMES: tuple[str, ...] = get_args(Outcome)


class RecordError(ValueError):
    """A document that is no decision record. The message is one line and begins with the field's path."""


@dataclass
class Record:
    """One release from its start to its end. Recording the same thing twice replaces it, so a task may run again.

    The keys are: a step by `percent` and `opened`; a change of traffic by `time` and `task`.
    """

    release: str
    model: str
    service: str
    version: str | None
    started: str
    baseline: dict[str, Any] | None = None
    canary: dict[str, Any] | None = None
    run: dict[str, Any] = field(default_factory=dict)
    ended: str | None = None
    outcome: str | None = None
    reason: str = ""
    cause: str | None = None  # what turned it back, or how far one that failed had come, in a word
    plan: dict[str, Any] | None = None
    steps: list[dict[str, Any]] = field(default_factory=list)
    traffic: list[dict[str, Any]] = field(default_factory=list)
    approvals: list[dict[str, Any]] = field(default_factory=list)
    source: dict[str, Any] | None = None  # what the run released, and the rule by which it was chosen
    evaluation: dict[str, Any] | None = None  # how it answered labelled images, beside the stable version
    shadow: dict[str, Any] | None = None  # how it answered samples before any traffic, beside the stable revision
    retrospect: dict[str, Any] | None = None  # what the judge would have said of traffic that has passed
    past: dict[str, Any] | None = None  # what stable did before, as the judge was told
    notices: list[str] = field(default_factory=list)  # what people were told, so that nobody is told twice
    cluster: dict[str, Any] | None = None  # whose service it was: the API's address, and the uid of the service's Lease
    format: int = FORMAT

    @classmethod
    def new(
        cls,
        release: str,
        *,
        model: str,
        service: str,
        version: str | None,
        started: str,
        baseline: Mapping[str, Any] | None = None,
        canary: Mapping[str, Any] | None = None,
        run: Mapping[str, Any] | None = None,
        plan: Mapping[str, Any] | None = None,
    ) -> Record:
        """A record at the release's start; `service` is namespace/name, `started` ISO 8601."""
        return cls(
            release=release,
            model=model,
            service=service,
            version=version,
            started=started,
            baseline=None if baseline is None else dict(baseline),
            canary=None if canary is None else dict(canary),
            run=dict(run or {}),
            plan=None if plan is None else dict(plan),
        )

    def record_step(
        self,
        percent: int,
        opened: str,
        *,
        window_seconds: float,
        policy: Policy,
        windows: Sequence[Window],
        final: bool,
        verdict: Verdict,
        carried: Sequence[Carried] = (),
    ) -> None:
        """What was counted and said at one step, as far as it got. `carried`: the steps whose windows the judge had
        taken in before, each by when it was opened, and how many windows of it; none where the step was judged alone.
        """
        entry = {
            "edition": EDITION,
            "percent": percent,
            "opened": opened,
            "window_seconds": window_seconds,
            "policy": policy.to_dict(),
            "windows": [w.to_dict() for w in windows],
            "final": final,
            "verdict": verdict.to_dict(),
        }
        if carried:
            entry["carried"] = [list(one) for one in carried]
        _put(self.steps, ("percent", "opened"), entry)

    def carried(self, step: Mapping[str, Any]) -> list[Window]:
        """The windows of the steps before it that its judge had taken in.

        Raises:
            RecordError: the record has fewer.
        """
        windows: list[Window] = []
        for opened, count in step.get("carried") or ():
            there: Sequence[Any] = next((one["windows"] for one in self.steps if one.get("opened") == opened), [])
            if len(there) < count:
                raise RecordError(f"steps: {count} windows of the step of {opened} are carried, {len(there)} are there")
            windows += windows_from(there[:count], f"the windows of {opened}")
        return windows

    def record_past(self, past: Past | None) -> None:
        """What the judge is told from now on of stable before the release. Steps that were judged by another past, as
        before the run was cleared, keep theirs."""
        told = None if past is None else past.to_dict()
        if told != self.past:
            for step in self.steps:
                step.setdefault("past", self.past)
            self.past = told

    def past_of(self, step: Mapping[str, Any]) -> Past | None:
        """What the judge of that step had been told."""
        told = step.get("past", self.past)
        return None if told is None else Past.from_dict(told)

    def record_traffic(self, time: str, task: str, percent: int, revisions: Mapping[str, int]) -> None:
        """A change of traffic as it was verified: each revision's percent after it."""
        entry = {"time": time, "task": task, "percent": percent, "revisions": dict(revisions)}
        _put(self.traffic, ("time", "task"), entry)

    def record_approval(self, time: str, who: str, decision: str, reason: str = "") -> None:
        """What a named person decided."""
        _put(self.approvals, ("time", "who"), {"time": time, "who": who, "decision": decision, "reason": reason})

    def finish(self, outcome: str, reason: str, ended: str, cause: str | None = None) -> None:
        """How the release ended; called again, the last call stands."""
        if outcome not in OUTCOMES:
            raise RecordError(f"outcome: {outcome!r} is none of {', '.join(OUTCOMES)}")
        self.outcome, self.reason, self.ended, self.cause = outcome, reason, ended, cause

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _FIELDS}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, data: Any) -> Record:
        """Raises RecordError for anything that is no record of this format."""
        if not isinstance(data, Mapping):
            raise RecordError(f"record: a mapping is expected here, not {type(data).__name__}")
        if data.get("format") != FORMAT:
            raise RecordError(f"format: {data.get('format')!r} is unknown; this judge reads format {FORMAT}")
        unknown = next((key for key in data if key not in _FIELDS), None)
        if unknown is not None:
            raise RecordError(f"{unknown}: unknown field of a record")
        for name in ("release", "model", "service", "started"):
            if not isinstance(data.get(name), str):
                raise RecordError(f"{name}: {data.get(name)!r} is not text")
        for name in ("steps", "traffic", "approvals", "notices"):
            if not isinstance(data.get(name, []), list):
                raise RecordError(f"{name}: a list is expected here")
        if data.get("outcome") is not None and data["outcome"] not in OUTCOMES:
            raise RecordError(f"outcome: {data['outcome']!r} is none of {', '.join(OUTCOMES)}")
        return cls(**{"version": None, **data})

    @classmethod
    def from_json(cls, text: str) -> Record:
        try:
            data = json.loads(text)
        except ValueError as refusal:
            raise RecordError(f"record: not JSON: {refusal}") from None
        return cls.from_dict(data)

    def replay(self, policy: Policy | None = None, kept: Replays | None = None) -> list[Look]:
        """Every look of every step judged again, by the recorded policies or by another one.

        With the recorded policies the last look of each step gives the recorded verdict, unless an older edition of the
        judge had said it. Another policy keeps what belongs to the release and not to taste: each step's
        own `traffic` and `steps`, the shares or the ramp, and what a person had answered. `kept` remembers what was
        judged by the recorded policies, for the next time.
        """
        steps = (self._replayed(i, step, policy, kept if policy is None else None) for i, step in enumerate(self.steps))
        return [look for looks in steps for look in looks]

    def _replayed(self, i: int, step: Any, policy: Policy | None, kept: Replays | None) -> list[Look]:
        """The looks of a step, with all of its windows judged again until one decided."""
        if not isinstance(step, Mapping):
            raise RecordError(f"steps[{i}]: a mapping is expected here, not {type(step).__name__}")
        try:
            recorded = Policy.from_dict(step["policy"], f"steps[{i}].policy")
            percent, opened, entries, final = (step[name] for name in ("percent", "opened", "windows", "final"))
            before, past = self.carried(step), self.past_of(step)
        except KeyError as missing:
            raise RecordError(f"steps[{i}].{missing.args[0]}: is missing") from None
        if not isinstance(percent, int) or not isinstance(opened, str):
            raise RecordError(f"steps[{i}]: percent {percent!r} or opened {opened!r} is no percent and time")
        used = recorded if policy is None else placed(policy, recorded)
        key, began = (self.release, percent, opened), (used, before, past)
        one = kept.take(key, began, entries) if kept is not None and isinstance(entries, list) else None
        windows = windows_from(entries, f"steps[{i}].windows", len(one.taken) if one else 0)
        if policy is not None:
            windows = [asked_for(window, used) for window in windows]
            before = [asked_for(window, used) for window in before]
        if one is None:
            one = Replay(percent, opened, began, Judge(used, past))
            one.judge.extend(before)
        one.go_on(entries[len(one.taken) :], windows)
        looks = one.looked(whole=len(one.taken) == len(entries), final=bool(final))
        if kept is not None:
            kept.keep(key, one)
        return looks

    @property
    def editions(self) -> tuple[int, ...]:
        """The editions of the judge whose verdicts are recorded, each once and in order."""
        return tuple(sorted({_edition(step) for step in self.steps}))

    def differences(self) -> list[str]:
        """Where a replay does not give the recorded verdict: one line for each such step, none when all is well.

        Of what another edition of the judge has said, only the decision is compared: its figures had other meanings.
        """
        said = {(look.percent, look.opened): look.verdict for look in self.replay()}
        lines = []
        for i, step in enumerate(self.steps):
            now, then = said[step["percent"], step["opened"]].to_dict(), step.get("verdict")
            was = then.get("decision") if isinstance(then, Mapping) else then
            edition = _edition(step)
            if edition == EDITION and now != then:
                lines.append(f"steps[{i}]: recorded {was}, replayed {now['decision']}: {now['reason']}")
            elif edition != EDITION and now["decision"] != was:
                lines.append(
                    f"steps[{i}]: edition {edition} of the judge decided {was}, edition {EDITION} decides "
                    f"{now['decision']}: {now['reason']}"
                )
        return lines


def _edition(step: Mapping[str, Any]) -> int:
    edition = step.get("edition", 1)
    return edition if isinstance(edition, int) else 1


_FIELDS = ("format", *(f.name for f in fields(Record) if f.name != "format"))


def _put(entries: list[dict[str, Any]], key: tuple[str, ...], entry: dict[str, Any]) -> None:
    for i, there in enumerate(entries):
        if all(there.get(k) == entry[k] for k in key):
            entries[i] = entry
            return
    entries.append(entry)
