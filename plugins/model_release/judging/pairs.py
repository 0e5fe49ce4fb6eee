"""What pairs of answers say: the same pictures, answered by the stable revision and by the canary.

A pair is compared where stable answered. It has changed where the canary's likeliest label is another one, or where the
canary gave no answer. The bounds of the share that changed are exact (Clopper and Pearson 1934, "The use of confidence
or fiducial limits illustrated in the case of the binomial") and one-sided. How many pictures are asked is fixed
beforehand, and the decision is the one that all of them would give; it is only told sooner, where those that are left
cannot change it any more. So stopping early costs no certainty.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from .sentences import bound, count, plural, share
from .simulate import interval

# Of each bound: the chance that it holds.
SURE = 0.95
# A side that gives no answer to so many pictures in a row is not asked further.
SILENT = 10
# As many changes, and folders, as are told by name.
TOLD = 10
FOLDERS = 20

Decision = Literal["within", "beyond", "few", "observed"]


@lru_cache(maxsize=1024)
def bounds(changed: int, compared: int) -> tuple[float, float]:
    """The share of all answers that would change is above the first, and below the second: each with `SURE`."""
    return interval(changed, compared, 2 * SURE - 1) if compared else (0.0, 1.0)


@lru_cache(maxsize=1024)
def allowed(compared: int, limit: float) -> int:
    """As many of the pictures may have changed where the share is to be shown below `limit`; -1: not even none would
    show it."""
    shows, fails = -1, compared
    while fails - shows > 1:
        middle = (shows + fails) // 2
        shows, fails = (middle, fails) if bounds(middle, compared)[1] <= limit else (shows, middle)
    return shows


def least(limit: float) -> int:
    """As few pictures can show a share below `limit`, where none has changed."""
    return math.ceil(math.log(1 - SURE) / math.log1p(-limit))


def distance(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """The total variation between two answers, from 0 to 1: what the one gives to labels beyond what the other does.
    Exact where both name all labels; else as little as it can be, since a label that one side does not name may have
    all that this side leaves."""
    return min(1.0, max(_beyond(one, other), _beyond(other, one)))


def _beyond(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    both = one.keys() & other.keys()
    alone = sum(share for label, share in one.items() if label not in both)
    left = max(0.0, 1 - sum(other.values()))
    return sum(max(0.0, one[label] - other[label]) for label in both) + max(0.0, alone - left)


@dataclass(frozen=True)
class Answer:
    """One side's to one picture: its likeliest labels with their probabilities, best first; or none, since the picture
    was refused (a 4xx), or the side failed."""

    labels: Mapping[str, float]
    seconds: float = 0.0
    fault: Literal["", "refused", "failed"] = ""


@dataclass
class Side:
    """What one side did with all pictures so far."""

    answered: int = 0
    refused: int = 0
    failed: int = 0
    seconds: list[float] = field(default_factory=list)
    silent: int = 0  # pictures in a row that got no answer

    def add(self, one: Answer) -> None:
        self.silent = self.silent + 1 if one.fault == "failed" else 0
        if one.fault:
            setattr(self, one.fault, getattr(self, one.fault) + 1)
            return
        self.answered += 1
        self.seconds.append(one.seconds)

    def to_dict(self) -> dict[str, Any]:
        ordered = sorted(self.seconds)
        milliseconds = {
            name: round(1000 * ordered[min(int(part * len(ordered)), len(ordered) - 1)], 1) if ordered else None
            for name, part in (("p50_ms", 0.5), ("p95_ms", 0.95))
        }
        return {"answered": self.answered, "refused": self.refused, "failed": self.failed, **milliseconds}


@dataclass
class Pairs:
    """The counts of up to `wanted` pictures, added one after the other; `limit` None: only to be shown.

    Of a picture nothing is kept but the folder that it lay in, and of an answer its label: `became` counts (stable's
    label, the canary's), `folders` has [compared, changed] of each. `lost`: stable answered, and the canary did not;
    `won`: the other way round.
    """

    wanted: int
    limit: float | None
    asked: int = 0
    compared: int = 0
    changed: int = 0
    lost: int = 0
    won: int = 0
    distances: list[float] = field(default_factory=list)
    became: Counter[tuple[str, str]] = field(default_factory=Counter)
    folders: dict[str, list[int]] = field(default_factory=dict)
    stable: Side = field(default_factory=Side)
    canary: Side = field(default_factory=Side)

    def add(self, folder: str, stable: Answer, canary: Answer) -> None:
        """One picture more."""
        self.asked += 1
        self.stable.add(stable)
        self.canary.add(canary)
        if stable.fault:
            self.won += not canary.fault
            return
        self.compared += 1
        changed = bool(canary.fault)
        self.lost += changed
        if not canary.fault:
            was, now = next(iter(stable.labels)), next(iter(canary.labels))
            changed = was != now
            if changed:
                self.became[was, now] += 1
            self.distances.append(distance(stable.labels, canary.labels))
        self.changed += changed
        counts = self.folders.setdefault(folder, [0, 0])
        counts[0] += 1
        counts[1] += changed

    @property
    def reach(self) -> int:
        """As many pairs as it can still come to."""
        return self.compared + self.wanted - self.asked

    @property
    def silent(self) -> str:
        """The side that gives no answers any more, in words; nothing where both do."""
        for name, side in (("stable", self.stable), ("the canary", self.canary)):
            if side.silent >= SILENT:
                return f"{name} gave no answer to the last {side.silent} pictures"
        return ""

    @property
    def over(self) -> bool:
        """Whether the pictures that are left change nothing any more, or nobody answers them."""
        if self.asked >= self.wanted or self.silent:
            return True
        if self.limit is None or self.reach < least(self.limit):
            return False
        return self.changed > allowed(self.reach, self.limit)

    @property
    def decision(self) -> Decision:
        """Of pairs that are over. `few`: what was compared shows neither that few enough have changed nor that too many
        have."""
        if self.limit is None:
            return "observed"
        low, high = bounds(self.changed, self.compared)
        if self.canary.silent >= SILENT > self.stable.silent:
            return "beyond"
        if high <= self.limit and not self.silent:
            return "within"
        enough = self.reach >= least(self.limit)
        return "beyond" if low > self.limit or (enough and self.changed > allowed(self.reach, self.limit)) else "few"

    @property
    def sentence(self) -> str:
        """What a person reads, of pairs that are over."""
        of = "" if self.asked >= self.wanted else "the first "
        told = f"{count(self.changed)} of {of}{plural(self.compared, 'picture')} got another answer than stable's"
        more = f"; {self._what()}" if self.changed else ""
        sure = f"with {100 * SURE:g} % confidence at most {share(bounds(self.changed, self.compared)[1])} of all would"
        if self.limit is None:
            return f"{told}: {sure}{more}{f'; {self.silent}' if self.silent else ''}."
        decision, limit = self.decision, bound(self.limit)
        if decision == "few":
            few = self.silent or (
                f"stable answered {count(self.compared)} of {plural(self.asked, 'picture')}, and {least(self.limit)} "
                "are the least that can show it"
            )
            return f"Not shown that less than {limit} of the answers change: {few}. {told}{more}."
        if decision == "beyond":
            may = max(allowed(self.reach, self.limit), 0)
            last = f"; {self.silent}" if self.silent else ""
            return f"{told}, and {may} of {count(self.reach)} may (a share below {limit} is to be shown){more}{last}."
        return f"{told}: {sure}, and {limit} may{more}."

    def _what(self) -> str:
        """What the changes were, and where."""
        said = [
            f"{was} became {now} {'once' if number == 1 else f'{count(number)} times'}"
            for (was, now), number in self._most(3)
        ]
        if self.lost:
            said.append(f"the canary gave no answer to {plural(self.lost, 'picture')}")
        folder, (_, changed) = max(self.folders.items(), key=lambda one: one[1][1])
        if len(self.folders) > 1 and 2 * changed > self.changed:
            said.append(f"{count(changed)} of them in {folder}/")
        return ", ".join(said)

    def _most(self, many: int) -> list[tuple[tuple[str, str], int]]:
        return sorted(self.became.items(), key=lambda one: (-one[1], one[0]))[:many]

    def to_dict(self) -> dict[str, Any]:
        """JSON, for the record: counts, and no picture."""
        low, high = bounds(self.changed, self.compared)
        folders = sorted(self.folders.items(), key=lambda one: (-one[1][1], one[0]))[:FOLDERS]
        return {
            "decision": self.decision,
            "sentence": self.sentence,
            "max_changed": self.limit,
            "wanted": self.wanted,
            "asked": self.asked,
            "compared": self.compared,
            "changed": self.changed,
            "lost": self.lost,
            "won": self.won,
            "lower": low,
            "upper": high,
            "distance": {
                "mean": sum(self.distances) / len(self.distances) if self.distances else None,
                "largest": max(self.distances, default=None),
            },
            "became": [{"label": was, "as": now, "count": number} for (was, now), number in self._most(TOLD)],
            "folders": [
                {"folder": folder, "compared": compared, "changed": changed} for folder, (compared, changed) in folders
            ]
            if len(self.folders) > 1
            else [],
            "stable": self.stable.to_dict(),
            "canary": self.canary.to_dict(),
        }
