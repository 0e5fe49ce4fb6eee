"""The API server of the cluster's tests, and the store of the history's."""

from tests.cluster.conftest import asked, live, model
from tests.release.conftest import keys, publish, put, release, s3, store

__all__ = ["asked", "keys", "live", "model", "publish", "put", "release", "s3", "store"]
