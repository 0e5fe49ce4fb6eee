"""One look at a canary: what was counted since the last one, and what does the judge say."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
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
class Watch:
    """A canary at one share of the traffic, from its opening to the decision or the deadline. It counts and judges, and
    acts on nothing.

    A watch made anew (the triggerer was restarted, the canary moved to another) reads the same windows from the
    opening on and comes to the same verdict: nothing that it knows exists only here.

    Args:
        percent: None for the bake, in which the promoted canary is judged alone.
        opened: when its windows begin.
        deadline: there are no windows after it.
    """

    reader: WindowReader
    values: ValueReader
    judge: Judge
    canary: Canary
    percent: int | None
    window: timedelta
    opened: datetime
    deadline: datetime
    windows: list[Window] = field(default_factory=list)
    final: bool = False
    trouble: str = ""
    _stable_trouble: str = ""
    _pending: list[Window] = field(default_factory=list)
    _unmeasured: list[Window] = field(default_factory=list)
    _blind_since: datetime | None = None

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
            self._unmeasured += self.reader.read(min(moment, self.deadline), now=moment)
            while self._unmeasured and time.monotonic() < end:
                self._pending.append(self.values.measured(self._unmeasured.pop(0)))
        except (MetricsRefused, MetricsUnavailable) as error:
            return self.blind(error, moment)
        try:
            check_untouched(live, self.canary, self.percent)
        except CanaryLost:
            return []
        while self._pending and not self.judge.decided:
            lines.append(self._take(self._pending.pop(0)))
        self.trouble, self._blind_since = "", None
        return lines + self._end_if(moment >= self.deadline and not self._unmeasured)

    def blind(self, error: ReleaseError, moment: datetime) -> list[str]:
        """Nothing can be seen at this moment. For too long, and the watch is over on what there is."""
        lines = [] if str(error) == self.trouble else [f"Not judged: {error}"]
        self.trouble, self._blind_since = str(error), self._blind_since or moment
        late = moment >= self.deadline or moment - self._blind_since >= max(BLIND, 3 * self.window)
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
        """The judge's word. What may be opened wider is watched on: the steps are `advance`'s."""
        decision = self.verdict.decision
        return "continue" if decision == "open" else decision

    @property
    def reason(self) -> str:
        """The verdict's sentence, with what kept the watch from seeing, and with what is wrong with stable."""
        said = self.verdict.reason + (f" ({self.trouble})" if self.trouble else "")
        trouble = "" if self.judged == "promote" else stable_trouble(self.judge.policy, self.windows)
        return f"{said} {trouble}".strip()

    @property
    def no_data(self) -> bool:
        """Whether some figure that decides was not to be had."""
        return any(metric.state == "no_data" and not metric.observe for metric in self.verdict.metrics)

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
        if (trouble := stable_trouble(self.judge.policy, self.windows)) and not self._stable_trouble:
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
