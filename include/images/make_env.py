#!/usr/bin/env python3
"""Makes `.env` for docker-compose.yaml: every secret random, for this machine alone. `make env` calls it.

Needs any Python 3 and nothing else. A file that is there stays as it is, whatever is in it: the data base and the store
know its passwords. Only its owner may read it.
"""

from __future__ import annotations

import base64
import os
import secrets
import sys
from pathlib import Path


def content() -> str:
    """The file's text; another one each time."""
    made = {
        "AIRFLOW_ADMIN_PASSWORD": secrets.token_urlsafe(15),
        "AIRFLOW_FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
        "AIRFLOW_JWT_SECRET": secrets.token_urlsafe(64),
        "AIRFLOW_API_SECRET_KEY": secrets.token_urlsafe(32),
        "POSTGRES_PASSWORD": secrets.token_hex(24),
        "REDIS_PASSWORD": secrets.token_hex(24),
        "S3_ACCESS_KEY": secrets.token_hex(10),
        "S3_SECRET_KEY": secrets.token_hex(24),
        "GRAFANA_ADMIN_PASSWORD": secrets.token_urlsafe(15),
    }
    head = "# Made by include/images/make_env.py. Secrets: keep it out of Git, and with the volumes it belongs to.\n"
    return head + "".join(f"{name}={value}\n" for name, value in made.items())


def main(argv: list[str]) -> int:
    target = Path(argv[1]) if len(argv) > 1 else Path(__file__).resolve().parents[2] / ".env"
    try:
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        print(f"{target} is there and stays as it is")
        return 0
    with os.fdopen(handle, "w") as out:
        out.write(content())
    print(f"{target} is made: the password of Airflow's admin is AIRFLOW_ADMIN_PASSWORD in it")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
