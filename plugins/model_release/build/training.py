"""Training: a callable or an image makes a checkpoint, which becomes a candidate of the model's source, whole or not
at all.

A candidate is a folder named by time (`20261122T230000`, UTC) in the source's own folder or S3 prefix. It holds the
files that a release reads, checked as a release checks them, and beside them:

- `training.json`: what trained it, with which arguments (those that were left out included), its metrics, its learning
  curve, its fingerprint, and how long it took;
- `learning_curve.png`, where there is a curve.

**A callable** is written by the team, anywhere below the project's `include/` or among the worker's packages:

```python
def train(destination: Path, log: Callable[[str], None], *, epochs: int = 20, seed: int = 1) -> dict[str, float]:
    ...
```

It writes a checkpoint in Hugging Face format (`save_pretrained` of model and image processor) into the empty folder
`destination` and returns its metrics by name. What it passes to `log`, and what it prints, is in the task's log as it
comes. The keywords are the model file's `training.arguments`. A file `learning_curve.json` in `destination` is kept and
drawn; it is a list of one object of numbers for each epoch: `[{"epoch": 1, "loss": 2.1, "accuracy": 0.4}, …]`. The
callable runs in a process of its own with the worker's environment but for Airflow's part of it (whose secrets are no
business of a training), and ends with its task, together with all that it started: see `trainer`.

**An image** writes the same files to the S3 prefix in `$DESTINATION`, and its metrics, if any, into `metrics.json`
there. That prefix is `<candidate>.partial/`, which is no candidate; `finish` checks it and makes it one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from model_release.build import processes, source
from model_release.build.source import CONFIG, Reach, candidates_of
from model_release.errors import ArchiveError, CheckpointError, TrainingFailed
from model_release.store.folder import WritableFolder

RECORD = "training.json"
CURVE = "learning_curve.json"
PICTURE = "learning_curve.png"
METRICS = "metrics.json"

Arguments = Mapping[str, str | int | float | bool]


@dataclass(frozen=True)
class Trained:
    """A candidate that is there: its name, where it lies, the fingerprint that `source.fetch` gives it, what was
    measured, and the seconds that its training took."""

    candidate: str
    origin: str
    fingerprint: str
    metrics: dict[str, float]
    seconds: float


def candidate_name(moment: datetime) -> str:
    """`20261122T230000`: the moment in UTC, to the second."""
    return f"{moment.astimezone(UTC):%Y%m%dT%H%M%S}"


def train(
    run: str,
    sources: Mapping[str, str],
    candidate: str,
    *,
    arguments: Arguments,
    timeout: float,
    base: Path,
    log: Callable[[str], None],
    path: Sequence[Path] = (),
    reach: Reach | None = None,
) -> Trained:
    """Calls `run` (`module:function`) and puts what it made into the source `sources`, as `candidate`.

    `sources` is `{"directory": path}` (relative to `base`; made where it is missing) or `{"s3": prefix}` (or `gcs`,
    or `azure`) with `reach`, as `source.fetch` takes it. `path` are the folders where the callable's module is
    looked for first. `timeout` is in seconds.

    Run again, a finished candidate is found and not trained again; a half-made one was never visible, and is begun
    anew. Raises `TrainingFailed`: the callable is not there or does not take the arguments, raised, was killed, took
    too long, left no checkpoint that can be released, or the name is taken by a candidate that something else made.
    """
    place = _open(sources, base, reach)
    if found := _found(place, candidate, {"run": run}, arguments):
        log(f"{found.origin} is there already, trained in {found.seconds:.0f} s: not trained again")
        return found
    with TemporaryDirectory(prefix="training-") as scratch:
        made = Path(scratch, "trained")
        made.mkdir()
        log(f"{run} trains {place.at(candidate)} with {json.dumps(dict(arguments))}")
        began = time.monotonic()
        report = _process(run, made, arguments, path, timeout, log)
        seconds = time.monotonic() - began
        about = {"run": run, "arguments": report["arguments"], "seconds": round(seconds, 1)}
        return _offer(place, candidate, {"directory": made.name}, Path(scratch), about, report, log)


def finish(
    image: str,
    sources: Mapping[str, str],
    candidate: str,
    *,
    arguments: Arguments,
    seconds: float,
    log: Callable[[str], None],
    reach: Reach,
) -> Trained:
    """Makes a candidate of what `image` wrote to `destination(sources, candidate)`; `seconds` is how long it took.

    Only what was fetched and checked here becomes the candidate, not what may be written to the prefix meanwhile. The
    prefix is emptied afterwards. Run again, the finished candidate is found. Raises as `train` does.
    """
    place = _open(sources, Path(), reach)
    partial = destination(sources, candidate)
    if found := _found(place, candidate, {"image": image}, arguments):
        place.clear(_partial(candidate))
        return found
    with TemporaryDirectory(prefix="training-") as scratch:
        notes = Path(scratch, "notes")
        notes.mkdir()
        for name in (METRICS, CURVE):
            if (content := place.read(f"{_partial(candidate)}/{name}")) is not None:
                (notes / name).write_bytes(content)
        report = _process(None, notes, {}, (), 600, log)
        about = {"image": image, "arguments": dict(arguments), "seconds": round(seconds, 1)}
        trained = _offer(place, candidate, {"s3": partial}, Path(scratch), about, report, log, notes=notes, reach=reach)
    place.clear(_partial(candidate))
    return trained


def find(sources: Mapping[str, str], candidate: str, *, base: Path, reach: Reach | None = None) -> Trained | None:
    """The finished candidate, by its `training.json`; None where there is none. Raises `TrainingFailed` where something
    else than a training made it."""
    place = _open(sources, base, reach)
    record = _record(place, candidate)
    return _trained(place, candidate, record) if record else None


def destination(sources: Mapping[str, str], candidate: str) -> str:
    """The S3 prefix that an image writes to: not named by a time alone, so that no release takes it for a candidate."""
    return f"{sources['s3']}{_partial(candidate)}/"


def clear_destination(sources: Mapping[str, str], candidate: str, *, reach: Reach) -> None:
    """Removes what an earlier pod left there, so that its files do not mingle with the next one's."""
    candidates_of(sources, Path(), reach).clear(_partial(candidate))


def _partial(candidate: str) -> str:
    return f"{candidate}.partial"


def _open(sources: Mapping[str, str], base: Path, reach: Reach | None) -> WritableFolder:
    place = candidates_of(sources, base, reach)
    if place.read(source.CONFIG) is not None:
        raise TrainingFailed(
            f"{place.at('')} is a checkpoint itself, beside which no candidate counts; move it into a folder named by "
            "its time, such as 20261122T230000"
        )
    return place


def _record(place: WritableFolder, candidate: str) -> dict[str, Any] | None:
    """What `training.json` says; None where there is no candidate of that name."""
    if place.read(f"{candidate}/{source.CONFIG}") is None:
        return None
    try:
        record = json.loads(place.read(f"{candidate}/{RECORD}") or b"")
    except ValueError:
        record = None
    if not isinstance(record, dict) or "fingerprint" not in record:
        raise TrainingFailed(f"{place.at(candidate)} is there, and no training of this project made it")
    return record


def _found(place: WritableFolder, candidate: str, what: Mapping[str, str], arguments: Arguments) -> Trained | None:
    record = _record(place, candidate)
    if record is None:
        return None
    same = what.items() <= record.items() and dict(arguments).items() <= dict(record["arguments"]).items()
    if not same:
        made = f"{record.get('run') or record.get('image')} with {json.dumps(record['arguments'])}"
        raise TrainingFailed(f"{place.at(candidate)} is there, made by {made}; a new run gets a name of its own")
    return _trained(place, candidate, record)


def _trained(place: WritableFolder, candidate: str, record: Mapping[str, Any]) -> Trained:
    metrics = {str(name): float(value) for name, value in record["metrics"].items()}
    origin = f"{place.at(candidate)}"
    return Trained(candidate, origin, str(record["fingerprint"]), metrics, float(record["seconds"]))


def _process(
    run: str | None,
    folder: Path,
    arguments: Arguments,
    path: Sequence[Path],
    timeout: float,
    log: Callable[[str], None],
) -> dict[str, Any]:
    roots = [*map(str, path), str(processes.PACKAGE_ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {name: value for name, value in os.environ.items() if "AIRFLOW" not in name}
    # A model's bytes may hang on the order of a set.
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, roots)), "PYTHONHASHSEED": "0", "MPLBACKEND": "Agg"}
    with TemporaryDirectory(prefix="trainer-") as scratch:
        request = Path(scratch, "request.json")
        content = {"run": run, "destination": str(folder.resolve()), "arguments": dict(arguments)}
        request.write_text(json.dumps(content), encoding="utf-8")
        try:
            return processes.run(
                ["-m", "model_release.build.trainer", str(request)],
                what=f"training by {run}" if run else "drawing the learning curve",
                log=log,
                env=environment,
                timeout=timeout,
                cwd=Path(scratch),
            )
        except ArchiveError as error:  # how `processes` says that a process died
            raise TrainingFailed(str(error)) from error


def _offer(
    place: WritableFolder,
    candidate: str,
    made: Mapping[str, str],
    scratch: Path,
    about: Mapping[str, Any],
    report: Mapping[str, Any],
    log: Callable[[str], None],
    *,
    notes: Path | None = None,
    reach: Reach | None = None,
) -> Trained:
    """Checks what was made, as a release will, and puts it into the source under its name."""
    try:
        checkpoint = source.fetch(made, scratch / "checked", base=scratch, reach=reach)
    except CheckpointError as error:
        raise TrainingFailed(f"training left no checkpoint that can be released: {error}") from error
    picture = (notes or scratch / made.get("directory", "")) / PICTURE
    if picture.is_file():
        (checkpoint.directory / PICTURE).write_bytes(picture.read_bytes())
    record = {
        "candidate": candidate,
        **about,
        "metrics": report["metrics"],
        "fingerprint": checkpoint.fingerprint,
        "labels": len(checkpoint.labels),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "learning_curve": report["learning_curve"],
    }
    text = json.dumps(record, ensure_ascii=False, indent=1) + "\n"
    (checkpoint.directory / RECORD).write_text(text, encoding="utf-8")
    place.put(checkpoint.directory, candidate, last=CONFIG)
    trained = _trained(place, candidate, record)
    told = ", ".join(f"{name} {value:.4g}" for name, value in trained.metrics.items()) or "no metrics"
    log(f"{trained.origin}: {told}, trained in {trained.seconds:.0f} s, {trained.fingerprint[:12]}")
    return trained
