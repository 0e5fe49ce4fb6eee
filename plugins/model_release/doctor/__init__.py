"""What a release will need, looked at before anything moves: the cluster, the store, the metrics, the clocks.

Each check looks and says one thing; nothing is changed but for a probe object in the store that is removed again.
"""

from __future__ import annotations

from .examine import World, examine
from .finding import Finding, Level
from .metrics import PLAN
from .samples import SHADOW

__all__ = ["PLAN", "SHADOW", "Finding", "Level", "World", "examine"]
