"""Checkpoints of the Hugging Face hub, pinned to a commit.

A branch means the newest of its commits not later than a moment; a tag or a commit means that very one. What was
fetched stays in huggingface_hub's cache (`HF_HOME`), by content: a second fetch of equal files downloads nothing. The
history of each revision that was asked for is kept beside it, so that without the hub (`HF_HUB_OFFLINE=1`) the same
question has the same answer.

An interrupted download goes on where it stopped, and a hub that asks for a pause (429) gets it: huggingface_hub does
both.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

from model_release.build.hub_talk import CURE, talking_about
from model_release.errors import CheckpointError, SourceUnavailable, SpecError
from model_release.store import files
from model_release.store.download import Download, size
from model_release.store.folder import Folder, Log

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class HubAccess:
    """How the hub is reached. What is None is as huggingface_hub finds it in the environment: `HF_ENDPOINT`,
    `HF_TOKEN` (or its file), `HF_HOME`. A token that was found there is not sent to an endpoint that is named here.
    """

    endpoint: str | None = None
    token: str | None = field(default=None, repr=False)
    home: Path | None = None


@dataclass(frozen=True)
class _History:
    """The commits of a revision, newest first, each with its time; `moves` for a branch, which gets new ones.

    `guessed` where nobody told: the one commit that a cache holds, with the time by which it was there.
    """

    moves: bool
    commits: tuple[tuple[str, datetime], ...]
    guessed: bool = False


class HubFolder(Folder):
    """One commit of a model repository `owner/name`.

    `revision` is a branch, tag or full commit (default: the branch main). `not_later_than` chooses among the commits
    of a branch and is not heeded for the others.

    Raises `CheckpointError` (no such repository, revision or commit; no access; not in the cache), `SourceUnavailable`
    (the hub does not answer, or wants to be asked less often) or `SpecError` (an address that is none).
    """

    def __init__(
        self, repository: str, revision: str | None, not_later_than: datetime | None, access: HubAccess, log: Log
    ) -> None:
        from huggingface_hub import HfApi, constants

        endpoint = (access.endpoint or constants.ENDPOINT).rstrip("/")
        address = urlsplit(endpoint)
        if address.scheme not in ("http", "https") or not address.hostname or address.username or address.password:
            raise SpecError(
                f"the hub's address has to be like https://huggingface.co, without user or password; {CURE}"
            )
        elsewhere = endpoint != constants.ENDPOINT
        self._api = HfApi(endpoint=endpoint, token=access.token or (False if elsewhere else None))
        self._repository, self._log = repository, log
        self._address = f"{endpoint}/{repository}"
        self._offline = constants.is_offline_mode()
        self._cache = access.home / "hub" if access.home else Path(constants.HF_HUB_CACHE)
        self._assets = access.home / "assets" if access.home else Path(constants.HF_ASSETS_CACHE)
        self._sizes: dict[str, int] = {}
        revision = revision or constants.DEFAULT_REVISION
        history = self._remembered(revision) if self._offline else self._asked(revision)
        self.commit, self.time = self._chosen(history, revision, not_later_than)
        self.origin = f"{self._address}@{self.commit}"

    @property
    def looked_at(self) -> str:
        return f"{self.origin} in the cache {self._cache} (HF_HUB_OFFLINE is set)" if self._offline else self.origin

    def names(self, below: str = "") -> list[str]:
        if self._offline:
            snapshot = self._kept / "snapshots" / str(self.commit)
            if not snapshot.is_dir():
                raise CheckpointError(f"{self.looked_at} is not there; let it be fetched once while the hub is reached")
            return [path.name for path in snapshot.iterdir() if path.is_file()]
        from huggingface_hub.hf_api import RepoFile

        with talking_about(self.origin):
            tree = list(self._api.list_repo_tree(self._repository, revision=self.commit))
        self._sizes = {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}
        return list(self._sizes)

    def folders(self, last: str) -> list[str]:
        return []

    def inside(self, folder: str) -> Folder:
        raise CheckpointError(f"{self.origin}: a repository of the hub has commits, not candidates in folders")

    def size(self, name: str) -> int:
        return self._sizes.get(name, 0)

    def bring(self, name: str, target: Path) -> None:
        from huggingface_hub import hf_hub_download

        progress = Download(name, self._sizes.get(name, 0), self._log)
        bar = bar_of(progress)
        with talking_about(f"{self.looked_at}: {name}"):
            found = Path(
                hf_hub_download(
                    self._repository,
                    name,
                    revision=self.commit,
                    endpoint=self._api.endpoint,
                    token=self._api.token,
                    cache_dir=self._cache,
                    local_files_only=self._offline,
                    tqdm_class=bar,
                )
            )
        if bar.used:
            progress.done()
        else:
            self._log(f"{name}: {size(found.stat().st_size)}, in the cache already")
        self._verify(found, name)
        shutil.copyfile(found, target)

    def _verify(self, found: Path, name: str) -> None:
        """Large files lie in the cache under their SHA-256; huggingface_hub itself compares no more than their size."""
        named = found.readlink().name if found.is_symlink() else ""
        if _SHA256.fullmatch(named) and files.sha256(found) != named:
            found.resolve().unlink()
            found.unlink()
            raise SourceUnavailable(f"{self.origin}: {name} was damaged on its way or in the cache, and is thrown away")

    @property
    def _kept(self) -> Path:
        """Where huggingface_hub's cache keeps this repository."""
        from huggingface_hub.file_download import repo_folder_name

        return self._cache / repo_folder_name(repo_id=self._repository, repo_type="model")

    def _chosen(self, history: _History, revision: str, not_later_than: datetime | None) -> tuple[str, datetime | None]:
        limit = not_later_than
        if limit is not None and limit.tzinfo is None:
            limit = limit.replace(tzinfo=UTC)
        for commit, time in history.commits:
            if limit is None or not history.moves or time <= limit:
                return commit, None if history.guessed else time
        commit, time = history.commits[-1]
        if history.guessed:
            raise CheckpointError(
                f"HF_HUB_OFFLINE is set, and the cache {self._cache} does not tell whether {commit} of {self._address} "
                f"was made by {_told(limit)}; if it is wanted, name it as the revision"
            )
        raise CheckpointError(
            f"{self._address} has no commit on {revision} made by {_told(limit)}; its first is of {_told(time)}"
        )

    def _asked(self, revision: str) -> _History:
        """The history of `revision` as the hub tells it, kept for times without the hub."""
        with talking_about(self._address, revision):
            moves = revision == "main" or (not _COMMIT.fullmatch(revision) and self._is_branch(revision))
            commits = self._api.list_repo_commits(self._repository, revision=revision)
        history = _History(moves, tuple((commit.commit_id, commit.created_at) for commit in commits))
        if not history.commits:
            raise CheckpointError(f"{self._address} has no commits on {revision}")
        self._remember(revision, history)
        return history

    def _is_branch(self, revision: str) -> bool:
        return any(branch.name == revision for branch in self._api.list_repo_refs(self._repository).branches)

    def _remember(self, revision: str, history: _History) -> None:
        memory = self._memory(revision)
        told = [[commit, time.isoformat()] for commit, time in history.commits]
        try:
            memory.parent.mkdir(parents=True, exist_ok=True)
            passing = memory.with_name(f".{memory.name}.{uuid4().hex}")
            passing.write_text(json.dumps({"moves": history.moves, "commits": told}), encoding="utf-8")
            passing.replace(memory)
        except OSError as error:
            # A cache that cannot be written serves all the same.
            self._log(f"The history of {self._address} is not kept for times without the hub: {error}")

    def _remembered(self, revision: str) -> _History:
        """The history as it was told last; for a cache that somebody else filled, the one commit that it knows."""
        memory = self._memory(revision)
        if memory.is_file():
            try:
                told = json.loads(memory.read_text(encoding="utf-8"))
                commits = tuple((commit, datetime.fromisoformat(time)) for commit, time in told["commits"])
                history = _History(told["moves"], commits)
            except (ValueError, KeyError, TypeError) as error:  # cut, as a machine that lost its power leaves it
                self._log(f"{memory} is no history of {self._address}: {error}")
            else:
                asked = datetime.fromtimestamp(memory.stat().st_mtime, UTC)
                self._log(
                    f"HF_HUB_OFFLINE is set: {revision} of {self._address} is as the hub told it at {_told(asked)}"
                )
                return history
        known = self._kept / "refs" / revision
        if known.is_file():
            # The commit is at least as old as the note of it.
            noted = datetime.fromtimestamp(known.stat().st_mtime, UTC)
            return _History(True, ((known.read_text(encoding="utf-8").strip(), noted),), guessed=True)
        if _COMMIT.fullmatch(revision) and (self._kept / "snapshots" / revision).is_dir():
            noted = datetime.fromtimestamp((self._kept / "snapshots" / revision).stat().st_mtime, UTC)
            return _History(False, ((revision, noted),), guessed=True)
        raise CheckpointError(
            f"HF_HUB_OFFLINE is set, and the cache {self._cache} does not know {revision} of {self._address}; let it "
            "be fetched once while the hub is reached"
        )

    def _memory(self, revision: str) -> Path:
        name = f"{self._repository.replace('/', '--')}@{quote(revision, safe='')}.json"
        return self._assets / "model_release" / name


def bar_of(progress: Callable[[int], None]) -> Any:
    """A class that huggingface_hub takes for a tqdm bar, and that tells `progress` instead of drawing."""

    class Bar:
        used = False

        def __init__(self, *_: Any, total: int | None = None, initial: int = 0, **__: Any) -> None:
            self.n, self.total = initial, total
            type(self).used = True

        def update(self, more: float | None = 1) -> None:
            progress(int(more or 0))

        def nothing(self, *_: Any, **__: Any) -> None:
            """What counts bytes on the wire, or only draws."""

        update_transfer = set_postfix_str = set_transfer_postfix_str = refresh = close = nothing

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None: ...

    return Bar


def _told(moment: datetime | None) -> str:
    return "now" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
