"""What was released: an index of the decision records, the versions and their fates, and which of them are kept.

Works on an `artifact.store.Store`; needs neither Airflow nor torch.
"""

from __future__ import annotations

from .index import Entry, History, Page

__all__ = ["Entry", "History", "Page"]
