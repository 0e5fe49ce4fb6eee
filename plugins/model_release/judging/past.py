"""What stable did before the release: its usual rate, and how bursty it is.

Up to 720 windows, oldest first. It makes promotions earlier and false roll-backs rarer, and a release without one is
judged all the same: a first release, or a Prometheus too young, costs requests and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from . import sentences
from .policy import Policy
from .window import EvidenceError, Side

Floats = npt.NDArray[np.float64]

LONGEST = 720  # windows; older ones say little of today


@dataclass(frozen=True)
class Past:
    """Stable's counts by window. What could not be counted is None and is left out, never taken for 0. `revision` says
    whose they are, to those who read the record. `labels`: how often it gave each, over all of the windows."""

    windows: tuple[Side, ...] = ()
    revision: str | None = None
    labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Any, path: str = "past") -> Past:
        """Raises EvidenceError for counts that cannot be true; more windows than 720 lose the oldest."""
        if not isinstance(data, Mapping) or not {"windows"} <= set(data) <= {"windows", "revision", "labels"}:
            right = "a mapping with windows, and nothing else but revision and labels, is expected here"
            raise EvidenceError(f"{path}: {right}")
        revision = data.get("revision")
        if revision is not None and not isinstance(revision, str):
            raise EvidenceError(f"{path}.revision: {revision!r} is not text")
        entries = data["windows"]
        if isinstance(entries, (str, bytes, Mapping)) or not hasattr(entries, "__iter__"):
            raise EvidenceError(f"{path}.windows: a list is expected here, not {type(entries).__name__}")
        sides = [Side.from_dict(entry, f"{path}.windows[{i}]") for i, entry in enumerate(entries)]
        labels = Side.from_dict({"labels": data.get("labels")}, path).labels
        return cls(tuple(sides[-LONGEST:]), revision, {name: counts for name, counts in labels.items() if counts})

    def to_dict(self) -> dict[str, Any]:
        said = {} if self.revision is None else {"revision": self.revision}
        labels = {"labels": {name: dict(counts) for name, counts in self.labels.items()}} if self.labels else {}
        return {**said, "windows": [side.to_dict() for side in self.windows], **labels}

    def counts(self, policy: Policy) -> tuple[Floats, Floats]:
        """Requests (H, M) and bad requests (H, M) of the policy's metrics; NaN is no data."""
        return counts_of(self.windows, policy)

    def told(self, policy: Policy, figures: Usual) -> str:
        """In words: `0.31 % errors, bursts of 2.4, from 640 windows`. `figures` are its own by this policy."""
        parts = []
        for i, metric in enumerate(policy.metrics):
            if not figures.requests[i]:
                parts.append(f"{metric.name} not counted")
                continue
            bursts = (max(float(figures.dispersion[i]), 1.0) + 1) / 2
            rate = sentences.bound(float(figures.bad[i] / figures.requests[i]))
            parts.append(f"{rate} {metric.name}, bursts of {bursts:.2g}")
        return f"{'; '.join(parts)}, from {sentences.plural(len(self.windows), 'window')}"


def counts_of(sides: Sequence[Side], policy: Policy) -> tuple[Floats, Floats]:
    """Requests and bad requests, each (H, M), of a revision's windows."""
    shape = (len(sides), len(policy.metrics))
    known = [[side.bad.get(metric.name) for metric in policy.metrics] for side in sides]
    bad = np.array([[np.nan if b is None else b for b in row] for row in known], dtype=float).reshape(shape)
    totals = [[side.total(metric.name) for metric in policy.metrics] for side in sides]
    requests = np.array([[np.nan if n is None else n for n in row] for row in totals], dtype=float).reshape(shape)
    return requests, bad


@dataclass(frozen=True)
class Usual:
    """A past in figures, each (..., M): requests and bad ones in all, and over the windows in which stable kept its
    limits the rate, the dispersion (1 for independent requests) and how many degrees of freedom that is worth."""

    requests: Floats
    bad: Floats
    windows: Floats
    rate: Floats
    dispersion: Floats
    worth: Floats


def usual(requests: Floats, bad: Floats, limit: Floats) -> Usual:
    """The figures of a past (..., H, M). Windows in which stable was beyond `limit` (..., M) in four of the last six
    are incidents: they say nothing of how it usually is."""
    known = ~np.isnan(requests + bad) & (np.nan_to_num(requests) > 0)
    m, s = np.where(known, requests, 0.0), np.where(known, bad, 0.0)
    hot = (s >= limit[..., None, :] * m) & (s >= 1)
    calm = ~lasting(hot)
    m_, s_ = m * calm, s * calm
    windows = (m_ > 0).sum(axis=-2).astype(float)
    dispersion_, worth = dispersion(
        m_.sum(axis=-2), s_.sum(axis=-2), windows, (s_ * s_ / np.maximum(m_, 1.0)).sum(axis=-2)
    )
    return Usual(
        requests=m.sum(axis=-2),
        bad=s.sum(axis=-2),
        windows=windows,
        rate=s_.sum(axis=-2) / np.maximum(m_.sum(axis=-2), 1.0),
        dispersion=dispersion_,
        worth=worth,
    )


def lasting(hot: npt.NDArray[np.bool_], before: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.bool_]:
    """Where at least 4 of the last 6 windows are `hot` (..., T, M); `before` has those before the first (..., 5, M)."""
    return last_six(hot.astype(float), None if before is None else before.astype(float)) >= 4


def last_six(values: Floats, before: Floats | None = None) -> Floats:
    """Sums over the last six windows, each included (..., T, M); the same bits for one window as for many."""
    if before is None:
        before = np.zeros((*values.shape[:-2], 5, values.shape[-1]))
    whole = np.concatenate([before, values], axis=-2)
    length = values.shape[-2]
    out = whole[..., :length, :].copy()
    for shift in range(1, 6):
        out += whole[..., shift : shift + length, :]
    return out


def dispersion(requests: Floats, bad: Floats, windows: Floats, squares: Floats) -> tuple[Floats, Floats]:
    """Pearson's dispersion of bad counts over windows, Σ (s - p m)² / (m p (1 - p)) / (W - 1), from sums (`squares` is
    Σ s²/m), and the degrees of freedom that it is worth: a window adds 2 + W/S to its variance, so rare bad requests
    teach less than their windows promise."""
    rate = np.minimum(bad / np.maximum(requests, 1.0), 1 - 1e-12)
    apart = np.maximum(squares - bad * rate, 0.0)
    free = np.maximum(windows - 1, 0.0)
    return (
        apart / np.maximum(rate * (1 - rate) * free, 1e-12),
        2 * bad * free / np.maximum(2 * bad + windows, 1.0),
    )
