"""What the commands of `python -m model_release` need to know of their surroundings: model files, cluster, S3.

`--sandbox` finds all of it in the sandbox's folder. Otherwise the cluster is that of the kubeconfig, and S3 is what
`AIRFLOW_CONN_MODEL_STORE` says (as Airflow's own environment has it, JSON or URI) or else boto3's own environment and
profiles, with `--endpoint-url` for another S3 than Amazon's.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from model_release.errors import SpecError
from model_release.model_file import read_all

if TYPE_CHECKING:
    from model_release.spec import ModelSpec
    from model_release.store.store import Store

PROJECT = Path(__file__).resolve().parents[3]

_STORE = "AIRFLOW_CONN_MODEL_STORE"
# Of what Airflow's Amazon provider reads in a connection's extra, that which boto3 has by the same name.
_EXTRA = {"aws_session_token", "endpoint_url", "profile_name", "region_name", "verify"}


def add_options(parser: argparse.ArgumentParser, *, cluster: bool = False, store: bool = False) -> None:
    """`--models` and `--sandbox`, with `cluster` also `--kubeconfig`, with `store` also `--endpoint-url`."""
    parser.add_argument("--models", type=Path, default=PROJECT / "include" / "models", help="where model files are")
    here = PROJECT / ".sandbox"
    parser.add_argument(
        "--sandbox", action="store_const", const=here, help="the cluster and the S3 of the sandbox, in .sandbox"
    )
    parser.add_argument("--sandbox-state", type=Path, dest="sandbox", metavar="STATE", help="of a sandbox elsewhere")
    if cluster:
        parser.add_argument("--kubeconfig", type=Path, help="(KUBECONFIG, ~/.kube/config, or the pod's own)")
    if store:
        parser.add_argument("--endpoint-url", metavar="URL", help=f"of S3 (what {_STORE} or boto3's profile says)")


def settle_sandbox(options: argparse.Namespace) -> None:
    """`--sandbox` says where the cluster is, unless `--kubeconfig` does."""
    state = getattr(options, "sandbox", None)
    if state is not None and getattr(options, "kubeconfig", None) is None:
        options.kubeconfig = state / "kubeconfig.yaml"


def connect(sandbox: Path) -> None:
    """The sandbox's connections, as Airflow reads them from its environment."""
    file = sandbox / "connections.json"
    try:
        os.environ.update(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise SpecError(f"no sandbox runs in {sandbox}; `make up` starts one") from error
    except (OSError, ValueError) as error:
        raise SpecError(f"{file} cannot be read: {error}; `make up` writes it anew") from error


def cluster(kubeconfig: Path | None, context: str | None = None) -> Any:
    """The `kubernetes` ApiClient of that kubeconfig, or of the machine's own; of its current context unless said."""
    import yaml
    from kubernetes import config
    from kubernetes.client import ApiClient

    try:
        if kubeconfig is not None:
            return config.new_client_from_config(str(kubeconfig), context)
        try:
            config.load_kube_config()
        except config.ConfigException:
            config.load_incluster_config()
        return ApiClient()
    except config.ConfigException as error:
        raise SpecError(f"no cluster to talk to: {error}; --kubeconfig FILE names one") from error
    except (yaml.YAMLError, OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        which = kubeconfig or "the kubeconfig"
        raise SpecError(
            f"no cluster to talk to: {which} cannot be read as one: {error}; --kubeconfig FILE names one"
        ) from error


def user() -> str:
    """Who runs the command: for records, and for leases that the same person may take again."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a pod's user id need not be in its /etc/passwd
        return f"user {os.getuid()}"


def spec(options: argparse.Namespace) -> ModelSpec:
    """The model that `options.model` names."""
    return model(options.models, options.model)


def model(folder: Path, name: str, hint: str = "") -> ModelSpec:
    """The model of that name; other models' files may be broken.

    Raises:
        SpecError: there is none, or its file is one of those that are.
    """
    specs, refused = read_all(folder)
    if name not in specs:
        known = ", ".join(specs) or "none"
        raise SpecError("\n".join([f"{name!r} is no model of {folder} ({known}){hint}", *refused]))
    return specs[name]


def store(options: argparse.Namespace, uri: str) -> Store:
    """The store at `uri`."""
    from model_release.store.store import Store

    return Store(reach(options, uri), uri)


def reach(options: argparse.Namespace, uri: str) -> Any:
    """The client of the store that an address names. Those that are not S3 are found by `AIRFLOW_CONN_MODEL_STORE_GCS`
    and `AIRFLOW_CONN_MODEL_STORE_AZURE`, else by the machine's own credentials. Raises `SpecError`, as `s3` does."""
    from model_release.store import clients
    from model_release.store.objects import address

    where = address(uri)
    if where.kind == "s3":
        return s3(options)
    name = clients.GCS if where.kind == "gs" else clients.AZURE
    variable = f"AIRFLOW_CONN_{name.upper()}"
    given = clients.Given.of(_read(variable, os.environ.get(variable, "")))
    return clients.gcs(given) if where.kind == "gs" else clients.azure(where, given)


def s3(options: argparse.Namespace) -> Any:
    """The boto3 client. Raises `SpecError` where the surroundings do not say enough."""
    import boto3
    from botocore.exceptions import BotoCoreError

    known = _connection(options.sandbox)
    if options.endpoint_url:
        known["endpoint_url"] = options.endpoint_url
    try:
        return boto3.Session(profile_name=known.pop("profile_name", None)).client("s3", **known)
    except (BotoCoreError, ValueError, TypeError) as error:
        raise SpecError(f"no S3 to talk to: {error}") from error


def ingress(options: argparse.Namespace) -> str | None:
    """The gateway's address in the sandbox; None elsewhere, where the services' names resolve or somebody says it."""
    if options.sandbox is None:
        return None
    known = json.loads((options.sandbox / "connections.json").read_text(encoding="utf-8"))
    found = json.loads(known.get("AIRFLOW_CONN_INGRESS", "{}"))
    return f"{found.get('schema') or 'http'}://{found['host']}:{found['port']}" if found else None


def _connection(sandbox: Path | None) -> dict[str, Any]:
    """What an Airflow connection of type aws says, as boto3 takes it; nothing where there is none."""
    if sandbox is not None:
        file = sandbox / "connections.json"
        try:
            text = str(json.loads(file.read_text(encoding="utf-8"))[_STORE])
        except OSError as error:
            raise SpecError(f"no sandbox was ever started in {sandbox}; `make up` starts one") from error
        except (ValueError, KeyError, TypeError) as error:
            raise SpecError(f"{file} does not say where the sandbox's S3 is: {error!r}") from error
    else:
        text = os.environ.get(_STORE, "")
    given = _read(_STORE, text)
    extra = given["extra"]
    if unknown := sorted(extra.keys() - _EXTRA):
        raise SpecError(
            f"{_STORE}: extra: {unknown[0]!r} is for Airflow alone; for a command unset it, and sign in as AWS's own "
            f"tools do (AWS_PROFILE); read here are {', '.join(sorted(_EXTRA))}"
        )
    found = {**extra, "aws_access_key_id": given.get("login"), "aws_secret_access_key": given.get("password")}
    return {name: value for name, value in found.items() if value not in (None, "")}


def _read(name: str, text: str) -> dict[str, Any]:
    """A connection as Airflow's environment has it, its `extra` as a dictionary; of an empty text nothing but that."""
    if not text:
        return {"extra": {}}
    try:
        given = dict(json.loads(text) if text.lstrip().startswith("{") else _from_uri(text))
        extra = given.get("extra") or {}
        return {**given, "extra": dict(json.loads(extra) if isinstance(extra, str) else extra)}
    except (ValueError, AttributeError, TypeError) as error:
        raise SpecError(f"{name} is neither a connection's JSON nor its URI: {error}") from error


def _from_uri(text: str) -> dict[str, Any]:
    """`aws://login:password@/?endpoint_url=…`, every part percent-encoded, or everything in `__extra__` as JSON."""
    address = urlsplit(text)
    if not address.scheme:
        raise ValueError("it has no scheme such as aws://")
    extra = dict(parse_qsl(address.query))
    if "__extra__" in extra:
        extra = json.loads(extra["__extra__"])
    return {
        "login": unquote(address.username or ""),
        "password": unquote(address.password or ""),
        "host": unquote(address.hostname or ""),
        "port": address.port,
        "extra": extra,
    }
