"""From evidence to decisions, for any number of releases at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from . import ramp
from .evidence import Evidence
from .state import REQUESTS, Bools, EvidenceState, Floats, Readings
from .verdict import CONTINUE, NO_DATA, PROMOTE, ROLL_BACK, WRONG_SPLIT

Codes = npt.NDArray[np.int_]


class Rules:
    """From evidence to decisions, for any number of releases at once."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._aside: Bools = np.array([m.observe for m in evidence.policy.metrics])
        self._critical: Bools = np.array([m.critical and not m.observe for m in evidence.policy.metrics])

    def codes(self, path: EvidenceState, readings: Readings, shares: Floats | None = None) -> Codes:
        """What the shares say after each window of a path, (..., T).

        Roll back comes before all else, then whatever makes the figures doubtful, and promotion last. `shares` is the
        canary's part of the traffic, (T) or what broadcasts to (..., T), NaN where it is not known: only the last of
        the policy's steps promotes.
        """
        evidence, policy = self._evidence, self._evidence.policy
        failing = self.failing(readings)
        proven = (
            (readings.favour >= evidence.log_needed_for)
            & (path.sums[..., : len(self._aside), REQUESTS] >= policy.min_requests)
            & (path.silent == 0)
            & ~failing
        )
        promotes: Bools = np.logical_and.reduce(proven | self._aside, axis=-1)
        ages = path.age + 1 + np.arange(promotes.shape[-1])
        promotes = promotes & (ages >= policy.least_windows)
        if policy.guard:
            promotes = np.zeros_like(promotes)
        elif policy.shares and shares is not None:
            promotes = promotes & ~(shares < policy.shares[-1] - 1e-9)
        elif policy.ramp is not None:
            promotes = promotes & (ages >= ramp.LEAST_WINDOWS)
        codes: Codes = np.where(promotes, PROMOTE, CONTINUE)
        codes[readings.split >= evidence.log_needed_split] = WRONG_SPLIT
        gone = (path.silent >= policy.no_data_limit) & ~self._aside
        codes[np.logical_or.reduce(gone, axis=-1)] = NO_DATA
        codes[np.logical_or.reduce(failing & self._critical, axis=-1)] = ROLL_BACK
        return codes

    def failing(self, readings: Readings) -> Bools:
        """Which metrics (..., M) are shown to be beyond a limit."""
        out: Bools = (readings.against >= self._evidence.log_needed_against) | readings.dead
        return out

    def at_deadline(
        self, state: EvidenceState, readings: Readings, others: bool | Bools = True, risk: float | None = None
    ) -> Bools:
        """Whether what is open at the deadline may be promoted (...): the one look whose moment was fixed before.

        `others`: whether the value metrics let it. `risk`: as in `Evidence.at_deadline`.
        """
        policy = self._evidence.policy
        shown = (
            self._evidence.at_deadline(state, risk)
            & (state.sums[..., : len(self._aside), REQUESTS] >= policy.min_requests)
            & (state.silent == 0)
            & ~self.failing(readings)
        )
        out: Bools = np.logical_and.reduce(shown | self._aside, axis=-1) & others & (not policy.guard)
        return out
