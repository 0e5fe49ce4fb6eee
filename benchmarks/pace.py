"""How long a whole release of the example takes with little traffic: real parts, 2 and 20 requests a second.

    python benchmarks/pace.py               # in a sandbox of its own: some half an hour
    python benchmarks/pace.py --rates 20    # of these rates only; what was kept of the others stays
    python benchmarks/pace.py --write       # and the table into README.md here

The example's model file, its deadline left to the plan. Its good versions are to be promoted and its bad one rolled
back within 15 minutes of the canary's opening at 2 requests a second, and within 4 at 20. Each release is kept in
pace.json as it ends, with the load of the machine: one that has much else to do answers slowly, and that is a reason to
roll back. Ends with 1 when one took longer, or ended otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from pages import write

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]

from conftest import Live  # noqa: E402

KEPT = HERE / "pace.json"
NAME, DAG = "pace", "release_pace"
MOST = {2.0: 15.0, 20.0: 4.0}  # minutes, by requests a second
SETTLED_IN = 60.0  # seconds of users before the first release: a past, as a service has one


def model_file() -> str:
    """The example's, as another service; what is evaluated before the traffic moves takes no part here."""
    content = yaml.safe_load((PROJECT / "include" / "models" / "digits.yaml").read_text(encoding="utf-8"))
    for name in ("training", "evaluation"):
        del content[name]
    content |= {"model": NAME, "source": {"directory": f"candidates/{NAME}"}, "store": f"s3://models/{NAME}/"}
    content["service"]["name"] = NAME
    content["rollout"] |= {"deadline": None, "bake": "0s"}
    return yaml.safe_dump({**content, "rollout": {k: v for k, v in content["rollout"].items() if v is not None}})


def offer(live: Live, name: str) -> None:
    """The candidate becomes the newest."""
    from sandbox.digits import make_candidate

    trained = live.state / "trained" / name
    make_candidate(name, trained, lambda _: None)
    shutil.copytree(trained, live.project / "candidates" / NAME / f"{datetime.now(UTC):%Y%m%dT%H%M%S}")


def release(live: Live, conf: dict[str, Any]) -> dict[str, Any]:
    """One release to its end, and its record."""
    live.finished(DAG, live.airflow.trigger(DAG, conf))
    store = live.store(f"s3://models/{NAME}/")
    records = [store.read_json(f"releases/{name}")[0] for name in store.names("releases/") if name.endswith(".json")]
    return dict(max(records, key=lambda record: record["started"]))


def measured(record: dict[str, Any], per_second: float, candidate: str, wanted: str) -> dict[str, Any]:
    """What is kept of a release. Minutes are from the opening, as the gateway had it, to all of the traffic or none."""
    moved = record["traffic"]
    opened = next((one for one in moved if 0 < one["percent"] < 100), None)
    if opened is None:
        raise SystemExit(f"{candidate} at {per_second:g} a second was never opened: {record['reason']}")
    at = [datetime.fromisoformat(one["time"]) for one in (opened, moved[-1])]
    requests = [step["verdict"]["metrics"][0]["canary"] for step in record["steps"] if step["percent"] != 100]
    return {
        "per_second": per_second,
        "candidate": candidate,
        "wanted": wanted,
        "outcome": record["outcome"],
        "minutes": round((at[1] - at[0]).total_seconds() / 60, 2),
        "deadline": (record["plan"] or {}).get("deadline_minutes"),
        "canary": requests[-1] if requests else None,
        "reason": record["reason"],
        "time": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "load": round(os.getloadavg()[0], 1),
        "commit": _commit(),
    }


def read() -> list[dict[str, Any]]:
    return list(json.loads(KEPT.read_text(encoding="utf-8"))) if KEPT.exists() else []


def measure(rates: list[float]) -> list[dict[str, Any]]:
    """In a sandbox of its own, at each rate a good version and the bad one; good are two, of which one is live."""
    kept = [one for one in read() if one["per_second"] not in rates]
    with tempfile.TemporaryDirectory(prefix="pace-") as folder:
        live = Live(Path(folder) / "state", Path(folder) / "project")
        for part in ("dags", "plugins", "include"):
            shutil.copytree(PROJECT / part, live.project / part, ignore=shutil.ignore_patterns("__pycache__"))
        (live.project / "include" / "models" / f"{NAME}.yaml").write_text(model_file(), encoding="utf-8")
        offer(live, "first")
        live.sandbox("up", "--airflow", str(live.project))
        try:
            live.airflow.wait_for_dag(DAG)
            versions = {"first": str(release(live, {})["version"])}
            stable = "first"
            for per_second in rates:
                live.sandbox("load", "--service", f"models/{NAME}", "--rate", str(per_second))
                time.sleep(SETTLED_IN)
                good = "better" if stable == "first" else "first"
                for candidate, wanted in ((good, "promoted"), ("bad", "rolled_back")):
                    known = versions.get(candidate)
                    if known is None:
                        offer(live, candidate)
                    record = release(live, {} if known is None else {"version": known})
                    versions[candidate] = str(record["version"])
                    stable = candidate if record["outcome"] == "promoted" else stable
                    kept.append(measured(record, per_second, candidate, wanted))
                    kept.sort(key=lambda one: float(one["per_second"]))
                    KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
                    print(json.dumps(kept), flush=True)
        finally:
            live.sandbox("down", check=False)
    return kept


def is_as_wanted(one: dict[str, Any]) -> bool:
    return bool(one["outcome"] == one["wanted"] and one["minutes"] <= MOST[one["per_second"]])


def page(kept: list[dict[str, Any]]) -> str:
    """Markdown: a line for each release, and on what they were measured."""
    lines = [
        "| requests a second | the canary | ended | minutes from its opening | at most | canary requests, bad ones |",
        "|---:|---|---|---:|---:|---:|",
    ]
    for one in kept:
        mark = "" if is_as_wanted(one) else " **missed**"
        counts = "–" if one["canary"] is None else f"{one['canary']['requests']}, {one['canary']['bad']}"
        lines.append(
            f"| {one['per_second']:g} | {one['candidate']} | {one['outcome'].replace('_', ' ')}{mark} "
            f"| {one['minutes']:.1f} | {MOST[one['per_second']]:g} | {counts} |"
        )
    days, loads = sorted({one["time"][:10] for one in kept}), [one["load"] for one in kept]
    commits = ", ".join(Counter(one["commit"] for one in kept))
    about = (
        f"Measured on {' and '.join(days)} at {commits}, one release a line; the machine's load (two cores) at the end "
        f"of a release was {min(loads)} to {max(loads)}. pace.json says more of each."
    )
    return "\n".join([about, "", *lines])


def _commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--write", action="store_true", help="the table into benchmarks/README.md")
    parser.add_argument("--rates", type=float, nargs="+", choices=list(MOST), default=list(MOST))
    parser.add_argument("--kept", action="store_true", help="of what pace.json has; nothing is run")
    options = parser.parse_args()
    kept = read() if options.kept else measure(options.rates)
    print(page(kept))
    if options.write:
        write({"pace": page(kept)})
    return 0 if len(kept) == 2 * len(MOST) and all(map(is_as_wanted, kept)) else 1


if __name__ == "__main__":
    sys.exit(main())
