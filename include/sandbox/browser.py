"""Chromium without a window, driven by Playwright: for the tests of the pages, and for their pictures in docs/."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sandbox import programs

# A browser calls home in several ways; this one does not.
_QUIET = (
    "--no-sandbox",  # Chromium refuses to be root's otherwise, as in a container
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-sync",
    "--no-first-run",
    "--no-pings",
)


@contextmanager
def chromium() -> Iterator[Any]:
    """A started Playwright `Browser`; closed at the end. Raises SandboxError where there is no Chromium to be had."""
    from playwright.sync_api import sync_playwright

    program = programs.chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(program), args=list(_QUIET), timeout=60_000)
        try:
            yield browser
        finally:
            browser.close()
