"""The Airflow connections that a release knows the world by.

| connection    | type       | what                                                                            |
|---------------|------------|---------------------------------------------------------------------------------|
| `kubernetes`  | kubernetes | the cluster                                                                     |
| `model_store` | aws        | S3, where versions and records are                                              |
| `prometheus`  | http       | Prometheus; how to sign in and whom to trust: `prometheus()`                    |
| `ingress`     | http       | optional: the gateway, where host names do not resolve or it wants a token      |
| `hub`         | http       | optional: the hub's address where it is another, a token as password            |
| `mlflow`      | http       | the MLflow server, for sources in its registry                                  |
| `grafana`     | http       | optional: Grafana's address, for links                                          |

Stores that are not S3 are reached by `model_store_gcs` and `model_store_azure`, both optional (docs/stores.md).

The sandbox and a cluster differ in nothing else. The clients are made anew in each task: nothing heavy is imported
before one runs, and no credential outlives it.
"""

from __future__ import annotations

import os
from base64 import b64encode
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model_release.build.hub import HubAccess
    from model_release.build.registry import Registry
    from model_release.cluster.smoke import Gateway
    from model_release.errors import ReleaseError
    from model_release.metrics.auth import SigV4
    from model_release.metrics.prometheus import Prometheus
    from model_release.spec import ModelSpec
    from model_release.store.clients import Given
    from model_release.store.store import Store

KUBERNETES = "kubernetes"
STORE = "model_store"
PROMETHEUS = "prometheus"
INGRESS = "ingress"
GRAFANA = "grafana"
HUB = "hub"
MLFLOW = "mlflow"


def cluster(who: str = "worker") -> Any:
    """The `kubernetes` ApiClient of the provider's KubernetesHook. `who` calls is told to the cluster, whose audit log
    can then be held against include/manifests/roles.yaml."""
    from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook

    client = KubernetesHook(conn_id=KUBERNETES).get_conn()
    client.user_agent = f"model-release-{who}/1"
    return client


def s3() -> Any:
    """The boto3 client of the provider's S3Hook."""
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    return S3Hook(aws_conn_id=STORE).get_conn()


def reach(uri: str, *, quick: bool = False) -> Any:
    """The client of the store that an address names, as `store.objects` takes it. Where `model_store_gcs` or
    `model_store_azure` is not there, the machine's own credentials count. `quick`: `store.clients`, and not for S3.

    Raises:
        SpecError: the address is none, a package is missing, or the connection says something else.
    """
    from model_release.store import clients
    from model_release.store.objects import address

    where = address(uri)
    if where.kind == "gs":
        return clients.gcs(_given(clients.GCS), quick=quick)
    if where.kind == "abfs":
        return clients.azure(where, _given(clients.AZURE), quick=quick)
    return s3()


def _needed(conn_id: str, refused: type[ReleaseError]) -> Any:
    """The connection of a server, which has to be there."""
    from airflow.sdk import BaseHook
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        return BaseHook.get_connection(conn_id)
    except AirflowNotFoundException as error:
        raise refused(
            f"there is no connection {conn_id}; one of type http with the server's address is right"
        ) from error


def _given(conn_id: str) -> Given:
    from airflow.sdk import BaseHook
    from airflow.sdk.exceptions import AirflowNotFoundException

    from model_release.store.clients import Given

    try:
        found = BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        return Given()
    names = ("login", "password", "host", "schema", "port")
    return Given.of({name: getattr(found, name) for name in names} | {"extra": found.extra_dejson})


def store(prefix: str) -> Store:
    """The versions and records below `prefix` (s3://…/, gs://…/, abfs://…/)."""
    from model_release.store.store import Store

    return Store(reach(prefix), prefix)


def builds(spec: ModelSpec) -> Store:
    """The model's store, as the tasks of its build use it: what one leaves for the next is in the folder that the
    workers' environment names as `MODEL_RELEASE_BUILDS` (of `MODEL_RELEASE_BUILDS_GB` gigabytes, 20 unless said), which
    all of them have to share, as those of one machine do. Without one, and for builds in pods, it is in the store.

    Raises:
        SpecError: the size is none.
    """
    from pathlib import Path

    from model_release.errors import SpecError
    from model_release.store.here import Here
    from model_release.store.store import Store

    folder, said = os.environ.get("MODEL_RELEASE_BUILDS"), os.environ.get("MODEL_RELEASE_BUILDS_GB", "20")
    if not folder or spec.build.within != "worker":
        return store(spec.store)
    if not said.replace(".", "", 1).isdigit():
        raise SpecError(f"MODEL_RELEASE_BUILDS_GB is {said!r}; a number of gigabytes, such as 20, is right")
    return Store(reach(spec.store), spec.store, here=Here(Path(folder), int(float(said) * 1e9)))


# What the `extra` of the connection `prometheus` may say.
_PROMETHEUS_EXTRA = ("token", "sigv4_region", "aws_conn_id", "verify", "cert", "timeout")


def prometheus() -> Prometheus:
    """The client of the `prometheus` connection. One way to sign in, or none:

    * login and password: basic authentication;
    * extra `token`: a bearer token;
    * extra `sigv4_region`: a signature for Amazon Managed Service for Prometheus in that region, with the credentials
      of the `aws` connection that extra `aws_conn_id` names, or of the machine's own chain (IRSA, Pod Identity, …).

    For https, extra `verify` is the file of the authorities to trust (or false, for none of these checks), and extra
    `cert` the file of a client certificate with its key, or a list of both files: as in Airflow's own `http`
    connections. Extra `timeout` is seconds for each request, 10 unless said.

    Raises:
        MetricsRefused: there is no such connection, or it says something else, or two things at once.
    """
    from model_release.errors import MetricsRefused
    from model_release.metrics.prometheus import Prometheus

    connection = _needed(PROMETHEUS, MetricsRefused)
    extra = connection.extra_dejson
    if unknown := sorted(extra.keys() - set(_PROMETHEUS_EXTRA)):
        known = ", ".join(_PROMETHEUS_EXTRA)
        raise MetricsRefused(f"connection {PROMETHEUS}: extra {unknown[0]!r} is unknown; known are {known}")
    if "aws_conn_id" in extra and "sigv4_region" not in extra:
        raise MetricsRefused(f"connection {PROMETHEUS}: extra aws_conn_id has no meaning without sigv4_region")
    cert = extra.get("cert")
    return Prometheus(
        _address(connection),
        basic=(connection.login, connection.password or "") if connection.login else None,
        token=extra.get("token"),
        sigv4=_sigv4(extra) if "sigv4_region" in extra else None,
        verify=extra.get("verify", True),
        cert=tuple(cert) if isinstance(cert, list) else cert,
        timeout=float(extra.get("timeout", 10)),
    )


def _sigv4(extra: dict[str, Any]) -> SigV4:
    """Who signs for Amazon."""
    from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook

    from model_release.errors import MetricsRefused
    from model_release.metrics.auth import SigV4

    region, named = str(extra["sigv4_region"]), extra.get("aws_conn_id")
    credentials = AwsBaseHook(aws_conn_id=named, region_name=region, client_type="sts").get_session().get_credentials()
    if credentials is None:
        where = f"connection {named}" if named else "the machine's own chain"
        raise MetricsRefused(f"connection {PROMETHEUS}: {where} has no AWS credentials to sign with")
    return SigV4(credentials, region)


def prometheus_address() -> str | None:
    """Where a person finds Prometheus; None when there is no such connection."""
    return _optional_address(PROMETHEUS)


def hub() -> HubAccess:
    """How the hub is reached: an address, and a token as password; without a connection, as the environment says."""
    from airflow.sdk import BaseHook
    from airflow.sdk.exceptions import AirflowNotFoundException

    from model_release.build.hub import HubAccess

    try:
        connection = BaseHook.get_connection(HUB)
    except AirflowNotFoundException:
        return HubAccess()
    return HubAccess(_address(connection) if connection.host else None, connection.password or None)


def grafana_address() -> str | None:
    """Where a person finds Grafana; None when there is no such connection."""
    return _optional_address(GRAFANA)


def mlflow() -> Registry:
    """The MLflow server, by the connection `mlflow`. It may sign in, and trusts, as `ingress` does; the host may be a
    whole address (`https://mlflow.example.com/team`).

    Raises:
        SpecError: there is no such connection, or it says something else, or two things at once.
    """
    from model_release.build.registry import Registry
    from model_release.errors import SpecError

    connection = _needed(MLFLOW, SpecError)
    return Registry(_address(connection), *_signing_in(connection, MLFLOW))


# What the `extra` of the connections `ingress` and `mlflow` may say.
_EXTRA = ("token", "verify")


def ingress() -> Gateway:
    """The gateway to send smoke predictions to, by the `ingress` connection; without one the services' host names
    resolve from here. It may sign in as `prometheus` does, by login and password or by extra `token`; for https, extra
    `verify` is the file of the authorities to trust (or false, for none of these checks). A connection without a host
    says the latter alone.

    Raises:
        SpecError: the connection says something else, or two things at once.
    """
    from airflow.sdk import BaseHook
    from airflow.sdk.exceptions import AirflowNotFoundException

    from model_release.cluster.smoke import Gateway

    try:
        connection = BaseHook.get_connection(INGRESS)
    except AirflowNotFoundException:
        return Gateway()
    return Gateway(_address(connection) if connection.host else None, *_signing_in(connection, INGRESS))


def _signing_in(connection: Any, name: str) -> tuple[str | None, bool | str]:
    """(the header Authorization, whom to trust) of a connection."""
    from model_release.errors import SpecError

    extra = connection.extra_dejson
    if unknown := sorted(extra.keys() - set(_EXTRA)):
        raise SpecError(f"connection {name}: extra {unknown[0]!r} is unknown; known are {', '.join(_EXTRA)}")
    if connection.login and "token" in extra:
        raise SpecError(f"connection {name}: a login and extra token are two ways to sign in; give one")
    authorization = f"Bearer {extra['token']}" if "token" in extra else None
    if connection.login:
        pair = b64encode(f"{connection.login}:{connection.password or ''}".encode()).decode()
        authorization = f"Basic {pair}"
    return authorization, extra.get("verify", True)


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
