"""A process that has `airflow.sdk` and nothing else, as Airflow has it when it opens a DAG file. Importing it takes
seconds, so there is one, and each question is answered by a fork of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "kubernetes", "kubernetes_asyncio", "boto3", "botocore", "numpy", "sklearn", "PIL")

_SERVER = """
import json, os, sys, traceback
import airflow.sdk
from airflow.sdk import DAG, BaseOperator
for line in sys.stdin:
    asked = json.loads(line)
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(theirs, 1)
        os.environ.update(asked["environment"])
        code = 1
        try:
            exec(asked["code"], {"__name__": "asked"})
            code = 0
        except BaseException:
            traceback.print_exc(file=sys.stdout)
        sys.stdout.flush()
        os._exit(code)
    os.close(theirs)
    said = os.fdopen(ours).read()
    print(json.dumps([os.waitpid(child, 0)[1], said]), flush=True)
"""


class Parsing:
    def __init__(self) -> None:
        path = os.pathsep.join(str(PROJECT / part) for part in ("plugins", "include"))
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, code: str, **environment: str) -> Any:
        """What the code prints last, as JSON."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"code": code, "environment": environment}) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:  # Airflow may have said something at its start
            if line.startswith("["):
                status, said = json.loads(line)
                assert status == 0, said
                return json.loads(said.strip().splitlines()[-1])
        raise AssertionError("the process ended")

    def stop(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()
