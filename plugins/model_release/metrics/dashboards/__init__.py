"""Grafana's dashboards: one for a service, one for the fleet, for each profile, made from the profile's own names.

`python -m model_release.metrics.dashboards FOLDER` writes `FOLDER/<profile>/service.json` and `fleet.json`; again, it
writes the same. Tests ask every query of a real Prometheus.
"""

from __future__ import annotations

from .boards import FILES, board, uid, write

__all__ = ["FILES", "board", "uid", "write"]
