"""statsd_exporter's part, by its README: lines that StatsD gets, through the project's mapping, as Prometheus' text.

The program itself is in no package that this project can count on, so its rules are followed here, as far as the
mapping uses them: tags in InfluxDB's style, globs, metric types, histograms of seconds from timers of milliseconds.
Unlike it, a line that no mapping takes is an error, for then the mapping has forgotten it.
"""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

MAPPING = Path(__file__).resolve().parents[2] / "include/dashboards/statsd_mapping.yaml"
_TYPES = {"c": "counter", "g": "gauge", "ms": "observer"}
Sample = tuple[str, dict[str, str], float]


class Exporter:
    """Takes StatsD's lines and exposes what they come to."""

    def __init__(self, mapping: Path = MAPPING) -> None:
        self._mappings: list[dict[str, Any]] = yaml.safe_load(mapping.read_text())["mappings"]
        self._values: dict[str, dict[tuple[tuple[str, str], ...], float]] = defaultdict(lambda: defaultdict(float))
        self.unmapped: list[str] = []

    def take(self, packet: str) -> None:
        for line in packet.splitlines():
            head, _, rest = line.partition(":")
            value, kind = rest.split("|")[:2]
            name, *tags = head.split(",")
            labels = dict(tag.split("=", 1) for tag in tags)
            found = self._mapped(name, _TYPES[kind])
            if found is None:
                self.unmapped.append(line)
            elif kind == "ms":
                self._observe(found, labels, float(value) / 1000)
            else:
                series, key = self._values[found["name"]], tuple(sorted(labels.items()))
                series[key] = float(value) + (series[key] if kind == "c" else 0)

    def samples(self) -> list[Sample]:
        return [(name, dict(key), value) for name, series in self._values.items() for key, value in series.items()]

    def _mapped(self, name: str, kind: str) -> dict[str, Any] | None:
        for mapping in self._mappings:
            if fnmatch.fnmatchcase(name, mapping["match"]) and mapping["match_metric_type"] == kind:
                return mapping
        return None

    def _observe(self, mapping: dict[str, Any], labels: dict[str, str], seconds: float) -> None:
        key = tuple(sorted(labels.items()))
        for edge in [*mapping["histogram_options"]["buckets"], float("inf")]:
            le = "+Inf" if edge == float("inf") else f"{edge:g}"
            self._values[f"{mapping['name']}_bucket"][tuple(sorted((labels | {"le": le}).items()))] += seconds <= edge
        self._values[f"{mapping['name']}_sum"][key] += seconds
        self._values[f"{mapping['name']}_count"][key] += 1
