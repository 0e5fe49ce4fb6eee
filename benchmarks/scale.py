"""What grows with models, watched releases, windows and releases: `python benchmarks/scale.py [--write] [PART …]`.

Parts: `parse` (model files), `watch` (releases under watch), `records` (windows and releases), `export` (memory of an
export; ViT-base and ViT-large with random weights). `--write` puts the tables into docs/scale.md.

Each figure is of the process that it is about, alone: the others (Prometheus, the store, the API server's stand-in) run
beside it as processes of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pages import write

PROJECT = Path(__file__).resolve().parents[1]
PAGE = PROJECT / "docs" / "scale.md"
sys.path[:0] = [str(PROJECT / part) for part in ("plugins", "include", "benchmarks")]

MODEL_FILES = (1, 10, 100, 1000)

Row = tuple[str, ...]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all of them")
    parser.add_argument("--write", action="store_true", help="into docs/scale.md")
    parser.add_argument("--child", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        import scale_watch

        return {**CHILDREN, **scale_watch.CHILDREN}[options.child[0]](*options.child[1:])
    for part in options.parts or PARTS:
        table = PARTS[part]()
        print(f"\n{part}\n{table}", flush=True)
        if options.write:
            write({f"scale-{part}": table}, PAGE)
    return 0


def _table(head: Row, rows: list[Row]) -> str:
    lines = [head, tuple("---:" if number else "---" for number in range(len(head))), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _child(*words: str, **environment: str) -> dict[str, Any]:
    """This file again, in a process of its own; its last line is JSON."""
    path = os.pathsep.join(str(PROJECT / part) for part in ("plugins", "include"))
    done = subprocess.run(
        [sys.executable, __file__, "--child", *words],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f} MB".replace(",", " ")


# Model files


def parse() -> str:
    rows: list[Row] = []
    for count in MODEL_FILES:
        with tempfile.TemporaryDirectory(prefix="scale-") as name:
            project = _project(Path(name), count)
            home = {"AIRFLOW_HOME": str(project / "home"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
            whole = _child("parse", str(project), "", **home)
            one = _child("parse", str(project), "release_m0", **home)
        rows.append((
            f"{count:,}".replace(",", " "), f"{whole['seconds']:.2f} s", f"{1000 * whole['seconds'] / count:.0f} ms",
            f"{one['seconds']:.2f} s", _megabytes(whole["grown"]), f"{whole['serialized'] / 1000:.0f} kB",
        ))  # fmt: skip
    head = ("model files", "CPU: all DAGs", "a DAG", "CPU: for one task", "memory", "a DAG in the data base")
    return _table(head, rows)


def _project(folder: Path, count: int) -> Path:
    """The project with `count` model files: each like the example's, with a name and a service of its own."""
    (folder / "include/models").mkdir(parents=True)
    shutil.copytree(PROJECT / "dags", folder / "dags", ignore=shutil.ignore_patterns("__pycache__"))
    text = (PROJECT / "include/models/digits.yaml").read_text(encoding="utf-8")
    for number in range(count):
        named = re.sub(r"^model: digits$", f"model: m{number}", text, flags=re.MULTILINE)
        named = re.sub(r"^  name: digits$", f"  name: m{number}", named, flags=re.MULTILINE)
        (folder / f"include/models/m{number}.yaml").write_text(named, encoding="utf-8")
    return folder


def _parse_child(project: str, only: str) -> int:
    import runpy

    import psutil
    from airflow.serialization.serialized_objects import DagSerialization

    # What every process of Airflow has imported before it comes to a DAG file.
    import model_release.tasks.dag  # noqa: F401

    if only:
        # As Airflow tells a DAG file whose task it is parsed for.
        os.environ["_AIRFLOW_PARSING_CONTEXT_DAG_ID"] = only
    process = psutil.Process()
    before, started = process.memory_info().rss, time.process_time()
    found = runpy.run_path(f"{project}/dags/release.py")
    seconds = time.process_time() - started
    dags = [value for name, value in found.items() if name.startswith("release_m")]
    size = len(json.dumps(DagSerialization.to_dict(dags[0])))
    grown = process.memory_info().rss - before
    print(json.dumps({"seconds": seconds, "grown": grown, "dags": len(dags), "serialized": size}))
    return 0


# Releases under watch


def watch() -> str:
    import scale_watch

    return _table(scale_watch.HEAD, scale_watch.watch(_child))


# Windows and releases


def records() -> str:
    import scale_watch

    from model_release.judging import Judge, Policy, Window
    from model_release.judging.record import Record
    from model_release.release.index import Entry

    policy = Policy.from_dict(scale_watch.spec_of(0).policy(10))
    start = datetime(2026, 3, 1, tzinfo=UTC)

    def made(windows: int) -> Record:
        record = Record.new(
            "m0-20260301T000000-12345678",
            model="m0",
            service="models/m0",
            version="0123456789abcdef",
            started=start.isoformat(),
            run={"dag_id": "release_m0", "run_id": "r", "url": "u"},
        )
        judge, kept = Judge(policy), []
        for number in range(windows):
            said = {
                "start": (start + timedelta(seconds=10 * number)).isoformat(),
                "end": (start + timedelta(seconds=10 * number + 10)).isoformat(),
                "canary": {"requests": 20, "bad": {"errors": 0}},
                "stable": {"requests": 180, "bad": {"errors": 1}},
            }
            kept.append(Window.from_dict(said))
            judge.add(kept[-1])
        record.record_step(10, start.isoformat(), window_seconds=10, policy=policy, windows=kept, final=True,
                           verdict=judge.verdict())  # fmt: skip
        return record

    rows: list[Row] = []
    for windows in (10, 100, 1000):
        record = made(windows)
        text = record.to_json()
        started = time.process_time()
        Record.from_json(text).replay()
        replayed = f"replayed in {time.process_time() - started:.2f} s of CPU"
        size = f"{len(text) / 1000:.0f} kB"
        rows.append((f"a record with {windows} windows", size, f"{len(text) / windows:.0f} B a window", replayed))
    line = len(json.dumps(asdict(Entry.of(made(10)))))
    rows += [
        (f"the index of a month with {count} releases", f"{count * line / 1000:.0f} kB", f"{line} B a release", "")
        for count in (100, 1000, 10_000)
    ]
    return _table(("what", "size", "of that", ""), rows)


# Memory of an export


def export() -> str:
    rows: list[Row] = []
    for name in ("base", "large"):
        told = _child("export", name)
        rows.append((f"ViT-{name}", f"{told['parameters'] / 1e6:.0f} M", _megabytes(told["weights"]),
                     _megabytes(told["bare"]), _megabytes(told["peak"]),
                     f"{(told['peak'] - told['bare']) / told['weights']:.2f}", f"{told['peak'] / told['weights']:.2f}",
                     f"{told['seconds']:.0f} s"))  # fmt: skip
    head = (
        "model",
        "parameters",
        "weights",
        "interpreter with torch",
        "peak",
        "above it, in weights",
        "peak, in weights",
        "time",
    )
    return _table(head, rows)


_SIZES = {
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}


def _checkpoint_child(name: str, folder: str) -> int:
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=10, **_SIZES[name]))
    model.save_pretrained(folder)
    transformers.ViTImageProcessor().save_pretrained(folder)
    print(json.dumps({"parameters": sum(parameter.numel() for parameter in model.parameters())}))
    return 0


def _bare_child() -> int:
    import transformers  # noqa: F401

    import model_release.build.trace  # noqa: F401

    print(json.dumps({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
    return 0


def _export_child(name: str) -> int:
    from model_release.build.source import fetch

    with tempfile.TemporaryDirectory(prefix="scale-") as scratch:
        bare = _child("bare")
        # Made by a process whose peak is not counted here: this one waits for the export's alone.
        made = _child("checkpoint", name, f"{scratch}/made")
        checkpoint = fetch({"directory": f"{scratch}/made"}, Path(scratch, "checkpoint"))
        weights = sum(file.stat().st_size for file in checkpoint.directory.glob("*.safetensors"))
        told = _child("exported", str(checkpoint.directory), f"{scratch}/out", checkpoint.fingerprint)
    print(json.dumps({**told, **made, "weights": weights, "bare": bare["peak"]}))
    return 0


def _exported_child(checkpoint: str, output: str, fingerprint: str) -> int:
    from model_release.build.export import export

    started = time.monotonic()
    export(Path(checkpoint), Path(output), handler=PROJECT / "include/handlers/image_classifier.py",
           fingerprint=fingerprint, log=lambda _: None)  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(json.dumps({"peak": peak, "seconds": time.monotonic() - started}))
    return 0


PARTS: dict[str, Callable[[], str]] = {"parse": parse, "watch": watch, "records": records, "export": export}
CHILDREN: dict[str, Callable[..., int]] = {
    "parse": _parse_child,   "checkpoint": _checkpoint_child,
    "bare": _bare_child, "export": _export_child, "exported": _exported_child,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
