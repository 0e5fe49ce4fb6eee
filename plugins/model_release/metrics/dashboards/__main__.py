"""`python -m model_release.metrics.dashboards FOLDER`: writes the dashboards, a folder for each profile."""

from __future__ import annotations

import argparse
from pathlib import Path

from model_release.metrics.dashboards import write

if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m model_release.metrics.dashboards", description=__doc__)
    parser.add_argument("folder", type=Path, help="where FOLDER/<profile>/service.json and fleet.json go")
    for path in write(parser.parse_args().folder):
        print(path)
