"""Immutable versions in a store, and the few documents beside them.

```
s3://bucket/prefix/
  versions/<version>/          what the runtime serves, smoke.json, and version.json, written last
  releases/<id>.json           records of releases (`read_json`, `write_json`)
  releases/index/              what lists of releases are made of (`history`)
  signatures/<version>.json    over version.json (`signing`)
  pruned/<version>.json        what retention has removed, or is removing (`discard`)
  builds/<key>/                what one task leaves for the next (`stash`, `unstash`)
```

A version's name is the digest of what is served (all but `smoke.json`): equal content, equal name. A prefix
without `version.json` is no version. Every object is sent with its SHA-256, which S3 itself checks, and
on the condition that there is none of its name, so nothing is ever overwritten and two writers cannot mix.
A signature lies beside the versions, not in one: neither a version's name nor its files depend on who signed it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from model_release.errors import ArchiveError, SpecError, StoreUnavailable, VersionDamaged
from model_release.store import files
from model_release.store.bucket import Bucket, encode
from model_release.store.here import Here, chosen

RECORD = "version.json"
SMOKE = "smoke.json"
STASH_RECORD = "stash.json"

# For so long nobody publishes a version that is just being removed; removing takes seconds, unless it was killed.
_REMOVING = timedelta(minutes=5)
_PRUNED = "pruned/"
# What stands beside the files that a runtime serves.
_BESIDE = (SMOKE, RECORD)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_VERSION = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Version:
    """A version as its `version.json` tells it. `storage_uri` ends in `/`, as KServe needs it
    (docs/facts.md#s3-prefixes).

    `metadata` is what the build said of it: source, fingerprint, toolchain, labels, input, preprocessing, parity,
    evaluation. `files` is {path: {"sha256": hex, "size": bytes}}.
    """

    name: str
    storage_uri: str
    time: datetime
    metadata: dict[str, Any]
    files: dict[str, dict[str, Any]] = field(repr=False)


class Store(Bucket):
    """The model store at `uri` (`s3://bucket/prefix/`), through the client of its kind. With `here`, what one task
    leaves for the next is there and not in the store.

    Methods raise `StoreRefused` (no bucket, credentials, permission), `StoreUnavailable` (no answer, or somebody
    wrote at the same moment) and `VersionDamaged`; `SpecError` for names and addresses that are none.
    """

    def __init__(
        self, client: Any, uri: str, *, log: Callable[[str], None] | None = None, here: Here | None = None
    ) -> None:
        super().__init__(client, uri, log=log)
        self._here = here

    # Versions

    def publish(self, directory: Path, metadata: Mapping[str, Any], known: Mapping[str, str] | None = None) -> Version:
        """Puts the archive in `directory` into the store and returns its version. `known` are digests that the caller
        has already (`unstash`); the store holds what arrives to them.

        Run again with equal content, or after half of it was sent, it sends what is not there. A version that is
        complete already is verified and returned as it is, with its first metadata: nothing is uploaded.
        Raises `ArchiveError` for an archive that was not checked, and `VersionDamaged` where something else lies
        under the version's name.
        """
        sums = files.digests(directory, known)
        if not set(sums) - set(_BESIDE):
            raise ArchiveError(f"{directory} holds no file to serve; nothing is published")
        if SMOKE not in sums:
            raise ArchiveError(f"{directory} was not checked (it lacks {SMOKE}), and nothing unchecked is published")
        version = version_name(sums)
        if self.tag(_key(version, RECORD)):
            self._log(f"version {version} is there already")
            return self.version(version)
        self._take_back(version)
        for name, digest in sums.items():
            self._put_file(directory / name, _key(version, name), digest)
        listed = {name: {"sha256": sums[name], "size": (directory / name).stat().st_size} for name in sums}
        record = {"version": version, "time": _now(), "files": listed, "evaluation": None, **metadata}
        self._create(_key(version, RECORD), encode(record))
        self._log(f"version {version} is published at {self._uri(version)}")
        return self.version(version)

    def version(self, name: str) -> Version:
        """The version `name`, verified: it is named by the digest of what it serves, and its files, and no others, are
        there with the sizes and SHA-256 that the server itself reports. Raises `VersionDamaged` otherwise, and where
        there is no such version."""
        version = self._record(name)
        prefix = _key(name, "")
        there = {key[len(prefix) :]: size for key, size in self.everything(prefix).items()}
        there.pop(RECORD, None)
        if version_name({path: about["sha256"] for path, about in version.files.items()}) != name:
            raise VersionDamaged(f"{version.storage_uri}{RECORD} lists other files than those that gave it its name")
        problems = [f"{path} is missing" for path in version.files if path not in there]
        problems += [f"{path} does not belong to it" for path in there if path not in version.files]
        for path, about in version.files.items():
            if path in there and there[path] != about["size"]:
                problems.append(f"{path} has {there[path]} bytes instead of {about['size']}")
            elif path in there and self._checksum(prefix + path) != about["sha256"]:
                problems.append(f"{path} has another SHA-256")
        if problems:
            raise VersionDamaged(f"{version.storage_uri} is not what its {RECORD} says: {'; '.join(problems)}")
        return version

    def reread(self, version: Version) -> None:
        """Reads each file of a version and holds it to its SHA-256, where the store does not compute that itself: there
        whoever may write can say any, and only the bytes are proof. Raises `VersionDamaged`."""
        if self._objects.computes_sha256:
            return
        with TemporaryDirectory(prefix="reread-") as scratch:
            for path, about in version.files.items():
                self.bring(_key(version.name, path), Path(scratch, "file"))
                if files.sha256(Path(scratch, "file")) != about["sha256"]:
                    raise VersionDamaged(f"{version.storage_uri}{path} is not what its {RECORD} says")

    def versions(self) -> list[Version]:
        """All versions, newest first, as their records tell them (not verified). What is half-written or has a
        record that is none is left out, with a line in the log."""
        names = self._objects.folders(f"{self._prefix}versions/")
        found = []
        places = {f"versions/{name}/{RECORD}": name for name in names if _VERSION.fullmatch(name)}
        for place, record in self.read_all(places):
            try:
                found.append(self._parsed(places[place], record))
            except VersionDamaged as error:
                self._log(f"left out: {error}")
        return sorted(found, key=lambda version: (version.time, version.name), reverse=True)

    def find(
        self, fingerprint: str, *, toolchain: Mapping[str, str] | None = None, service: str | None = None
    ) -> Version | None:
        """The newest version built from the source with this fingerprint (and by this toolchain, for this service,
        where given), verified; None where there is none."""
        wanted: dict[str, Any] = {"fingerprint": fingerprint}
        if toolchain is not None:
            wanted["toolchain"] = dict(toolchain)
        if service is not None:
            wanted["service"] = service
        for version in self.versions():
            if all(version.metadata.get(key) == value for key, value in wanted.items()):
                return self.version(version.name)
        return None

    def smoke(self, version: Version) -> dict[str, Any]:
        """The version's smoke test: {"instances": [{"data": base64}], "expected": [{"label", "score"}]}."""
        content, _ = self.read_json(f"versions/{version.name}/{SMOKE}")
        if content is None:
            raise VersionDamaged(f"{version.storage_uri} has no {SMOKE}, so nobody knows what it should answer")
        return dict(content)

    # What retention removes

    def discard(self, name: str, why: str, *, resume: bool = False) -> None:
        """Removes the version `name`: first its record, so that nobody takes the rest for a version.

        A note in `pruned/` says so before anything is touched. After a kill half-way, `resume` removes the rest of a
        version in `half_removed`, unless it was published again meanwhile. Nobody may be choosing this version at
        the same time: whoever calls this holds the leases (`release.retention`).
        """
        note = f"{_PRUNED}{self._name(name)}.json"
        before, tag = self.read_json(note)
        if resume and (before or {}).get("state") != "removing":
            return
        until = datetime.now(UTC) + _REMOVING
        said = {"version": name, "time": _now(), "why": why, "until": until.isoformat()}
        tag = self.write_json(note, {**said, "state": "removing"}, if_match=tag)
        everything = [key for key, _, _ in self.listing(f"versions/{name}/")]
        record = f"versions/{name}/{RECORD}"
        self.remove([record])
        if datetime.now(UTC) > until:
            raise StoreUnavailable(f"{self._uri(name)}: removing it took too long; run this again for the rest")
        self.remove([*(key for key in everything if key != record), f"signatures/{name}.json"])
        self.write_json(note, {**said, "state": "removed"}, if_match=tag)
        self._log(f"version {name} is removed: {why}")

    def half_removed(self) -> list[str]:
        """Names of versions whose removal was begun and not finished."""
        notes = self.read_all([f"{_PRUNED}{name}" for name in self.names(_PRUNED)])
        return [note["version"] for _, note in notes if isinstance(note, dict) and note.get("state") == "removing"]

    def _take_back(self, version: str) -> None:
        """Before a removed version is published again: from here on nobody removes its rest."""
        key = f"{_PRUNED}{version}.json"
        note, tag = self.read_json(key)
        if note is None or note["state"] == "back":
            return
        if note["state"] == "removing" and datetime.fromisoformat(note["until"]) > datetime.now(UTC):
            raise StoreUnavailable(f"{self._uri(version)} is just being removed ({note['why']}); try again")
        self.write_json(key, {**note, "state": "back"}, if_match=tag)

    def _pruned(self, version: str) -> str:
        note, _ = self.read_json(f"{_PRUNED}{version}.json")
        return f"; retention removed it at {note['time']} ({note['why']})" if isinstance(note, dict) else ""

    # What one task leaves for the next

    def stash(self, key: str, directory: Path, known: Mapping[str, str] | None = None) -> None:
        """Leaves the files of `directory` under `builds/<key>/`, for a task on another machine, with the digests in
        `known` where the caller has them: whoever takes the files up holds them to these.

        Run again, it sends what differs; what is there alike stays, what is no longer in `directory` goes. Another run
        that makes the same may read it meanwhile.
        """
        if self._here is not None:
            self._here.stash(_name(key), directory, known)
            return
        folder = f"builds/{_name(key)}/"
        sums = files.digests(directory, known)
        record = encode({"files": sums})
        same = self.read(folder + STASH_RECORD) == record
        # Without its record a stash is none: nobody reads one that is being changed.
        if not same:
            self.remove([folder + STASH_RECORD])
        there = {key[len(folder) :] for key in self.everything(folder)} - {STASH_RECORD}
        self.remove(folder + name for name in there if name not in sums)
        for name, digest in sums.items():
            if name not in there or self._checksum(folder + name) != digest:
                self._put_file(directory / name, folder + name, digest, replace=True)
        # Written though it is the same: retention goes by the time of the last write.
        self.write_bytes(folder + STASH_RECORD, record, "application/json")

    def unstash(self, key: str, directory: Path, only: Collection[str] | None = None) -> dict[str, str]:
        """Brings what `stash(key, …)` left into `directory`, replacing it, each file verified by its SHA-256; with
        `only` no file but those. Returns {name: SHA-256} of what came.
        Raises `VersionDamaged` where there is no finished stash or one that was changed."""
        if self._here is not None:
            return self._here.unstash(_name(key), directory, only)
        prefix = f"builds/{_name(key)}/"
        record, _ = self.read_json(prefix + STASH_RECORD)
        if record is None:
            raise VersionDamaged(f"{self.uri}{prefix} holds no finished build; run the task before this one again")
        sums = chosen(record["files"], only)
        with files.replaced(directory) as fresh:
            for name, digest in sums.items():
                target = (fresh / name).resolve()
                if not target.is_relative_to(fresh.resolve()):
                    raise VersionDamaged(f"{self.uri}{prefix} names a file outside of it: {name!r}")
                target.parent.mkdir(parents=True, exist_ok=True)
                self.bring(prefix + name, target)
                if files.sha256(target) != digest:
                    raise VersionDamaged(f"{self.uri}{prefix}{name} was changed after it was stashed")
        return sums

    # Objects

    def _uri(self, version: str) -> str:
        return f"{self.uri}{_key(version, '')}"

    @staticmethod
    def _name(name: str) -> str:
        if not _VERSION.fullmatch(name):
            raise SpecError(f"{name!r} is no version's name; right would be 16 hex digits, like 3f2a9c0d11e4b587")
        return name

    def _record(self, name: str) -> Version:
        return self._parsed(self._name(name), self.read_json(f"versions/{name}/{RECORD}")[0])

    def _parsed(self, name: str, record: Any) -> Version:
        if isinstance(record, VersionDamaged):
            raise record
        if record is None:
            half = bool(self.everything(_key(name, "")))
            state = f"is half-written: it lacks {RECORD}" if half else "does not exist"
            gone = "" if half else self._pruned(name)
            raise VersionDamaged(f"{self._uri(name)} {state}{gone}")
        try:
            if record["version"] != name or not record["files"]:
                raise ValueError("it names another version, or no files")
            listed = {
                str(path): {"sha256": str(f["sha256"]), "size": int(f["size"])} for path, f in record["files"].items()
            }
            rest = {key: value for key, value in record.items() if key not in ("version", "time", "files")}
            time = datetime.fromisoformat(record["time"])
            uri = f"{self._where.served}{_key(name, '')}"
            return Version(name, uri, time if time.tzinfo else time.replace(tzinfo=UTC), rest, listed)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise VersionDamaged(f"{self._uri(name)}{RECORD} is no version's record: {error!r}") from error


def version_name(sums: Mapping[str, str]) -> str:
    """What a version of these files ({path: SHA-256}) is called: equal content to serve, equal name. The smoke test,
    which stands beside them, may be another."""
    return files.combined({path: digest for path, digest in sums.items() if path not in _BESIDE})[:16]


def _key(version: str, path: str) -> str:
    return f"versions/{version}/{path}"


def _name(key: str) -> str:
    if not all(_NAME.fullmatch(part) for part in key.split("/")):
        raise SpecError(f"{key!r} is no name for a build; letters, digits, '.', '_' and '-' are allowed")
    return key


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
