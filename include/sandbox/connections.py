"""What Airflow must know of a sandbox: its connections, in Airflow's JSON format, by environment variable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sandbox.s3 import REGION, ModelStore


def connections(*, kubeconfig: Path, store: ModelStore, prometheus: str, front_door: str) -> dict[str, str]:
    """`AIRFLOW_CONN_KUBERNETES`, `…_MODEL_STORE`, `…_PROMETHEUS` and `…_INGRESS` with what each is to say."""
    described = {
        "KUBERNETES": {"conn_type": "kubernetes", "extra": {"kube_config_path": str(kubeconfig)}},
        "MODEL_STORE": {
            "conn_type": "aws",
            "login": store.access_key,
            "password": store.secret_key,
            "extra": {"endpoint_url": store.url, "region_name": REGION},
        },
        "PROMETHEUS": _http(prometheus),
        "INGRESS": _http(front_door),
    }
    return {f"AIRFLOW_CONN_{name}": json.dumps(value) for name, value in described.items()}


def _http(url: str) -> dict[str, Any]:
    address = urlsplit(url)
    return {"conn_type": "http", "schema": address.scheme, "host": address.hostname, "port": address.port}
