from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from .containers import PROJECT, compose


@pytest.fixture(scope="session")
def env_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `.env` as `make env` makes it."""
    spec = importlib.util.spec_from_file_location("make_env", PROJECT / "include/images/make_env.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    target = tmp_path_factory.mktemp("compose") / ".env"
    assert module.main(["make_env", str(target)]) == 0
    return target


@pytest.fixture(scope="session")
def secrets(env_file: Path) -> dict[str, str]:
    lines = [line for line in env_file.read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


@pytest.fixture(scope="session")
def resolved(env_file: Path) -> dict[str, Any]:
    """What Docker Compose makes of the file: interpolated, merged, checked against the specification."""
    done = compose(env_file, "config", "--format", "json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found
