"""Which class speaks to which kind of store; and the clients of those that are not S3, of what an Airflow connection
says, or of the machine's own credentials."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from model_release.errors import SpecError
from model_release.store.gcs import GcsObjects, Google
from model_release.store.objects import Address, Objects

GCS, AZURE = "model_store_gcs", "model_store_azure"

# What the `extra` of each may say.
_GCS = ("project", "key_path", "keyfile_dict", "endpoint_url")
_AZURE = ("tenant_id", "sas_token")


@dataclass(frozen=True)
class Given:
    """What a connection says. An empty one: the machine's own chain of credentials."""

    login: str = ""
    password: str = field(default="", repr=False)
    host: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Given:
        """Of a connection's parts, by Airflow's names for them. A host without a scheme is asked by https."""
        host = str(said.get("host") or "")
        if host and "://" not in host:
            host = f"{said.get('schema') or 'https'}://{host}"
        port = f":{said['port']}" if host and said.get("port") else ""
        return cls(said.get("login") or "", said.get("password") or "", f"{host}{port}", said.get("extra") or {})


def objects(client: Any, where: Address) -> Objects:
    """The objects of a bucket, through the client of its kind: boto3's, `gcs.Google`, or Azure's BlobServiceClient."""
    if where.kind == "gs":
        return GcsObjects(client, where)
    if where.kind == "abfs":
        from model_release.store.azure import AzureObjects

        return AzureObjects(client, where)
    from model_release.store.s3 import S3Objects

    return S3Objects(client, where.bucket)


def gcs(given: Given, *, quick: bool = False) -> Google:
    """Google Cloud Storage. Extra `key_path` is the file of a service account's key, `keyfile_dict` its content, as in
    Airflow's connections of type google_cloud_platform; without them the machine's own credentials (Workload Identity,
    GOOGLE_APPLICATION_CREDENTIALS). Extra `endpoint_url` is another server, an emulator's with `project`, unsigned.

    `quick` is for who would rather hear that the store is away than wait. Raises `SpecError`: the package is missing,
    or the connection says something else.
    """
    _known(GCS, given.extra, _GCS)
    try:
        from google.auth.credentials import AnonymousCredentials
        from google.auth.exceptions import DefaultCredentialsError, MalformedError
        from google.cloud.storage import Client
        from google.oauth2.service_account import Credentials
    except ImportError as error:
        raise SpecError(_missing("gs://", "google-cloud-storage")) from error
    extra, credentials = given.extra, None
    endpoint = extra.get("endpoint_url")
    try:
        if "keyfile_dict" in extra:
            content = extra["keyfile_dict"]
            credentials = Credentials.from_service_account_info(
                json.loads(content) if isinstance(content, str) else content
            )
        elif "key_path" in extra:
            credentials = Credentials.from_service_account_file(extra["key_path"])
        elif endpoint and str(endpoint).startswith("http://"):
            credentials = AnonymousCredentials()
        options = {"api_endpoint": endpoint} if endpoint else None
        client = Client(extra.get("project") or None, credentials, client_options=options)
    except (DefaultCredentialsError, MalformedError, ValueError, OSError) as error:
        raise SpecError(f"connection {GCS}: no credentials for Google's storage: {error}") from error
    return Google(client, 5.0, 0.0) if quick else Google(client)


def azure(where: Address, given: Given, *, quick: bool = False) -> Any:
    """A BlobServiceClient of the address' account. The password is the account's key, extra `sas_token` a signature; or
    the login is a service principal, with its secret as password and extra `tenant_id`. Without them the machine's own
    credentials (workload or managed identity, AZURE_CLIENT_ID, …). The host is another address of the account (a
    private one, or an emulator's).

    `quick`, and what is raised: as `gcs`.
    """
    _known(AZURE, given.extra, _AZURE)
    try:
        from azure.identity import ClientSecretCredential, DefaultAzureCredential
        from azure.storage.blob import BlobServiceClient
    except ImportError as error:
        raise SpecError(_missing("abfs://", "azure-storage-blob and azure-identity")) from error
    credential: Any
    if tenant := given.extra.get("tenant_id"):
        if not (given.login and given.password):
            raise SpecError(
                f"connection {AZURE}: tenant_id needs a service principal as login and its secret as password"
            )
        credential = ClientSecretCredential(tenant, given.login, given.password)
    elif token := given.extra.get("sas_token"):
        credential = str(token)
    elif given.password:
        credential = {"account_name": where.account, "account_key": given.password}
    else:
        credential = DefaultAzureCredential()
    address = given.host or f"https://{where.account}.blob.core.windows.net"
    settings = {"connection_timeout": 2, "read_timeout": 5, "retry_total": 0} if quick else {}
    try:
        return BlobServiceClient(address, credential=credential, **settings)
    except ValueError as error:
        raise SpecError(f"connection {AZURE}: {error}") from error


def _known(name: str, extra: Mapping[str, Any], known: tuple[str, ...]) -> None:
    if unknown := sorted(extra.keys() - set(known)):
        raise SpecError(f"connection {name}: extra {unknown[0]!r} is unknown; known are {', '.join(known)}")


def _missing(what: str, packages: str) -> str:
    return f"a store at {what} needs {packages}, which this Python has not; docs/stores.md has the command"
