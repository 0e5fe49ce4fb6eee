"""Prometheus → counts by revision and window. Reads only; judges nothing."""

from __future__ import annotations

from .answers import answers_presence
from .observed import Presence, bucket_edges, check_limits, presence, quantile, request_rate
from .past import Before, read_before
from .profiles import PROFILES, RevisionMetrics, profile
from .prometheus import Prometheus, Result, Series
from .slices import slices_presence
from .values import ValueReader
from .windows import WindowReader, read_windows

__all__ = [
    "PROFILES",
    "Before",
    "Presence",
    "Prometheus",
    "Result",
    "RevisionMetrics",
    "Series",
    "ValueReader",
    "WindowReader",
    "answers_presence",
    "bucket_edges",
    "check_limits",
    "presence",
    "profile",
    "quantile",
    "read_before",
    "read_windows",
    "request_rate",
    "slices_presence",
]
