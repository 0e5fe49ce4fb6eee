"""`python -m model_release.metrics.dashboards [FOLDER]`: writes the dashboards; `include/dashboards` unless said."""

from __future__ import annotations

import sys
from pathlib import Path

from model_release.metrics.dashboards import write

if __name__ == "__main__":
    for path in write(Path(sys.argv[1] if len(sys.argv) > 1 else "include/dashboards")):
        print(path)
