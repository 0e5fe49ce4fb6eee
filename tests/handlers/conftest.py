"""The handler's folder on sys.path, as TorchServe puts the archive's own."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "include" / "handlers"))
