"""Value metrics: any PromQL, measured for each revision at the end of each window."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from model_release.errors import MetricsRefused, MetricsUnavailable
from model_release.judging import Window
from model_release.metrics.prometheus import Prometheus, quoted
from model_release.spec import Value


class ValueReader:
    """Adds to a window what each value's query gave at the window's end, for the canary and for stable.

    Asked again about the same window it gives the same numbers, as long as Prometheus keeps them. NaN is kept and
    judged as such. An empty answer, more than one series and a query that fails are None, and the window says why:
    none of them is ever success.
    """

    def __init__(
        self,
        prometheus: Prometheus,
        values: Sequence[Value],
        *,
        namespace: str,
        service: str,
        canary: str,
        stable: str | None,
    ) -> None:
        self._prometheus, self._values = prometheus, values
        self._names = {"namespace": namespace, "service": service}
        self._revisions = {"canary": canary} if stable is None else {"canary": canary, "stable": stable}

    def measured(self, window: Window) -> Window:
        """The window with its values; as it was where there are none to measure."""
        if not self._values or window.end is None:
            return window
        self._prometheus.begin()
        end, troubles = datetime.fromisoformat(window.end), [window.error] if window.error else []
        measured: dict[str, dict[str, float | None]] = {}
        for value in self._values:
            sides: dict[str, float | None] = {"canary": None, "stable": None}
            for side, revision in self._revisions.items():
                try:
                    sides[side] = self._measure(filled(value.query, revision=revision, **self._names), end)
                except (MetricsUnavailable, MetricsRefused) as error:
                    troubles.append(f"{value.name}: {error}")
            measured[value.name] = sides
        return replace(window, values=measured, error="; ".join(troubles) or None)

    def _measure(self, query: str, end: datetime) -> float:
        series = self._prometheus.query(query, end).series
        if len(series) != 1 or not series[0].samples:
            raise MetricsRefused(f"{query} gives {len(series) or 'no'} series at {end.isoformat()}; one is needed")
        return series[0].samples[-1][1]


def filled(query: str, **names: str) -> str:
    """The query with its placeholders filled in. What is filled in stands within quotes and can never leave them."""
    return string.Template(query).substitute({name: quoted(text)[1:-1] for name, text in names.items()})
