"""The API server of the cluster's tests, and the store of the history's."""

from tests.cluster.conftest import asked, live, model
from tests.release.conftest import elsewhere, keys, publish, put, release, s3, store

__all__ = ["asked", "elsewhere", "keys", "live", "model", "publish", "put", "release", "s3", "store"]
