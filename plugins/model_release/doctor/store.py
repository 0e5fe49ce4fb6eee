"""The model store: reached, written, and able to keep a version from being overwritten."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

from model_release.errors import StoreContested

from .finding import Finding, error, ok

if TYPE_CHECKING:
    from model_release.store.store import Store

_RIGHT = "a store with conditional writes: Google's, Azure's, S3 of Amazon, MinIO, SeaweedFS from 3.8x on"


def check(store: Store) -> Iterator[Finding]:
    """Writes a small document, tries to overwrite it in both ways that would lose somebody's words, overwrites it as a
    writer does that has read it, reads it, removes it."""
    key = f"doctor/{uuid.uuid4().hex}.json"
    store.write_json(key, {"probe": 1}, if_match=None)
    try:
        try:
            store.write_json(key, {"probe": 2}, if_match=None)
        except StoreContested:
            conditional = True
        else:
            conditional = False
        found, tag = store.read_json(key)
        if not conditional or found != {"probe": 1}:
            yield error(
                "store",
                f"{store.uri} lets one write overwrite another that was to be kept (If-None-Match is not heeded)",
                _RIGHT,
            )
            return
        store.write_json(key, {"probe": 3}, if_match=tag)
        try:
            store.write_json(key, {"probe": 4}, if_match=tag)
        except StoreContested:
            found, _ = store.read_json(key)
        else:
            found = None
        if found != {"probe": 3}:
            yield error(
                "store",
                f"{store.uri} lets a writer overwrite what somebody wrote since it read (If-Match is not heeded)",
                _RIGHT,
            )
        else:
            yield ok("store", f"{store.uri} is read and written, and heeds If-None-Match and If-Match")
    finally:
        store.remove([key])
