"""What was released, and which versions are kept: `versions`, `releases`, `reindex`, `prune` and `sign` MODEL.

MODEL is the name of a model in include/models/. These commands need S3, and those that tell of traffic a kubeconfig;
`--sandbox` finds both in the sandbox.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any

from model_release.commands import surroundings
from model_release.errors import ReleaseError, SpecError
from model_release.model_file import load_all

if TYPE_CHECKING:
    from model_release.cluster.release import Owner
    from model_release.release.index import History
    from model_release.release.retention import Cluster, LiveService, Pruning
    from model_release.spec import ModelSpec

# Rich cuts a table to 80 columns where nobody looks; a file or a pipe has room.
_WIDE = 200
# Of lines, or of days: no calendar goes back a million of them.
_MOST = 100_000


def register(commands: Any) -> None:
    """Adds these commands to those of `python -m model_release`."""

    def command(
        name: str, run: Callable[[argparse.Namespace], str], *, cluster: bool = True
    ) -> argparse.ArgumentParser:
        text = (run.__doc__ or "").split("\n\n")[0]
        added: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
        added.add_argument("model", metavar="MODEL", help="a model's name")
        surroundings.add_options(added, cluster=cluster, store=True)
        added.set_defaults(run=run)
        return added

    for name, run in (("versions", _versions), ("releases", _releases)):
        listing = command(name, run)
        listing.add_argument("--json", action="store_true", help="as JSON")
        listing.add_argument("--limit", type=_count, default=20, metavar="N", help="the newest N (20)")
    command("reindex", _reindex, cluster=False)
    prune = command("prune", _prune)
    prune.add_argument(
        "--cluster",
        action="append",
        default=[],
        metavar="KUBECONFIG[@CONTEXT]",
        help="another cluster that serves versions of this store; may be given again",
    )
    prune.add_argument(
        "--gone",
        action="append",
        default=[],
        metavar="LEASE",
        help="a Lease's uid or a namespace/name whose cluster is gone for good; may be given again",
    )
    prune.add_argument("--yes", action="store_true", help="remove; without it nothing is")
    prune.add_argument(
        "--builds-days", type=_count, default=7, metavar="N", help="half-done builds untouched for N days go (7)"
    )
    sign = command("sign", _sign, cluster=False)
    sign.add_argument("version", metavar="VERSION", help="its name in the store")


def _versions(options: argparse.Namespace) -> str:
    """The versions of a model, newest first: source, evaluation, fate, and their traffic now."""
    from model_release.release.index import History
    from model_release.release.versions import lines

    spec = surroundings.spec(options)
    store = surroundings.store(options, spec.store)
    history = History(store)
    traffic = _traffic(options, spec, history)
    found = lines(store.versions(), history.entries(), traffic, model=spec.model)
    shown = found[: options.limit]
    why = traffic if isinstance(traffic, str) else None
    if options.json:
        head = {"model": spec.model, "service": spec.service.key, "store": store.uri, "traffic_unknown": why}
        return _json({**head, "versions": [asdict(line) for line in shown], "more": len(found) - len(shown)})
    rows = [
        (line.version, line.time, line.source, _share(line.accuracy), line.fate, _percent(line.traffic))
        for line in shown
    ]
    table = _table(("version", "time", "source", "accuracy", "fate", "traffic now"), rows)
    left = f"\n{len(found) - len(shown)} older ones; --limit shows more" if len(found) > len(shown) else ""
    said = table if rows else f"{store.uri} has no version of {spec.model}"
    return f"{said}{left}{_unknown(why)}"


def _releases(options: argparse.Namespace) -> str:
    """The releases of a model, newest first: version, source, evaluation, outcome, and the version's traffic now."""
    from model_release.release.index import History
    from model_release.release.versions import FATES, lines

    spec = surroundings.spec(options)
    store = surroundings.store(options, spec.store)
    history = History(store)
    traffic = _traffic(options, spec, history)
    page = history.page(model=spec.model, limit=options.limit)
    known = {line.version: line for line in lines(store.versions(), [], traffic, model=spec.model)}
    why = traffic if isinstance(traffic, str) else None
    if options.json:
        head = {"model": spec.model, "service": spec.service.key, "store": store.uri, "traffic_unknown": why}
        releases = []
        for entry in page.entries:
            line = known.get(entry.version or "")
            about = {"source": line.source, "evaluation": line.evaluation, "traffic": line.traffic} if line else {}
            releases.append({**asdict(entry), "source": None, "evaluation": None, "traffic": None, **about})
        return _json({**head, "releases": releases, "next": page.next})
    rows = []
    for entry in page.entries:
        line = known.get(entry.version or "")
        about_version = (line.source, _share(line.accuracy), _percent(line.traffic)) if line else ("", "", "")
        source, accuracy, now = about_version
        outcome = FATES.get(entry.outcome, str(entry.outcome))
        rows.append((entry.started[:19], entry.version or "", source, accuracy, outcome, now, entry.reason))
    names = ("started (UTC)", "version", "source", "accuracy", "outcome", "traffic now", "reason")
    said = _table(names, rows) if rows else f"{store.uri} knows of no release of {spec.model}"
    left = "\nThere are older ones; --limit shows more" if page.next else ""
    return f"{said}{left}{_unknown(why)}"


def _reindex(options: argparse.Namespace) -> str:
    """Makes the index of releases anew from their decision records. Run again: writes nothing."""
    from model_release.release.index import History

    store = surroundings.store(options, surroundings.spec(options).store)
    return f"{store.uri} has {History(store).reindex()} releases in its index"


def _prune(options: argparse.Namespace) -> str:
    """Shows which versions the model file's `keep` leaves no longer, and with --yes removes them.

    What a live service, a lease or a young record names always stays. Every cluster that a release of the store went
    to is asked; where one is not named here or does not answer, nothing is removed. Run again: does what is left.
    """
    from model_release.release import retention

    spec = surroundings.spec(options)
    store = surroundings.store(options, spec.store)
    clusters = [_cluster(surroundings.cluster(options.kubeconfig))]
    for given in options.cluster:
        file, _, context = given.partition("@")
        clusters.append(_cluster(surroundings.cluster(Path(file), context or None)))
    keys = [other.service.key for other in load_all(options.models).values() if other.store == spec.store]

    def look() -> tuple[list[LiveService], Pruning]:
        found = retention.services_of(store, keys, clusters, options.gone)
        older = timedelta(days=options.builds_days)
        return found, retention.plan(
            store, spec.model, spec.keep, found, builds_older_than=older, now=datetime.now(UTC)
        )

    found, plan = look()
    if not options.yes or plan.empty:
        end = "Nothing is to be removed." if plan.empty else "Nothing was removed: --yes does it."
        return f"{_shown(plan)}\n{end}"
    with ExitStack() as held:
        for number, one in enumerate(clusters):
            there = [each.key for each in found if each.server == one.server and (each.live or each.lease)]
            held.enter_context(retention.holding(one.leases, there if number else [*keys, *there], _by_hand()))
        _, plan = look()  # what was seen before the leases were held may have changed
        print(_shown(plan), flush=True)
        retention.apply(store, plan, lambda line: print(f"  {line}", flush=True))
    return f"{_bytes(plan.bytes)} are free."


def _cluster(client: Any) -> Cluster:
    from model_release.cluster.leases import Leases
    from model_release.cluster.services import InferenceServices
    from model_release.release.retention import Cluster

    return Cluster(str(client.configuration.host), InferenceServices(client), Leases(client))


def _sign(options: argparse.Namespace) -> str:
    """Signs a version by the private key of the model file, as one vouches for it. Run again: writes nothing."""
    from model_release.store import signing

    spec = surroundings.spec(options)
    if spec.signing is None or spec.signing.private_key is None:
        raise SpecError(f"the model file of {spec.model} names no signing.private_key")
    store = surroundings.store(options, spec.store)
    version = store.version(options.version)
    private, public = (
        signing.key_file(path, surroundings.PROJECT) for path in (spec.signing.private_key, spec.signing.public_key)
    )
    signing.sign_version(store, version, private, public, replace=True)
    return f"{version.storage_uri} is signed by {private}"


def _traffic(options: argparse.Namespace, spec: ModelSpec, history: History) -> dict[str, int] | str:
    """Each version's percent now; a cluster that does not answer is told, and the list goes on."""
    from model_release.cluster.leases import Leases
    from model_release.cluster.services import InferenceServices
    from model_release.release import live

    namespace, name = spec.service.namespace, spec.service.name
    try:
        client = surroundings.cluster(options.kubeconfig)
        service = InferenceServices(client).get(namespace, name)
        lease = Leases(client).read(namespace, name)
    except ReleaseError as error:
        return str(error)
    return live.traffic(service, lease, history, spec.service.key)


def _shown(plan: Pruning) -> str:
    rows = [(version, "goes", why) for version, why in plan.removes.items()]
    rows += [(version, "goes", "its removal was cut off") for version in plan.rest]
    rows += [
        (f"builds/{folder}/", "goes", f"a build, untouched; {_bytes(size)}") for folder, size in plan.builds.items()
    ]
    if plan.answers:
        size = _bytes(sum(plan.answers.values()))
        rows.append(("evaluations/", "goes", f"{len(plan.answers)} of archives that no version has; {size}"))
    rows += [(version, "stays", "; ".join(why)) for version, why in plan.keeps.items()]
    table = f"{_table(('what', '', 'why'), rows)}\n" if rows else ""
    return f"{table}{_bytes(plan.bytes)} to be removed."


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*names, box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: what a file or a form said is no markup
    console = Console(width=None if sys.stdout.isatty() else _WIDE)
    with console.capture() as captured:
        console.print(table)
    return dedent("\n".join(line.rstrip() for line in captured.get().splitlines() if line.strip()))


def _json(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False)


def _share(share: float | None) -> str:
    return "not evaluated" if share is None else f"{100 * share:.1f} %"


def _percent(percent: int | None) -> str:
    return "unknown" if percent is None else f"{percent} %" if percent else "none"


def _unknown(why: str | None) -> str:
    return f"\nTraffic unknown: {why}" if why else ""


def _bytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size} bytes"


def _by_hand() -> Owner:
    """The same for the same person, who can therefore run the command again after it was killed."""
    from model_release.cluster.release import Owner

    return Owner("python -m model_release prune", surroundings.user(), "", "by hand")


def _count(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if not 1 <= number <= _MOST:
        raise argparse.ArgumentTypeError(f"{text}: write a number from 1 to {_MOST}")
    return number
