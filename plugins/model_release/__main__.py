"""`python -m model_release`: the commands for when nobody wants to wait for a run (`commands/`)."""

from __future__ import annotations

import sys

from model_release.commands import main

if __name__ == "__main__":
    sys.exit(main())
