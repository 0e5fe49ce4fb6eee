"""`python -m model_release.commands.build_step --store s3://…/ --request KEY`: one step of a build, in its own pod.

A task of the release asks for it (`tasks/pods.py`); nobody types it. Credentials of S3 are the pod's: its service
account's role, or what AIRFLOW_CONN_MODEL_STORE or boto3's own variables say. Run twice, the step is done twice, with
equal bytes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from model_release.commands import surroundings
from model_release.errors import ReleaseError


def main(argv: Sequence[str] | None = None) -> int:
    """0 when the step is done; 1 with one line when it failed, which then stands in the request, too."""
    from model_release.build import steps

    parser = argparse.ArgumentParser(prog="build_step", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--store", required=True, metavar="S3://…/", help="the model's store")
    parser.add_argument("--request", required=True, metavar="KEY", help="where the request is, below the store")
    parser.add_argument("--endpoint-url", metavar="URL", help="of another S3 than Amazon's")
    options = parser.parse_args(argv)
    options.sandbox = None
    try:
        store = surroundings.store(options, options.store)
        steps.answer(store, options.request, surroundings.PROJECT, lambda uri: surroundings.reach(options, uri), _say)
    except ReleaseError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
