"""The process that trains: calls the callable, or reads what an image left, and draws the learning curve.

`python -m model_release.build.trainer request.json`, with `{"run": "module:function" or null, "destination": folder,
"arguments": {…}}`. Speaks as `processes.run` listens.

A training may start processes of its own (data loaders, a launcher), and may have to be stopped: by its timeout, or
because its task was killed, which Airflow does with SIGKILL after five seconds. So it is the leader of its own process
group, and a watcher outside of the group ends the whole group as soon as the training's process has ended in whatever
way, or nobody listens to it any more.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import math
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from model_release.build.training import CURVE, METRICS, PICTURE
from model_release.errors import ReleaseError, TrainingFailed

_LOOK = 200  # milliseconds between two looks of the watcher


def main(arguments: Sequence[str]) -> int:
    request = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    _become_a_group()
    folder = Path(request["destination"])
    try:
        given: dict[str, Any] = request["arguments"]
        metrics: object
        if request["run"]:
            metrics, given = _call(request["run"], folder, given)
            what = str(request["run"])
        else:
            metrics, what = _json(folder / METRICS, {}), METRICS
        curve = _curve(folder)
        report = {"metrics": _numbers(metrics, what), "learning_curve": curve, "arguments": given}
        if curve:
            _draw(curve, folder / PICTURE)
    except ReleaseError as error:
        _say(error=type(error).__name__, message=str(error))
        return 1
    _say(report=report)
    return 0


def _become_a_group() -> None:
    process = os.getpid()
    if os.fork() == 0:
        # In a session of its own: whatever signals the task's group or the training's does not reach it.
        os.setsid()
        _watch(process)
    os.setsid()


def _watch(process: int) -> None:
    listener = select.poll()
    listener.register(1, 0)  # of a pipe that nobody reads any more, poll says POLLERR without being asked
    while os.getppid() == process and not listener.poll(_LOOK):
        pass
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
    os._exit(0)


def _call(run: str, folder: Path, arguments: Mapping[str, Any]) -> tuple[object, dict[str, Any]]:
    """What the callable returned, and its arguments with the defaults of those that were left out."""
    function = _callable(run)
    try:
        bound = inspect.signature(function).bind(folder, _log, **arguments)
    except TypeError as error:
        raise TrainingFailed(f"{run}{inspect.signature(function)} cannot be called as the file says: {error}") from None
    bound.apply_defaults()
    known = {name: value for name, value in bound.arguments.items() if isinstance(value, str | int | float | bool)}
    try:
        return function(folder, _log, **arguments), {**known, **arguments}
    except Exception as error:
        traceback.print_exc()
        raise TrainingFailed(f"{run} raised {type(error).__name__}: {error}") from error


def _callable(run: str) -> Callable[..., object]:
    name, _, attribute = run.partition(":")
    try:
        module = importlib.import_module(name)
    except Exception as error:
        traceback.print_exc()
        raise TrainingFailed(
            f"{run}: importing {name} raised {type(error).__name__}: {error}; it is looked for in include/, "
            "in plugins/ and among the worker's packages"
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise TrainingFailed(f"{run}: {name} has no function {attribute}")
    return function  # type: ignore[no-any-return]


def _curve(folder: Path) -> list[dict[str, float]]:
    """The epochs in `learning_curve.json`; none where there is no such file."""
    epochs = _json(folder / CURVE, [])
    if not isinstance(epochs, list):
        raise TrainingFailed(f"{CURVE} is no list with an object of numbers for each epoch")
    return [_numbers(epoch, f"{CURVE}, entry {number},") for number, epoch in enumerate(epochs, 1)]


def _numbers(values: object, what: str) -> dict[str, float]:
    """The values by name, refused unless each is a finite number (NumPy's and torch's scalars are)."""
    if not isinstance(values, Mapping):
        raise TrainingFailed(f"{what} gave {type(values).__name__}; a dict of numbers by name is right")
    numbers: dict[str, float] = {}
    for name, value in values.items():
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise TrainingFailed(f"{what} gave {name} = {value!r}, which is no number") from None
        if not math.isfinite(number):
            raise TrainingFailed(f"{what} gave {name} = {number}, which is no finite number")
        numbers[str(name)] = value if type(value) is int else number  # an epoch stays one, not 1.0
    return numbers


def _json(path: Path, otherwise: object) -> object:
    if not path.is_file():
        return otherwise
    try:
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TrainingFailed(f"{path.name} is no JSON: {error}") from None
    return content


def _draw(curve: Sequence[Mapping[str, float]], target: Path) -> None:
    """One small panel for each number, by epoch. A picture is a comfort: without matplotlib there is none."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        _log(f"matplotlib is not installed here: no {target.name}")
        return
    names = [name for name in dict.fromkeys(name for epoch in curve for name in epoch) if name != "epoch"]
    if not names:
        return
    figure = Figure(figsize=(6.4, 0.4 + 2.2 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for panel, name in zip(panels, names, strict=True):
        known = [(epoch.get("epoch", at), epoch[name]) for at, epoch in enumerate(curve, 1) if name in epoch]
        panel.plot(*zip(*known, strict=True), marker="." if len(known) < 60 else None, color="#1a73e8")
        panel.set_ylabel(name)
        panel.grid(alpha=0.3)
    panels[-1].set_xlabel("epoch")
    figure.savefig(target, dpi=110, metadata={"Software": None})


def _log(line: str) -> None:
    _say(progress=str(line))


def _say(**message: object) -> None:
    print(json.dumps(message, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
