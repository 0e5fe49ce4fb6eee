"""Downloads from the hub: the cache, cuts, damage, and the lines that tell how far one is."""

from __future__ import annotations

import hashlib
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants

from model_release.build.hub import HubAccess, bar_of
from model_release.errors import SourceUnavailable
from model_release.store.download import Download
from sandbox.hub import Hub

from .builders import DAY, MONDAY, NAME, Fetch, asked, checkpoint, safetensors


def test_what_is_in_the_cache_is_not_downloaded_again(hub: Hub, get: Fetch) -> None:
    hub.add_commit(NAME, checkpoint(), MONDAY, "first")
    first = get()
    downloads = len(asked(hub, "resolve", "GET")) + len([one for one in hub.requests if one.store])
    lines: list[str] = []
    assert get(log=lines.append) == first
    assert len(asked(hub, "resolve", "GET")) + len([one for one in hub.requests if one.store]) == downloads
    assert f"model.safetensors: {len(safetensors())} B, in the cache already" in lines
    # Another commit with the same weights: told by their ETag.
    hub.add_commit(NAME, {"config.json": checkpoint(note="new")["config.json"]}, MONDAY + DAY, "words")
    assert get().fingerprint != first.fingerprint
    assert len([one for one in hub.requests if one.store]) == 1


def test_a_cut_download_goes_on_where_it_stopped(
    hub: Hub, get: Fetch, monkeypatch: pytest.MonkeyPatch, no_waiting: list[float]
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.add_commit(NAME, checkpoint(50_000), MONDAY, "large")
    weights = safetensors(50_000)
    hub.cut_download("signature", after=20_500)
    assert (get().directory / "model.safetensors").read_bytes() == weights
    first, second = [one for one in hub.requests if one.store]
    assert (first.status, first.headers.get("range")) == (200, None)
    assert (second.status, second.headers["range"]) == (206, "bytes=20000-")


def test_progress_of_a_download(hub: Hub, get: Fetch, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.add_commit(NAME, checkpoint(50_000), MONDAY, "large")
    lines: list[str] = []
    get(log=lines.append)
    shares = [line.split("(")[1] for line in lines if line.startswith("model.safetensors: ") and "(" in line]
    assert [share[0] for share in shares] == list("123456789")
    assert any(line.startswith("model.safetensors: 50.1 kB in ") for line in lines)
    assert any(line.startswith("config.json: ") for line in lines)
    assert capfd.readouterr() == ("", "")


def test_progress_of_a_download_from_the_hubs_other_store() -> None:
    """Xet, which the sandbox does not have, counts in a way of its own; the lines are the same."""
    from huggingface_hub.utils._xet_progress_reporting import XetDownloadProgressReporter

    lines: list[str] = []
    progress = Download("model.safetensors", 1000, lines.append)
    with XetDownloadProgressReporter(
        reconstruction_desc="x", total=1000, log_level=logging.WARNING, tqdm_class=bar_of(progress)
    ) as reporter:
        for done in (200, 1000):
            reporter.update_progress(
                SimpleNamespace(
                    total_bytes_completed=done,
                    total_transfer_bytes_completed=done // 2,
                    total_bytes_completion_rate=1.0,
                    total_transfer_bytes_completion_rate=1.0,
                    total_bytes=1000,
                )
            )
    assert lines == ["model.safetensors: 200 B of 1.0 kB (20%)"]


def test_progress_of_a_slow_download() -> None:
    lines: list[str] = []
    seconds = iter([0.0, 1.0, 4.0, 5.0, 6.0, 11.0, 20.0])
    progress = Download("model.safetensors", 343_000_000, lines.append, clock=lambda: next(seconds))
    for _ in range(5):
        progress(1_000_000)
    progress.done()
    assert lines == [
        "model.safetensors: 3.0 MB of 343.0 MB (1%)",
        "model.safetensors: 5.0 MB of 343.0 MB (1%)",
        "model.safetensors: 343.0 MB in 20.0 s",
    ]


def test_a_full_disk_is_no_fault_of_the_hub(hub: Hub, get: Fetch, access: HubAccess) -> None:
    hub.add_commit(NAME, checkpoint(), MONDAY, "first")
    assert access.home
    access.home.mkdir()
    (access.home / "hub").write_text("a file where the cache should be")
    with pytest.raises((FileExistsError, NotADirectoryError)):
        get()


def test_a_download_of_something_else_is_thrown_away(hub: Hub, get: Fetch) -> None:
    hub.add_commit(NAME, checkpoint(), MONDAY, "first")
    blob = hub.repositories.blob(hashlib.sha256(safetensors()).hexdigest())
    blob.write_bytes(safetensors()[:-1] + b"!")
    with pytest.raises(SourceUnavailable, match=r"model.safetensors was damaged on its way or in the cache"):
        get()
    blob.write_bytes(safetensors())
    assert (get().directory / "model.safetensors").read_bytes() == safetensors()
