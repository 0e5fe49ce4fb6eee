"""One look at a canary: what was counted since the last one, and what does the judge say."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from model_release.errors import CanaryLost, MetricsRefused, MetricsUnavailable, ReleaseError

if TYPE_CHECKING:
    from model_release.cluster.change import Canary
    from model_release.cluster.inference_service import InferenceService
    from model_release.judging import Judge, Policy, Verdict, Window
    from model_release.metrics import ValueReader, WindowReader
    from model_release.release.advance import Judged

# How long the cluster or Prometheus may be away before the canary, which nobody watches meanwhile, is taken back.
BLIND = timedelta(minutes=2)
# Seconds of one look for values: what is left of a long past is for the next one.
LONGEST = 15.0
# Requests on the stable revision before its own failures are told: fewer could be one user's bad luck.
ENOUGH_TO_TELL = 100


@dataclass
class Stretch:
    """What was counted in one stretch of time, at one share of the traffic: each window once, in order. Made anew, it
    reads the same windows again.

    Args:
        percent: None for the bake, in which the promoted canary is alone.
        policy: by which the release was judged in it.
        opened: when its windows begin.
        end: there are no windows after it.
        most: so many of its windows are carried to those after it; None: all.
        extension: by so much the end may be put off, once; None: it may not.
    """

    reader: WindowReader
    values: ValueReader
    percent: int | None
    policy: Policy
    opened: datetime
    end: datetime
    window: timedelta
    most: int | None = None
    extension: timedelta | None = None
    counted: list[Window] = field(default_factory=list)
    _unmeasured: list[Window] = field(default_factory=list)

    def read(self, moment: datetime, until: float) -> list[Window]:
        """What has ended by `moment` and was not read before. `until`: when values have had time enough.

        Raises:
            MetricsUnavailable, MetricsRefused: as the readers say; what was read is kept for the next time.
        """
        self._unmeasured += self.reader.read(min(moment, self.end), now=moment)
        before = len(self.counted)
        share = None if self.percent is None else self.percent / 100
        while self._unmeasured and time.monotonic() < until:
            self.counted.append(replace(self.values.measured(self._unmeasured.pop(0)), share=share))
        return self.counted[before:]

    @property
    def left(self) -> bool:
        """Whether some window that has ended waits for its values."""
        return bool(self._unmeasured)

    @property
    def carried(self) -> list[Window]:
        """Its windows, for those after it."""
        return self.counted[: self.most]

    @property
    def whole(self) -> bool:
        """Whether nothing that is carried is still to be read."""
        wanted = (self.end - self.opened) // self.window if self.most is None else self.most
        return len(self.counted) >= wanted

    @property
    def key(self) -> str:
        """When it was opened, as the record has it."""
        return self.opened.isoformat(timespec="milliseconds")


@dataclass
class Watch:
    """A canary at one share of the traffic, from its opening to the decision or the deadline. It counts and judges, and
    acts on nothing. The evidence of the stretches before is carried: one release is one test.

    A watch made anew (the triggerer was restarted, the canary moved to another) reads the same windows from the first
    opening on and comes to the same verdict: nothing that it knows exists only here.

    Args:
        stretch: what is under way.
        judge: has seen nothing yet.
        before: the stretches before this one, oldest first.
    """

    stretch: Stretch
    judge: Judge
    canary: Canary
    before: Sequence[Stretch] = ()
    windows: list[Window] = field(default_factory=list)
    final: bool = False
    extended: bool = False
    trouble: str = ""
    has_caught_up: bool = False
    _stable_trouble: str = ""
    _pending: list[Window] = field(default_factory=list)
    _blind_since: datetime | None = None

    @property
    def percent(self) -> int | None:
        return self.stretch.percent

    def look(self, live: InferenceService | None, moment: datetime) -> list[str]:
        """Counts what has ended by `moment`, and judges it: a line for each window. `live` was read after that moment:
        a window counts only when the service then still was what was opened. A refusal in the middle of a watch (a
        proxy's 404, a token that ran out) is blindness as silence is: the release was let in when Prometheus answered.
        """
        from model_release.cluster.rollout import check_untouched

        if self.over:
            return []
        lines: list[str] = []
        try:
            end = time.monotonic() + LONGEST
            if not self._catch_up(moment, end):
                return []
            self._pending += self.stretch.read(moment, end)
        except (MetricsRefused, MetricsUnavailable) as error:
            return self.blind(error, moment)
        try:
            check_untouched(live, self.canary, self.percent)
        except CanaryLost:
            return []
        while self._pending and not self.judge.decided:
            lines.append(self._take(self._pending.pop(0)))
        self.trouble, self._blind_since = "", None
        late = moment >= self.stretch.end and not self.stretch.left
        if late and self._is_near and not self._is_shown:
            return lines + self._extend()
        return lines + self._end_if(late)

    def _catch_up(self, moment: datetime, until: float) -> bool:
        """Whether the judge has seen what was counted before. It sees all of that at once: on a part of it, it would
        say again what it said then."""
        if not self.has_caught_up:
            for one in self.before:
                if not one.whole:
                    one.read(moment, until)
                if not one.whole:
                    return False
            self.judge.extend(window for one in self.before for window in one.carried)
            self.has_caught_up = True
        return True

    def blind(self, error: ReleaseError, moment: datetime) -> list[str]:
        """Nothing can be seen at this moment. For too long, and the watch is over on what there is."""
        lines = [] if str(error) == self.trouble else [f"Not judged: {error}"]
        self.trouble, self._blind_since = str(error), self._blind_since or moment
        late = moment >= self.stretch.end or moment - self._blind_since >= max(BLIND, 3 * self.stretch.window)
        return lines + self._end_if(late)

    @property
    def over(self) -> bool:
        """Whether it has come to its last word."""
        return self.final or self.judge.decided

    @property
    def verdict(self) -> Verdict:
        """What the judge says of what was counted so far."""
        return self.judge.verdict(final=self.final)

    @property
    def judged(self) -> Judged:
        """The judge's word. Before this stretch's first window it has none: what was said before was done."""
        decision = self.verdict.decision
        return "continue" if decision == "open" and not self.windows else decision

    @property
    def share(self) -> int | None:
        """In percent, what the canary may have now, where it may have more."""
        share = self.verdict.share
        return None if share is None else round(100 * share)

    @property
    def confidence(self) -> float | None:
        """Of a promotion at the deadline, where it is less than usual."""
        return self.verdict.confidence

    @property
    def reason(self) -> str:
        """The verdict's sentence, with what kept the watch from seeing, and with what is wrong with stable."""
        said = self.verdict.reason + (f" ({self.trouble})" if self.trouble else "")
        trouble = "" if self.judged == "promote" else stable_trouble(self.judge.policy, self._seen)
        return f"{said} {trouble}".strip()

    @property
    def no_data(self) -> bool:
        """Whether some figure that decides was not to be had."""
        return any(metric.state == "no_data" and not metric.observe for metric in self.verdict.metrics)

    @property
    def _seen(self) -> list[Window]:
        return [*(window for one in self.before for window in one.carried), *self.windows]

    @property
    def _is_near(self) -> bool:
        """Whether the judge would decide within as much time as may still be given, if things go on as so far."""
        verdict, more = self.verdict, self.stretch.extension
        if more is None or verdict.minutes_needed is None or self.no_data or self.over:
            return False
        return timedelta(minutes=verdict.minutes_needed) <= more

    @property
    def _is_shown(self) -> bool:
        """Whether the look at the deadline promotes."""
        return self.judge.verdict(final=True).decision == "promote"

    def _extend(self) -> list[str]:
        assert self.stretch.extension is not None
        self.judge.put_off()
        self.stretch.policy = self.judge.policy
        minutes = self.stretch.extension.total_seconds() / 60
        self.stretch.end += self.stretch.extension
        self.stretch.extension, self.extended = None, True
        return [f"The deadline is extended once, by {minutes:g} min: {self.verdict.reason}"]

    def _end_if(self, late: bool) -> list[str]:
        if not late or self.over:
            return []
        self.final = True
        return [f"No more windows: {self.verdict.reason}"]

    def _take(self, window: Window) -> str:
        self.windows.append(window)
        verdict = self.judge.add(window)
        share = "promoted" if self.percent is None else f"{self.percent} %"
        counts = f"canary {_counts(window.canary)}"
        if window.stable is not None:
            counts += f", stable {_counts(window.stable)}"
        line = f"{share} window {len(self.windows)}: {counts}. {verdict.reason}"
        if (trouble := stable_trouble(self.judge.policy, self._seen)) and not self._stable_trouble:
            line += f" {trouble}"
        self._stable_trouble = trouble
        return line


def stable_trouble(policy: Policy, windows: Sequence[Window]) -> str:
    """A sentence when the stable revision itself is beyond a limit, since the opening; else nothing. The judge does not
    ask that: what is rolled back is rolled back onto it all the same, and only a person can say otherwise."""
    sides = [window.stable for window in windows if window.stable is not None and window.stable.requests]
    requests = sum(side.requests or 0 for side in sides)
    for metric in policy.metrics:
        bad = sum(side.bad.get(metric.name) or 0 for side in sides)
        if metric.observe or metric.max_rate is None or requests < ENOUGH_TO_TELL:
            continue
        if bad > metric.max_rate * requests:
            return (
                f"Stable fails, too: {bad} of {requests} requests ({metric.name}); what a person can do is in "
                "docs/runbook.md, 'The stable revision is the broken one'."
            )
    return ""


def _counts(side: Any) -> str:
    if side.requests is None:
        return "no data"
    bad = "".join(f", {count} {name}" for name, count in side.bad.items() if count)
    return f"{side.requests} requests{bad}"
