"""Which slice of the traffic a request belongs to, as its headers say: `x-slice-country: fr`.

Only headers of the names that `MODEL_SLICES` lists are read (`service.slices` in the model file). What a client writes
there is counted only where it is short and plain, and each server process keeps the first fifty values of a name: the
rest is "other", and a request without the header "none". So no client can fill a server's memory, or Prometheus'.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

#: Of each name, in each process.
MOST_VALUES = 50
OTHER, NONE = "other", "none"
_PLAIN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,38}[A-Za-z0-9])?", re.ASCII)

#: How many answers (name, value, upper edge of their confidence).
Counts = Counter[tuple[str, str, str]]


class SliceCounter:
    """The names, and the values that were met. For one thread."""

    def __init__(self, names: str | None = None) -> None:
        said = os.environ.get("MODEL_SLICES", "") if names is None else names
        self._met: dict[str, set[str]] = {name: set() for name in said.split(",") if name}

    def __bool__(self) -> bool:
        return bool(self._met)

    def count(self, headers: Mapping[str, Any], sureness: Counter[str]) -> Counts:
        """The answers to one request, by slice. Names of headers are read in any letters."""
        counted: Counts = Counter()
        if not self._met:
            return counted
        said = {name.lower(): value for name, value in headers.items()}
        for name, met in self._met.items():
            value = self._value(met, said.get(f"x-slice-{name.replace('_', '-')}"))
            for band, answers in sureness.items():
                counted[name, value, band] += answers
        return counted

    @staticmethod
    def _value(met: set[str], said: object) -> str:
        text = said.decode("utf-8", "replace") if isinstance(said, (bytes, bytearray)) else str(said or "")
        if not text.strip():
            return NONE
        if text in met:
            return text
        if len(met) < MOST_VALUES and _PLAIN.fullmatch(text):
            met.add(text)
            return text
        return OTHER
