"""The model store: reached, written, and able to keep a version from being overwritten."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

from model_release.errors import StoreContested

from .finding import Finding, error, ok

if TYPE_CHECKING:
    from model_release.store.store import Store


def check(store: Store) -> Iterator[Finding]:
    """Writes a small document, tries to overwrite it, reads it, removes it."""
    key = f"doctor/{uuid.uuid4().hex}.json"
    store.write_json(key, {"probe": 1}, if_match=None)
    try:
        try:
            store.write_json(key, {"probe": 2}, if_match=None)
        except StoreContested:
            conditional = True
        else:
            conditional = False
        found, _ = store.read_json(key)
        if not conditional or found != {"probe": 1}:
            yield error(
                "store",
                f"{store.uri} lets one write overwrite another that was to be kept (If-None-Match is not heeded)",
                "an S3 with conditional writes: Amazon's, MinIO, SeaweedFS from 3.8x on",
            )
        else:
            yield ok("store", f"{store.uri} is read and written, and heeds conditions")
    finally:
        store.remove([key])
