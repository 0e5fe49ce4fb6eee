"""The four Airflow connections that a release knows the world by.

| connection    | type       | what                                                                            |
|---------------|------------|---------------------------------------------------------------------------------|
| `kubernetes`  | kubernetes | the cluster                                                                     |
| `model_store` | aws        | S3, where versions and records are                                              |
| `prometheus`  | http       | Prometheus; login and password for basic, extra `{"token": …}` for a bearer    |
| `ingress`     | http       | optional: the gateway's address, where the services' host names do not resolve  |

The sandbox and a cluster differ in nothing else. The clients are made anew in each task: nothing heavy is imported
before one runs, and no credential outlives it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model_release.artifact.store import Store
    from model_release.metrics.prometheus import Prometheus

KUBERNETES = "kubernetes"
STORE = "model_store"
PROMETHEUS = "prometheus"
INGRESS = "ingress"


def cluster() -> Any:
    """The `kubernetes` ApiClient of the provider's KubernetesHook."""
    from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook

    return KubernetesHook(conn_id=KUBERNETES).get_conn()


def s3() -> Any:
    """The boto3 client of the provider's S3Hook."""
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    return S3Hook(aws_conn_id=STORE).get_conn()


def store(prefix: str) -> Store:
    """The versions and records below `prefix` (s3://…/)."""
    from model_release.artifact.store import Store

    return Store(s3(), prefix)


def prometheus() -> Prometheus:
    """The client of the `prometheus` connection."""
    from airflow.sdk import BaseHook

    from model_release.metrics.prometheus import Prometheus

    connection = BaseHook.get_connection(PROMETHEUS)
    extra = connection.extra_dejson
    basic = (connection.login, connection.password or "") if connection.login else None
    return Prometheus(_address(connection), basic=basic, token=extra.get("token"))


def prometheus_address() -> str | None:
    """Where a person finds Prometheus; None when there is no such connection."""
    return _optional_address(PROMETHEUS)


def ingress() -> str | None:
    """The gateway to send smoke predictions to; None when the services' host names resolve from here."""
    return _optional_address(INGRESS)


def _optional_address(conn_id: str) -> str | None:
    from airflow.sdk import BaseHook
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        return _address(BaseHook.get_connection(conn_id))
    except AirflowNotFoundException:
        return None


def _address(connection: Any) -> str:
    """`http` connections are written with or without a scheme in the host; both are read."""
    host = str(connection.host or "")
    if "://" not in host:
        host = f"{connection.schema or 'http'}://{host}"
    port = f":{connection.port}" if connection.port else ""
    return f"{host.rstrip('/')}{port}"
