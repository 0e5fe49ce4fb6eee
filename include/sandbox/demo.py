"""`make release`: three releases of the example model, as a person would watch them.

A first version goes live; a better one is released by canary and promoted; a bad one is released and rolled back. With
`STORY=wrong` the bad one answers everything, quickly, and wrongly for one kind of picture. Nothing here decides
anything: it has candidates trained, and `sandbox.follow` start and show runs of `release_digits`, of
`release_digits-kserve`, or of `release_digits-scans`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sandbox.digits import READY, SCANS_SHARE
from sandbox.errors import SandboxError
from sandbox.follow import Ending, Follower, terminal
from sandbox.load import SCANS
from sandbox.process import die_with, tail
from sandbox.status import supervisor
from sandbox.waiting import Waiting, clock

EXAMPLE = "digits"
RATE = 40.0  # requests a second: enough for a verdict in a minute, little enough for two cores


def lease(service: str) -> str:
    """The name of the lease of its releases."""
    return f"model-release-{service}"


@dataclass(frozen=True)
class Chapter:
    """One release of a story: the candidate, what is said of it, and how its run has to end. `samples`: the share of
    larger pictures among those that its shadow is given before."""

    name: str
    said: str
    ends: str = "success"
    samples: float | None = None


@dataclass(frozen=True)
class Story:
    """Releases of `service` by the model file of each runtime; one service, so that one may follow the other."""

    service: str
    models: dict[str, str]
    chapters: tuple[Chapter, ...]


STORIES = {
    "bad": Story(
        f"models/{EXAMPLE}",
        {"torchserve": EXAMPLE, "kserve": f"{EXAMPLE}-kserve"},
        (
            Chapter("first", "a first model, trained for a short time"),
            Chapter("better", "the same, trained for longer"),
            Chapter("bad", "as accurate on the test set, but its processor was saved with do_resize: false", "failed"),
        ),
    ),
    "wrong": Story(
        SCANS,
        {"torchserve": SCANS.partition("/")[2]},
        (
            Chapter("better", "goes live; the samples for the shadow are test images", samples=0.0),
            Chapter("wrong", "quick, without errors, and wrong for larger pictures: the samples have none", "failed"),
            Chapter("wrong", "once more; now the samples are what users send", "failed", samples=SCANS_SHARE),
        ),
    ),
}


class Candidates:
    """Trains those of `names` in a process of its own, beside all else, and makes the images that they are evaluated
    on. What it says is shown until the first release begins. As a context, it ends the training at the end."""

    def __init__(self, state_dir: Path, evaluation: Path, console: Console, names: Iterable[str]) -> None:
        self.folder, self._evaluation, self._console = state_dir / "trained", evaluation, console
        self._names = list(dict.fromkeys(names))
        self._log = state_dir / "logs" / "training.log"
        self._ready, self._news, self._shown = set[str](), "", True

    def __enter__(self) -> Candidates:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        package = str(Path(__file__).resolve().parents[1])
        with self._log.open("wb") as log:
            self._training = subprocess.Popen(
                [sys.executable, "-m", "sandbox.digits", "candidates", self.folder, self._evaluation, *self._names],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "PYTHONPATH": package},
                start_new_session=True,
                preexec_fn=partial(die_with, os.getpid()),
            )
        self._reading = threading.Thread(target=self._follow, daemon=True)
        self._reading.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._training.terminate()
        self._training.wait()

    def wait_for(self, name: str, waiting: Waiting) -> None:
        """Returns when this one is whole. Raises SandboxError, one line, if it never will be."""
        while name not in self._ready:
            waiting.on(f"candidate {name} is trained; {self._news or 'first PyTorch is loaded'}")
            if self._training.poll() is not None and not self._reading.is_alive() and name not in self._ready:
                last = tail(self._log, 1) or f"code {self._training.returncode}"
                raise SandboxError(f"candidate {name} was not trained: {last}; {self._log} says more")
            time.sleep(0.1)
        self._shown = False

    def _follow(self) -> None:
        for line in self._training.stdout or ():
            name, is_ready, _ = line.strip().partition(READY)
            if is_ready:
                self._ready.add(name)
                continue
            self._news = line.strip()
            if self._shown:
                self._console.print(Text(f"  {self._news}", style="dim"))
        self._training.wait()


@dataclass
class Demo:
    """Shows everything on `console`. `offered` is the folder that the story's model file, of `model`, names as its
    source, `samples` the one that it names for its shadow; `stopped` says that nothing ran before."""

    state_dir: Path
    offered: Path
    samples: Path
    candidates: Candidates
    console: Console
    story: Story
    model: str
    stopped: bool = False

    @property
    def dag(self) -> str:
        return f"release_{self.model}"

    def run(self) -> int:
        """The releases; 0 when each ended as its story says."""
        follower = Follower(self.state_dir, self.console, self.story.service, RATE)
        follower.show_page()
        with Waiting(self.console) as waiting:
            waiting.on(f"Airflow reads {self.dag}, and what was live before is gone")
            follower.begin_anew(self.dag, stopped=self.stopped)
        chapters = self.story.chapters
        endings = [self._release(follower, number, chapter) for number, chapter in enumerate(chapters, 1)]
        self._summary(endings)
        follower.show_users()
        follower.show_addresses()
        return 0 if [ending.state for ending in endings] == [chapter.ends for chapter in chapters] else 1

    def _offer(self, name: str) -> None:
        """Puts the candidate where the source looks, under the present time: now it is the newest."""
        import shutil

        target = self.offered / f"{datetime.now(UTC):%Y%m%dT%H%M%S}"
        passing = target.with_name(f".{target.name}")
        shutil.rmtree(passing, ignore_errors=True)
        shutil.copytree(self.candidates.folder / name, passing)
        passing.rename(target)

    def _sample(self, odd: float) -> None:
        """Other pictures for the shadow; what makes them takes memory, and gives it back."""
        command = [sys.executable, "-m", "sandbox.digits", "samples", str(self.samples), "--odd", str(odd)]
        package = str(Path(__file__).resolve().parents[1])
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": package})
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1]
            raise SandboxError(f"no samples in {self.samples}: {last}")

    def _release(self, follower: Follower, number: int, chapter: Chapter) -> Ending:
        with Waiting(self.console) as waiting:
            self.candidates.wait_for(chapter.name, waiting)
            if chapter.samples is not None:
                waiting.on("samples for the shadow are drawn")
                self._sample(chapter.samples)
        if self.console.record:
            self.console.export_text(clear=True)  # a picture shows one release
        self.console.print()
        title = f"[bold]release {number} of {len(self.story.chapters)}: {chapter.name}[/], {chapter.said}"
        self.console.rule(title, align="left")
        if follower.traffic():
            follower.send_users()
        self._offer(chapter.name)
        return follower.release(self.dag, f"make release: {chapter.said}")

    def _summary(self, endings: list[Ending]) -> None:
        self.console.print()
        self.console.rule("[bold]what happened", align="left")
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for column in ("candidate", "ended", "took", "why"):
            table.add_column(column, overflow="fold")
        for chapter, ending in zip(self.story.chapters, endings, strict=True):
            style = "green" if ending.state == "success" else "red"
            sentence = ending.sentence.removeprefix(f"{self.model}: ")
            table.add_row(chapter.name, Text(ending.state, style=style), clock(ending.seconds), sentence)
        self.console.print(table)


def _forget(state_dir: Path, service: str) -> None:
    """The last story's service is not brought back: its model servers would start beside all else, to be deleted when
    Airflow is there."""
    from sandbox.kube import forget

    namespace, name = service.split("/")
    forget(state_dir, namespace, name, lease(name))


def release(
    state_dir: Path,
    project: Path,
    up: Callable[[Console], object],
    stop: Callable[[], object],
    picture: Path | None = None,
    runtime: str = "torchserve",
    told: str = "bad",
) -> int:
    """Runs the story `told`, through the server of `runtime`; `up` starts the sandbox with Airflow where it is not,
    beside the training of the candidates. Ctrl-C calls `stop`, which stops all of it. Raises SandboxError for a story
    that is not told with that server.

    `picture` is where the last release is drawn as it stood on the terminal (SVG).
    """
    story = STORIES[told]
    if runtime not in story.models:
        raise SandboxError(f"the story of {told} is told with {' or '.join(story.models)}, not with {runtime}")
    model, candidates = story.models[runtime], project / "candidates"
    offered, samples = (candidates / part / story.service.partition("/")[2] for part in ("", "samples"))
    names = [chapter.name for chapter in story.chapters]
    console = terminal(record=picture is not None)
    console.rule("[bold]sandbox and candidates, side by side", align="left")
    try:
        with Candidates(state_dir, candidates / "evaluation" / EXAMPLE, console, names) as trained:
            if stopped := supervisor(state_dir) is None:
                _forget(state_dir, story.service)
            up(console)
            code = Demo(state_dir, offered, samples, trained, console, story, model, stopped).run()
        if picture is not None:
            # Without the web font of rich's template: a picture asks no other host for anything.
            template = re.sub(r"@font-face {{.*?}}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
            picture.write_text(console.export_svg(title="make release", code_format=template), encoding="utf-8")
        return code
    except KeyboardInterrupt:
        console.print("\nStopping everything …")
        stop()
        return 130
