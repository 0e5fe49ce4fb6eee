"""`make release`: three releases of the example model, as a person would watch them.

A first version goes live; a better one is released by canary and promoted; a bad one is released and rolled back.
Nothing here decides anything: it trains candidates and has `sandbox.follow` start and show runs of `release_digits`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sandbox.follow import Ending, Follower, clock, terminal

MODEL = "digits"
DAG = f"release_{MODEL}"
SERVICE = f"models/{MODEL}"
RATE = 40.0  # requests a second: enough for a verdict in a minute, little enough for two cores
STORY = {
    "first": "a first model, trained for a short time",
    "better": "the same, trained for longer",
    "bad": "as accurate on the test set, but its processor was saved with do_resize: false",
}


@dataclass
class Demo:
    """Shows everything on `console`. `candidates` is the folder that the model file names as its source."""

    state_dir: Path
    candidates: Path
    console: Console

    def run(self) -> int:
        """The three releases; 0 when each ended as its story says."""
        follower = Follower(self.state_dir, self.console, SERVICE, RATE)
        self._train()
        follower.airflow.wait_for_dag(DAG)
        endings = {name: self._release(follower, number, name) for number, name in enumerate(STORY, 1)}
        self._summary(endings)
        follower.show_users()
        follower.show_addresses()
        return 0 if [ending.state for ending in endings.values()] == ["success", "success", "failed"] else 1

    def _train(self) -> None:
        from sandbox.digits import make_candidate, make_evaluation

        self.console.rule("[bold]candidates", align="left")
        for name in STORY:
            make_candidate(name, self._trained(name), self.console.print)
        count = make_evaluation(self.candidates.parent / "evaluation" / MODEL)
        self.console.print(f"evaluation: {count} labelled images that no candidate was trained on")

    def _trained(self, name: str) -> Path:
        return self.state_dir / "trained" / name

    def _offer(self, name: str) -> None:
        """Puts the candidate where the source looks, under the present time: now it is the newest."""
        import shutil

        target = self.candidates / f"{datetime.now(UTC):%Y%m%dT%H%M%S}"
        passing = target.with_name(f".{target.name}")
        shutil.rmtree(passing, ignore_errors=True)
        shutil.copytree(self._trained(name), passing)
        passing.rename(target)

    def _release(self, follower: Follower, number: int, name: str) -> Ending:
        self.console.export_text(clear=True)  # a picture shows one release
        self.console.print()
        self.console.rule(f"[bold]release {number} of {len(STORY)}: {name}[/], {STORY[name]}", align="left")
        if follower.traffic():
            follower.send_users()
        self._offer(name)
        return follower.release(DAG, f"make release: {STORY[name]}")

    def _summary(self, endings: dict[str, Ending]) -> None:
        self.console.print()
        self.console.rule("[bold]what happened", align="left")
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for column in ("candidate", "ended", "took", "why"):
            table.add_column(column, overflow="fold")
        for name, ending in endings.items():
            style = "green" if ending.state == "success" else "red"
            sentence = ending.sentence.removeprefix(f"{MODEL}: ")
            table.add_row(name, Text(ending.state, style=style), clock(ending.seconds), sentence)
        self.console.print(table)


def release(state_dir: Path, project: Path, stop: Callable[[], object], picture: Path | None = None) -> int:
    """Runs the demo in a sandbox that is up with Airflow. Ctrl-C calls `stop`, which stops all of it.

    `picture` is where the last release is drawn as it stood on the terminal (SVG).
    """
    console = terminal()
    try:
        code = Demo(state_dir, project / "candidates" / MODEL, console).run()
        if picture is not None:
            # Without the web font of rich's template: a picture asks no other host for anything.
            template = re.sub(r"@font-face {{.*?}}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
            picture.write_text(console.export_svg(title="make release", code_format=template), encoding="utf-8")
        return code
    except KeyboardInterrupt:
        console.print("\nStopping everything …")
        stop()
        return 130
