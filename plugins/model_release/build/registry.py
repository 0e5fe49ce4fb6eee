"""Models of an MLflow registry: read as a source, and told what became of them. MLflow's REST API, by plain requests:
of its own client a release needs six calls, and that client brings twenty packages.

`models:/digits@candidate` is whatever version the alias stands at when it is asked, and from then on that version:
an alias that moves during the build changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from model_release.errors import CheckpointError, SourceUnavailable, SpecError
from model_release.store.download import Download
from model_release.store.folder import Folder, Log, Prefix

CONNECTION = "mlflow"
CURE = f"mend the Airflow connection `{CONNECTION}`"

_URI = re.compile(r"models:/([^/:@%'\"\\\x00-\x1f]+)(?:@([A-Za-z0-9_-]+)|/(\d+|latest))")
# Where MLflow's flavor `transformers` puts what `save_pretrained` writes into one folder.
_MODEL = "model/"
_PROCESSORS = ("components/image_processor/", "components/feature_extractor/", "components/processor/")
# Seconds to connect, and without a byte.
_PATIENCE = (10.0, 60.0)
_PAGE = 100
_BLOCK = 1 << 20
# An alias may stand at a version that was registered later than a run's moment by so much: clocks differ.
_SKEW = timedelta(minutes=5)
_GONE = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")


@dataclass(frozen=True)
class ModelVersion:
    """A version of a registered model. `source` is MLflow's word for where its files were put, which no other version
    has; `time` is when it was registered."""

    name: str
    version: str
    source: str
    time: datetime

    @property
    def uri(self) -> str:
        """`models:/digits/7`: this very version."""
        return f"models:/{self.name}/{self.version}"


def split(uri: str) -> tuple[str, str | None, str | None]:
    """`models:/name@alias` or `models:/name/version` → (name, alias, version); the version may be `latest`. Raises
    `SpecError` for anything else."""
    match = _URI.fullmatch(uri)
    if match is None:
        raise SpecError(
            f"{uri!r} is no model of a registry; models:/name@alias, models:/name/7 or models:/name/latest is"
        )
    return match[1], match[2], match[3]


@dataclass(frozen=True)
class Registry:
    """The MLflow server at `address`. `authorization` is sent as that header and shown nowhere; `verify` is True, False
    or the file of the authorities to trust.

    Methods raise `SourceUnavailable` (no answer now) and `CheckpointError` (it refuses).
    """

    address: str
    authorization: str | None = field(default=None, repr=False)
    verify: bool | str = True

    def version(self, name: str, version: str) -> ModelVersion | None:
        """The version of that number; None where there is none (any more)."""
        return self._version_at("model-versions/get", {"name": name, "version": version})

    def at(self, name: str, alias: str) -> ModelVersion | None:
        """The version that the alias stands at; None where there is no such model, or it has no such alias."""
        return self._version_at("registered-models/alias", {"name": name, "alias": alias})

    def newest(self, name: str, not_later_than: datetime | None) -> ModelVersion | None:
        """The version that was registered last, up to that moment."""
        asked = {"filter": f"name='{name}'", "order_by": "creation_timestamp DESC", "max_results": str(_PAGE)}
        while True:
            said = self._asked("GET", "model-versions/search", asked)
            for one in said.get("model_versions", ()):
                found = _version(one)
                if not_later_than is None or found.time <= not_later_than:
                    return found
            if not said.get("next_page_token"):
                return None
            asked = {**asked, "page_token": str(said["next_page_token"])}

    def find(self, uri: str, not_later_than: datetime | None = None) -> ModelVersion | None:
        """The version that `uri` names now, whichever way; None where there is none. `latest` heeds the moment."""
        name, alias, number = split(uri)
        if alias is not None:
            return self.at(name, alias)
        return self.newest(name, not_later_than) if number == "latest" else self.version(name, str(number))

    def location(self, version: ModelVersion) -> str:
        """The URI of the folder in which its files lie."""
        asked = {"name": version.name, "version": version.version}
        return str(self._asked("GET", "model-versions/get-download-uri", asked).get("artifact_uri"))

    def tag(self, version: ModelVersion, tags: Mapping[str, str]) -> None:
        """Writes tags onto the version; those of the same names give way."""
        for key, value in tags.items():
            given = {"name": version.name, "version": version.version, "key": key, "value": value}
            self._asked("POST", "model-versions/set-tag", given)

    def move(self, name: str, alias: str, version: str | None) -> None:
        """Puts the alias at the version of that number; None: takes it away."""
        if version is None:
            if self.at(name, alias) is not None:
                self._asked("DELETE", "registered-models/alias", {"name": name, "alias": alias})
        else:
            self._asked("POST", "registered-models/alias", {"name": name, "alias": alias, "version": version})

    def folder(
        self,
        uri: str,
        revision: str | None,
        not_later_than: datetime | None,
        reach: Callable[[str], Any] | None,
        log: Log,
    ) -> Folder:
        """The files of the model that `uri` names; `revision`, a number or an alias, names another version of it.

        Raises `CheckpointError` also where there is no such version, and where an alias stands at one that was
        registered after `not_later_than`: docs/facts.md#aliases-have-no-history. A number is that very version.
        """
        name, alias, _ = split(uri)
        if revision is not None:
            uri = f"models:/{name}{'/' if revision.isdigit() else '@'}{revision}"
            name, alias, _ = split(uri)
        moment = _aware(not_later_than) if not_later_than else None
        found = self.find(uri, moment)
        if found is None:
            raise CheckpointError(f"{uri} at {self.address}: MLflow knows no such version")
        if alias is not None and moment is not None and found.time > moment + _SKEW:
            raise CheckpointError(
                f"{uri} at {self.address} is version {found.version}, registered {_told(found.time)}, after "
                f"{_told(moment)}; where an alias stood earlier MLflow does not keep: name the version, or let the "
                f"source be models:/{name}/latest"
            )
        return _Registered(self._files(self.location(found), found, reach, log), found)

    def _files(self, uri: str, version: ModelVersion, reach: Callable[[str], Any] | None, log: Log) -> Folder:
        parts = urlsplit(uri)
        if parts.scheme == "mlflow-artifacts" and parts.netloc in ("", urlsplit(self.address).netloc):
            return _Artifacts(self, parts.path.strip("/"), version.uri, log)
        if parts.scheme in ("s3", "gs", "abfss", "abfs") and reach is not None:
            return Prefix(reach(uri), f"{uri.rstrip('/')}/", log)
        raise CheckpointError(
            f"{version.uri}: its files are at {uri}, where a release cannot read them; S3, gs://, abfss:// and "
            "MLflow's own proxy (mlflow-artifacts:/, the server's default) are read"
        )

    def _version_at(self, call: str, given: Mapping[str, str]) -> ModelVersion | None:
        said = self._asked("GET", call, given, missing=True).get("model_version")
        return None if said is None else _version(said)

    def _asked(self, method: str, call: str, given: Mapping[str, str], *, missing: bool = False) -> dict[str, Any]:
        """What the server says to a call of its API; {} for what is not there, with `missing`."""
        url = f"{self.address}/api/2.0/mlflow/{call}"
        sent = {"params": given} if method == "GET" else {"json": given}
        with self._answer(method, url, call, missing, **sent) as answer:
            if answer.status_code >= 400:
                return {}
            try:
                said = answer.json()
            except ValueError:
                said = None
        if not isinstance(said, dict):
            raise SourceUnavailable(f"{url}: no answer of MLflow's, as a proxy's page would be; {CURE}")
        return said

    def _signed(self, request: Any) -> Any:
        """As requests wants it: with any `auth` at all, a ~/.netrc has no say."""
        if self.authorization:
            request.headers["Authorization"] = self.authorization
        return request

    def _answer(self, method: str, url: str, what: str, missing: bool = False, **sent: Any) -> Any:
        """The answer, which is a good one, or says that there is no such thing, with `missing`."""
        import requests

        try:
            answer = requests.request(
                method, url, auth=self._signed, verify=self.verify, timeout=_PATIENCE, stream=True, **sent
            )
            if answer.status_code < 400:
                return answer
            code, said = _refusal(answer)
        except requests.exceptions.SSLError as error:
            raise CheckpointError(f"{self.address}: MLflow's certificate is not trusted: {error}") from error
        except requests.RequestException as error:
            raise SourceUnavailable(f"{self.address}: MLflow does not answer: {error}") from error
        if missing and (code in _GONE or ("alias" in said and "not found" in said)):
            return answer
        if answer.status_code == 429 or answer.status_code >= 500:
            raise SourceUnavailable(f"{self.address}: MLflow answers {answer.status_code} to {what}: {said}")
        cure = f"; {CURE}" if answer.status_code in (401, 403) else ""
        raise CheckpointError(f"{self.address}: MLflow refuses {what} ({answer.status_code}): {said}{cure}")


class _Artifacts(Folder):
    """Files that lie behind MLflow's own proxy, below `path`."""

    def __init__(self, registry: Registry, path: str, origin: str, log: Log) -> None:
        self._registry, self._path, self.origin, self._log = registry, path, origin, log
        self._sizes: dict[str, int] = {}
        self._base = f"{registry.address}/api/2.0/mlflow-artifacts/artifacts"

    def names(self, below: str = "") -> list[str]:
        path = f"{self._path}/{below}".strip("/")
        with self._registry._answer("GET", self._base, f"the list of {path}", params={"path": path}) as answer:
            try:
                listed = [one for one in answer.json().get("files", ()) if not one["is_dir"]]
                found = {str(one["path"]).rpartition("/")[2]: int(one.get("file_size") or 0) for one in listed}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise SourceUnavailable(f"{self.origin}: {path} is listed in a form that is none: {error!r}") from error
        self._sizes.update({below + name: size for name, size in found.items()})
        return sorted(found)

    def folders(self, last: str) -> list[str]:
        return []

    def inside(self, folder: str) -> Folder:
        return _Artifacts(self._registry, f"{self._path}/{folder}", self.origin, self._log)

    def size(self, name: str) -> int:
        return self._sizes[name]

    def bring(self, name: str, target: Path) -> None:
        import requests

        url = f"{self._base}/{quote(f'{self._path}/{name}'.strip('/'))}"
        progress = Download(name, self._sizes[name], self._log)
        with self._registry._answer("GET", url, name) as answer, target.open("wb") as file:
            try:
                for block in answer.iter_content(_BLOCK):
                    file.write(block)
                    progress(len(block))
            except requests.RequestException as error:
                raise SourceUnavailable(f"{self.origin}: {name} broke off: {error}") from error
        if target.stat().st_size != self._sizes[name]:
            raise SourceUnavailable(f"{self.origin}: {name} has another size than MLflow lists; a retry reads it anew")
        progress.done()


class _Registered(Folder):
    """The checkpoint of one model version, whichever way it was logged: the files of a checkpoint as they are, or what
    MLflow's flavor `transformers` makes of them, with the image processor in a folder of its own."""

    def __init__(self, files: Folder, version: ModelVersion) -> None:
        self._files = files
        self.origin, self.commit, self.time = version.uri, version.source, version.time
        top = files.names()
        self._paths = {name: name for name in top}
        if "MLmodel" in top and "config.json" not in top:
            for folder in (*reversed(_PROCESSORS), _MODEL):
                self._paths |= {name: f"{folder}{name}" for name in files.names(folder)}

    def names(self, below: str = "") -> list[str]:
        return [] if below else sorted(self._paths)

    def folders(self, last: str) -> list[str]:
        return []

    def inside(self, folder: str) -> Folder:
        raise CheckpointError(f"{self.origin} holds no candidates; each version is one")

    def size(self, name: str) -> int:
        return self._files.size(self._paths[name])

    def bring(self, name: str, target: Path) -> None:
        self._files.bring(self._paths[name], target)


def _refusal(answer: Any) -> tuple[str, str]:
    """MLflow's word for it, and its sentence."""
    try:
        said = answer.json()
        return str(said["error_code"]), str(said["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return "", " ".join(answer.text.split())[:200]


def _version(said: Any) -> ModelVersion:
    try:
        made = datetime.fromtimestamp(int(said["creation_timestamp"]) / 1000, UTC)
        return ModelVersion(str(said["name"]), str(said["version"]), str(said.get("source") or ""), made)
    except (KeyError, TypeError, ValueError) as error:
        raise SourceUnavailable(f"MLflow tells of a version in a form that is none: {error!r}") from error


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _told(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
