"""Counts in, verdict out: the judge of a canary. Pure; needs NumPy and nothing of ours (see README.md)."""

from __future__ import annotations

from .judge import Judge, judge
from .past import Past
from .policy import Metric, Policy, PolicyError, Shift, Value
from .verdict import MetricVerdict, TrafficVerdict, ValueVerdict, Verdict
from .window import EvidenceError, Side, Window

__all__ = [
    "EvidenceError",
    "Judge",
    "Metric",
    "MetricVerdict",
    "Past",
    "Policy",
    "PolicyError",
    "Shift",
    "Side",
    "TrafficVerdict",
    "Value",
    "ValueVerdict",
    "Verdict",
    "Window",
    "judge",
]
