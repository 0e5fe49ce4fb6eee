"""Grafana's dashboards: one for a service, one for the fleet, for each profile, made from the profile's own names.

`python -m model_release.metrics.dashboards FOLDER` writes `FOLDER/<profile>/service.json` and `fleet.json`; again, it
writes the same. A test holds the files in `include/dashboards/` to this, and every query to real data.
"""

from __future__ import annotations

from .boards import FILES, board, uid, write

__all__ = ["FILES", "board", "uid", "write"]
