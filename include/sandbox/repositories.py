"""Model repositories with commits, in a folder: what the sandbox's hub serves.

`OWNER/NAME.json` has a repository's branches, tags and commits, each commit with all of its files; `blobs/` has their
contents, by SHA-256. Whoever has the folder can add to it while another process serves it: each file appears whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sandbox.ports import replace

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# What the hub's own .gitattributes put into large file storage.
_LARGE = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".pkl")


@dataclass(frozen=True)
class Blob:
    """A file's content: `oid` is git's name for it (of the pointer, for a large file), `size` in bytes."""

    oid: str
    sha256: str
    size: int
    large: bool


@dataclass(frozen=True)
class Commit:
    """All files as they were at `time`, by path."""

    id: str
    time: datetime
    message: str
    files: dict[str, Blob]


@dataclass
class Repository:
    """`commits` by id; `branches` and `tags` name some of them. `readers` are the SHA-256 of the tokens that may read
    a private repository; None for a public one."""

    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    parents: dict[str, str | None] = field(default_factory=dict)
    readers: list[str] | None = None
    gated: bool = False

    def find(self, revision: str) -> Commit | None:
        """The commit of a branch, tag or full id."""
        return self.commits.get(self.branches.get(revision) or self.tags.get(revision) or revision)

    def history(self, commit: Commit) -> Iterator[Commit]:
        """The commit and what came before it, newest first."""
        next_one: str | None = commit.id
        while next_one:
            yield self.commits[next_one]
            next_one = self.parents[next_one]


class Repositories:
    """The repositories below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str) -> Repository | None:
        """The repository `owner/name` as it is now; None where there is none."""
        file = self._file(name)
        if file is None or not file.is_file():
            return None
        told = json.loads(file.read_text(encoding="utf-8"))
        commits = {
            key: Commit(
                key,
                datetime.fromisoformat(commit["time"]),
                commit["message"],
                {path: Blob(**blob) for path, blob in commit["files"].items()},
            )
            for key, commit in told.pop("commits").items()
        }
        return Repository(commits=commits, **told)

    def blob(self, sha256: str) -> Path:
        """Where a content lies."""
        return self.folder / "blobs" / sha256

    def add_commit(
        self, name: str, files: Mapping[str, bytes | Path], time: datetime, message: str, branch: str = "main"
    ) -> str:
        """Adds a commit to `branch`, with `files` new or changed and all others as before. Returns its id.

        Run again with the same, it returns the commit that is there. Raises ValueError for a name that is none and for
        a time before that of the branch's newest commit.
        """
        time = time.astimezone(UTC)
        changed = {path: self._keep(path, content) for path, content in sorted(files.items())}
        with self._changing(name) as repository:
            head = repository.branches.get(branch)
            for commit in repository.history(repository.commits[head]) if head else ():
                known = (commit.time, commit.message, {**commit.files, **changed})
                if known == (time, message, commit.files):
                    return commit.id
            if head and time < repository.commits[head].time:
                raise ValueError(f"{name}: {time} is before the newest commit on {branch}")
            everything = {**(repository.commits[head].files if head else {}), **changed}
            told = [head, time.isoformat(), message, {path: asdict(blob) for path, blob in everything.items()}]
            commit = Commit(
                hashlib.sha1(json.dumps(told, sort_keys=True).encode(), usedforsecurity=False).hexdigest(),
                time,
                message,
                everything,
            )
            repository.commits[commit.id], repository.parents[commit.id] = commit, head
            repository.branches[branch] = commit.id
            return commit.id

    def tag(self, name: str, tag: str, commit: str) -> None:
        """Names a commit; run again, the tag moves."""
        with self._changing(name) as repository:
            repository.tags[tag] = repository.commits[commit].id

    def protect(self, name: str, *, token: str | None = None, gated: bool = False) -> None:
        """Makes a repository readable with `token` alone, or `gated`: seen by all, its files for nobody."""
        with self._changing(name) as repository:
            repository.gated = gated
            repository.readers = [_digest(token)] if token is not None else None

    def _keep(self, path: str, content: bytes | Path) -> Blob:
        data = content if isinstance(content, bytes) else content.read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        large = path.endswith(_LARGE)
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(data)}\n".encode()
        in_git = pointer if large else data
        header = f"blob {len(in_git)}\0".encode()
        oid = hashlib.sha1(header + in_git, usedforsecurity=False).hexdigest()
        target = self.blob(sha256)
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            passing = target.with_name(f".{sha256}.passing")
            passing.write_bytes(data)
            passing.replace(target)
        return Blob(oid, sha256, len(data), large)

    @contextmanager
    def _changing(self, name: str) -> Iterator[Repository]:
        """The repository, written when the block ends well; one writer at a time."""
        file = self._file(name)
        if file is None:
            raise ValueError(f"{name!r} is no name of a repository; owner/name is")
        file.parent.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            repository = self.get(name) or Repository()
            yield repository
            replace(file, json.dumps(asdict(repository), default=_plain, indent=1))

    def _file(self, name: str) -> Path | None:
        return self.folder / f"{name}.json" if _NAME.fullmatch(name) else None


def may_read(repository: Repository, token: str | None) -> bool:
    """Whether a request with this token sees the repository at all."""
    return repository.readers is None or (token is not None and _digest(token) in repository.readers)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _plain(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(value)
