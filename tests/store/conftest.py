"""The store's tests have the SeaweedFS of the builds and the versions of the releases."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location("store_release", Path(__file__).parents[1] / "release" / "conftest.py")
assert _spec
assert _spec.loader
_release = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_release)

s3, store, release, put, publish, keys = (
    _release.s3,
    _release.store,
    _release.release,
    _release.put,
    _release.publish,
    _release.keys,
)
