"""The hand that drives a canary: looks, asks `advance` what comes next, records it in the lease, and does it.

It opens the canary, gives it more, promotes it, and takes its traffic back in the same breath in which the evidence
turns; none of that waits for a worker. All that it has to remember is in the lease, written by compare-and-swap before
anything is done: a drive made anew (another triggerer, or a second one beside it) goes on from there and does no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from model_release.cluster.release import Phase
from model_release.errors import CanaryLost, ClusterRefused, ClusterUnavailable, NotSettled, ReleaseError, ServiceBusy
from model_release.release.advance import Action, Done, Look, Opened, Promote, Rules, Shift, TakeBack, World, advance

if TYPE_CHECKING:
    from model_release.cluster.change import Canary, Prove
    from model_release.cluster.inference_service import InferenceService
    from model_release.cluster.leases import Leases
    from model_release.cluster.release import Cause, Owner, Release, Watched
    from model_release.cluster.services import InferenceServices
    from model_release.release.look import Watch

# A change of the split reaches the gateway in seconds; minutes mean that something is wrong.
ROUTE = timedelta(minutes=2)
# Seconds between two looks at a change that is on its way.
SOON = 0.5
# The longest pause between two looks, in seconds, however long a window is: what died is seen by then.
LONGEST_PAUSE = 10.0


@dataclass(frozen=True)
class Moved:
    """A change of traffic, verified by the names of revisions: each one's percent after it. `change` is what records
    and metrics call it."""

    time: str
    change: str
    percent: int
    revisions: dict[str, int]


@dataclass
class Drive:
    """One release's canary until its end. `look` may be called at any moment, by several hands at once.

    Args:
        watch: makes the watch of the last of the stretches that the lease names: what was counted in it, and what the
            judge says of it and of those before.
        prove: asks a revision that a roll-back restores, before it gets traffic.
        window: how long a window is.
        patience: how long a roll-back may take that has to start the baseline anew.
        hand: whose hand it is, for those who ask who looked last.
    """

    canary: Canary
    rules: Rules
    services: InferenceServices
    leases: Leases
    owner: Owner
    watch: Callable[[Sequence[Watched]], Watch]
    prove: Prove
    window: timedelta
    patience: timedelta
    hand: str = "triggerer"
    moved: list[Moved] = field(default_factory=list)
    watches: dict[tuple[int | None, str], Watch] = field(default_factory=dict)
    done: Done | None = None
    _since: datetime | None = None  # when the change that is on its way was asked for
    _doing: Action | None = None
    _said: str = ""  # last, of that change
    _told: set[str] = field(default_factory=set)  # all that was said of it

    @property
    def pause(self) -> float:
        """Seconds until the next look."""
        if isinstance(self._doing, Shift | Promote | TakeBack | Opened):
            return SOON
        return min(self.window.total_seconds() / 2, LONGEST_PAUSE)

    def look(self, now: datetime | None = None) -> list[str]:
        """Looks once and does what that asks for. Returns what there is to tell; `done` says when it was the last.

        Raises:
            ServiceBusy: this release does not hold the lease any more.
            NotSettled: the traffic could not be taken back, or the promotion does not act.
        """
        moment = now or datetime.now(UTC)
        try:
            release = self._renewed()
            self._take_over(release)
            live = self.services.get(self.canary.namespace, self.canary.name)
            watch = self._under_way(release)
            # Before all that Prometheus may keep waiting: what the cluster or a person says is more than it can.
            action = self._record(release, self._world(live, watch, moment))
            lines = list[str]()
            if watch is not None and isinstance(action, Look) and not watch.over:
                lines += watch.look(live, moment)
                action = self._record(release, self._world(live, watch, moment))
            return lines + self._do(action, moment)
        except CanaryLost as lost:
            return self._tell(str(lost))  # between the read and the write; the next look sees it, and closes
        except ClusterUnavailable as error:
            return self._cannot_see(error, moment)
        except ClusterRefused as error:
            self._check_acts(moment, str(error))
            return self._cannot_see(error, moment)

    def close(self, why: str, cause: Cause) -> None:
        """The canary's traffic is to be taken back; the next looks do it. Again: the first word stands."""
        self._update(lambda release: release.close(why, cause))

    def record(self, change: Callable[[Release], Release]) -> None:
        """Records what a person has answered; the next looks do it.

        Raises:
            RolledBack: the canary was closed meanwhile.
        """

        def checked(release: Release) -> Release:
            release.check_goes_on()
            return change(release)

        self._update(checked)

    def _renewed(self) -> Release:
        """What this release has recorded; that somebody looks is recorded with it."""
        lease = self.leases.renew(self.canary.namespace, self.canary.name, self.owner, self.hand)
        release = lease.release
        if release is None:
            raise ServiceBusy(f"the lease of {self.canary.namespace}/{self.canary.name} has no release in it any more")
        return release

    def _take_over(self, release: Release) -> None:
        """The shares that another hand has opened, which did not live to tell of it."""
        told = {(one.time, one.percent) for one in self.moved}
        for one in release.watches:
            opened, percent = one.opened_at, one.percent
            is_share = percent is not None and not one.again and not one.beside_question
            if opened is None or percent is None or not is_share or (opened, percent) in told:
                continue
            revisions = {self.canary.revision: percent, str(self.canary.baseline): 100 - percent}
            self.moved.append(Moved(opened, f"open_{percent}", percent, revisions))

    def _under_way(self, release: Release) -> Watch | None:
        """The watch of the stretch that is under way, when its windows have begun."""
        if not release.watches or release.watches[-1].opened_at is None or release.phase is Phase.PROMOTED:
            return None
        stretch = release.watches[-1]
        key = stretch.percent, stretch.opened_at or ""
        if key not in self.watches:
            self.watches[key] = self.watch(release.watches)
        return self.watches[key]

    def _world(self, live: InferenceService | None, watch: Watch | None, moment: datetime) -> World:
        stuck = None
        if self._since is not None and isinstance(self._doing, Shift) and moment - self._since >= ROUTE:
            stuck = f"The share has not taken effect within {ROUTE.seconds // 60} minutes: {self._said}"
        now = moment.isoformat(timespec="milliseconds")
        if watch is None:
            # What is on its way is there for what the last watch said.
            said = next(reversed(self.watches.values()), None)
            return World(live, now, reason=said.reason if said else "", stuck=stuck)
        return World(
            live,
            now,
            judged=watch.judged,
            reason=watch.reason,
            share=watch.share,
            windows=len(watch.windows),
            confidence=watch.confidence,
            extended=watch.extended,
            blind=watch.trouble if watch.final else "",
            no_data=watch.no_data,
            stuck=stuck,
        )

    def _record(self, release: Release, world: World) -> Action:
        """What comes next, recorded. Decided anew on the lease as it is when it is written."""
        decided: list[Action] = []

        def change(now: Release) -> Release:
            changed, action = advance(now, self.canary, world, self.rules)
            decided.append(action)
            return changed

        if change(release) != release:
            self._update(change)
        return decided[-1]

    def _update(self, change: Callable[[Release], Release]) -> None:
        self.leases.update(self.canary.namespace, self.canary.name, self.owner, change)

    def _do(self, action: Action, moment: datetime) -> list[str]:
        from model_release.cluster.rollout import assess_promoted, assess_split, promote, shift

        if type(action) is not type(self._doing):
            self._since = moment
            self._told.clear()
        self._doing = action
        match action:
            case Shift(percent):
                live = shift(self.services, self.canary, percent)
                return self._tell(assess_split(live, self.canary, percent).sentence)
            case Opened(percent):
                return self._arrived(f"open_{percent}", percent, moment)
            case Promote(percent):
                promote(self.services, self.canary, percent)
                now = self.services.get(self.canary.namespace, self.canary.name)
                self._check_acts(moment, assess_promoted(now, self.canary).sentence)
                return self._tell("All of the traffic asked for")
            case TakeBack():
                return self._take_back(moment)
            case Done(decision, reason):
                self.done = action
                lines = self._tell(f"{decision}: {reason}")
                if decision == "promote":
                    lines += self._arrived("promote", 100, moment)
                elif decision == "rollback":
                    lines += self._arrived("roll_back", 0, moment)
                return lines
        return []

    def _take_back(self, moment: datetime) -> list[str]:
        from model_release.cluster.settle import assess_rolled_back, roll_back

        place = self.canary.namespace, self.canary.name
        lease = self.leases.read(*place)
        release = lease.release if lease else None
        if release is None or release.baseline is None:
            return []
        lines = self._tell(f"Taken back: {release.closed}") if self._since == moment else []
        live = roll_back(self.services, release, self.leases.bar(*place, self.owner), self.prove)
        progress = assess_rolled_back(live, release)
        self._check_acts(moment, progress.sentence)
        return [*lines, *self._tell(progress.sentence)]

    def _check_acts(self, moment: datetime, said: str) -> None:
        """Nothing, while what was asked for may still be on its way. A share that does not come is closed by `advance`;
        after a promotion or a roll-back nothing comes that could."""
        waits = {"promotion": (Promote, ROUTE), "roll-back": (TakeBack, max(ROUTE, self.patience))}
        for what, (action, longest) in waits.items():
            if isinstance(self._doing, action) and self._since is not None and moment - self._since >= longest:
                raise NotSettled(f"the {what} did not take effect: {said}")

    def _arrived(self, change: str, percent: int, moment: datetime) -> list[str]:
        live = self.services.get(self.canary.namespace, self.canary.name)
        shares = dict(live.serving) if live else {}
        self.moved.append(Moved(moment.isoformat(timespec="milliseconds"), change, percent, shares))
        told = ", ".join(f"{revision} {share} %" for revision, share in shares.items()) or "none"
        return self._tell(f"Traffic at the gateway: {told}")

    def _cannot_see(self, error: ReleaseError, moment: datetime) -> list[str]:
        """Nobody can act while the API is away. What the watch makes of it is acted on when it is back; one 401 in the
        middle of a watch is no more than that either."""
        under_way = next(reversed(self.watches.values()), None)
        if under_way is None or under_way.over:
            return self._tell(f"The cluster cannot be asked: {error}")
        return under_way.blind(error, moment)

    def _tell(self, line: str) -> list[str]:
        """The line, when it is new: what a change waits for may come and go while it is on its way."""
        self._said = line
        if line in self._told:
            return []
        self._told.add(line)
        return [line]
