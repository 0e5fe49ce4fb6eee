"""One look at a canary: is it still ours, what was counted since, and what does the judge say.

Everything that the watching trigger does between two naps, without Airflow: so it can be tested, and run, alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from model_release.errors import CanaryLost, ClusterUnavailable, MetricsUnavailable, RolledBack
from model_release.spec import ModelSpec
from model_release.tasks.run import Run

if TYPE_CHECKING:
    from model_release.judging import Judge, Policy, Verdict, Window
    from model_release.judging.record import Record
    from model_release.metrics import ValueReader, WindowReader
    from model_release.serving.inference_service import InferenceServices
    from model_release.serving.lease import Order
    from model_release.serving.rollout import Canary

# A scrape is a second to a minute old; looking twice in a window finds it soon after it is complete.
LOOKS_IN_A_WINDOW = 2
# How long the cluster or Prometheus may be away before the canary, which nobody watches meanwhile, is taken back.
BLIND = timedelta(minutes=2)
# Requests on the stable revision before its own failures are told: fewer could be one user's bad luck.
ENOUGH_TO_TELL = 100


@dataclass(frozen=True)
class Look:
    """What a look has to say, a line each, and whether it was the last."""

    lines: tuple[str, ...] = ()
    over: bool = False


@dataclass
class Watch:
    """A canary at one share of the traffic, from its opening to the decision or the deadline.

    A watch made anew (the triggerer was restarted, the canary moved to another) reads the same windows from the
    opening on and comes to the same verdict: nothing that it knows exists only here.
    """

    services: InferenceServices
    reader: WindowReader
    values: ValueReader
    judge: Judge
    canary: Canary
    percent: int | None
    window: timedelta
    deadline: datetime
    keep: Callable[[Sequence[Window], Verdict], None] | None = None
    ordered: Callable[[], Order | None] = lambda: None
    windows: list[Window] = field(default_factory=list)
    final: bool = False
    lost: str | None = None
    order: Order | None = None
    trouble: str = ""
    stable_trouble: str = ""
    _pending: list[Window] = field(default_factory=list)
    _blind_since: datetime | None = None

    @classmethod
    def begin(
        cls,
        *,
        spec: str,
        canary: dict[str, Any],
        percent: int | None,
        opened: str,
        deadline: str,
        run: dict[str, Any],
        said: dict[str, Any],
    ) -> Watch:
        """`percent` None: the bake, in which the promoted canary is judged alone. Times are ISO 8601, `run` is the
        release's, whose record shows the watch as it goes, and `said` is the judge's policy."""
        from model_release.judging import Judge, Policy
        from model_release.metrics import ValueReader, WindowReader
        from model_release.serving.inference_service import InferenceServices
        from model_release.serving.lease import Leases
        from model_release.serving.rollout import Canary
        from model_release.tasks import connections, records

        model, one = ModelSpec.model_validate_json(spec), Canary.from_dict(canary)
        prometheus, stable = connections.prometheus(), None if percent is None else one.baseline
        reader = WindowReader(
            prometheus,
            model.judge,
            namespace=one.namespace,
            canary=one.revision,
            stable=stable,
            start=datetime.fromisoformat(opened),
            window=model.rollout.window,
        )
        policy = Policy.from_dict(said)
        named = {value.name for value in policy.values}
        values = ValueReader(
            prometheus,
            [value for value in model.judge.values if value.name in named],
            namespace=one.namespace,
            service=one.name,
            canary=one.revision,
            stable=stable,
        )
        store, whose, since = connections.store(model.store), Run(**run), datetime.fromisoformat(opened)

        def keep(windows: Sequence[Window], verdict: Verdict) -> None:
            counted: dict[str, Any] = {"policy": policy, "windows": windows, "final": False, "verdict": verdict}

            def edit(record: Record) -> None:
                # The task may have written the end of this step already, while the store kept this one waiting.
                if records.windows_of(record, percent, since) < len(windows):
                    records.put_step(record, model, percent=percent, opened=since, **counted)

            records.change(model, whose, edit, store)

        client = connections.cluster("triggerer")
        leases = Leases(client)

        def ordered() -> Order | None:
            lease = leases.read(one.namespace, one.name)
            claim = lease.claim if lease else None
            return claim.order if claim is not None and claim.canary == one.revision else None

        return cls(
            services=InferenceServices(client),
            reader=reader,
            values=values,
            judge=Judge(policy),
            canary=one,
            percent=percent,
            window=model.rollout.window,
            deadline=datetime.fromisoformat(deadline),
            keep=keep,
            ordered=ordered,
        )

    @property
    def pause(self) -> float:
        """Seconds until the next look."""
        return self.window.total_seconds() / LOOKS_IN_A_WINDOW

    def look(self, now: datetime | None = None) -> Look:
        """Looks once. Windows count only when the live service was, after they ended, still what was opened."""
        from model_release.serving.rollout import check_untouched

        moment = now or datetime.now(UTC)
        late = moment >= self.deadline
        lines: list[str] = []
        try:
            # Before all that Prometheus may keep waiting: a person has looked at more than the judge can.
            if self._is_ordered():
                return Look((str(self.order),), over=True)
            fresh = self.reader.read(min(moment, self.deadline), now=moment)
            self._pending += [self.values.measured(window) for window in fresh]
            check_untouched(self.services.get(self.canary.namespace, self.canary.name), self.canary, self.percent)
            while self._pending and not self.judge.decided:
                lines.append(self._take(self._pending.pop(0)))
            self.trouble, self._blind_since = "", None
        except CanaryLost as error:
            self.lost = str(error)
            return Look((f"Lost: {error}",), over=True)
        except (ClusterUnavailable, MetricsUnavailable) as error:
            if str(error) != self.trouble:
                self.trouble = str(error)
                lines.append(f"Not judged: {error}")
            self._blind_since = self._blind_since or moment
            late = late or moment - self._blind_since >= max(BLIND, 3 * self.window)
        if late and not self.judge.decided:
            self.final = True
            lines.append(f"No more windows: {self.judge.verdict(final=True).reason}")
        return Look(tuple(lines), over=late or self.judge.decided)

    def _is_ordered(self) -> bool:
        """Whether a person has decided. A promotion is for the canary that is open and untouched, and for the one that
        was meant: a run that was cleared may have staged another since. After it was promoted there is nothing more to
        order but to take it back."""
        from model_release.serving.rollout import check_untouched

        order = self.ordered()
        if order is None:
            return False
        if order.kind == "promote":
            if self.percent is None or order.revision != self.canary.revision:
                return False
            check_untouched(self.services.get(self.canary.namespace, self.canary.name), self.canary, self.percent)
        self.order = order
        return True

    def show(self) -> None:
        """Puts what was counted so far into the record, for those who look. The task records all of it when the watch
        is over, so nothing depends on this.

        Raises:
            ReleaseError: the store does not take it now.
        """
        if self.keep is not None and self.windows:
            self.keep(tuple(self.windows), self.judge.verdict())

    def outcome(self) -> dict[str, Any]:
        """What the watch hands to its task, which judges the same counts again: they go into the record."""
        if self.lost:
            return {"error": CanaryLost.__name__, "sentence": self.lost}
        if self.order is not None and self.order.kind == "roll_back":
            return {"error": RolledBack.__name__, "sentence": str(self.order)}
        return {
            "windows": [window.to_dict() for window in self.windows],
            "final": self.final,
            "trouble": self.trouble,
            **({"order": asdict(self.order)} if self.order is not None else {}),
        }

    def _take(self, window: Window) -> str:
        self.windows.append(window)
        verdict = self.judge.add(window)
        share = "promoted" if self.percent is None else f"{self.percent} %"
        counts = f"canary {_counts(window.canary)}"
        if window.stable is not None:
            counts += f", stable {_counts(window.stable)}"
        line = f"{share} window {len(self.windows)}: {counts}. {verdict.reason}"
        if (trouble := stable_trouble(self.judge.policy, self.windows)) and not self.stable_trouble:
            line += f" {trouble}"
        self.stable_trouble = trouble
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
