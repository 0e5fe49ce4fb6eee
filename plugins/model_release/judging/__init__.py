"""Counts in, verdict out: the judge of a canary. Pure; needs NumPy and nothing of ours (see README.md)."""

from __future__ import annotations

from .judge import Judge, judge
from .policy import MetricPolicy, Policy, PolicyError, ValueMetric
from .verdict import MetricVerdict, TrafficVerdict, ValueVerdict, Verdict
from .window import EvidenceError, Side, Window

__all__ = [
    "EvidenceError",
    "Judge",
    "MetricPolicy",
    "MetricVerdict",
    "Policy",
    "PolicyError",
    "Side",
    "TrafficVerdict",
    "ValueMetric",
    "ValueVerdict",
    "Verdict",
    "Window",
    "judge",
]
