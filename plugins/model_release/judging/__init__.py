"""Counts in, verdict out: the judge of a canary. Pure; needs NumPy and nothing of ours (see README.md)."""

from __future__ import annotations

from .judge import Judge, judge
from .past import Past
from .policy import Policy, PolicyError, RateLimit, ShiftLimit, ValueLimit
from .verdict import MetricVerdict, TrafficVerdict, ValueVerdict, Verdict
from .window import EvidenceError, Side, Window

__all__ = [
    "EvidenceError",
    "Judge",
    "MetricVerdict",
    "Past",
    "Policy",
    "PolicyError",
    "RateLimit",
    "ShiftLimit",
    "Side",
    "TrafficVerdict",
    "ValueLimit",
    "ValueVerdict",
    "Verdict",
    "Window",
    "judge",
]
