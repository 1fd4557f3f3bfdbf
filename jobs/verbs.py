"""What the verbs of the command do, and what they show: each returns the JSON document of DESIGN 8."""

from __future__ import annotations

import getpass
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from cluster.catalog import Catalog
from cluster.imports import Imported, import_plant
from cluster.settings import Settings
from cluster.storage import PlantFiles, open_store
from plants.errors import InputError
from plants.plant import Fleet


def import_fleet(
    fleet: Fleet,
    *,
    names: Sequence[str],
    show: Console,
    is_new_generation: bool = False,
    is_reread: bool = False,
    cache: Path | None = None,
) -> dict[str, Any]:
    """Rows, classes, splits and rejects of every plant named; the tables are recorded in the store.

    cache: Where what the frames look like is kept if it may not lie in a store; with it pictures that show the same are
        kept out of different roles.
    A plant that cannot be imported does not stop the others: it stands under `faults`, a line each.
    """
    from jobs.pictures import Looks

    catalog = Catalog.of(fleet)
    catalog.assignments()  # a store that does not answer is one fault, not one a plant
    table = new_table("Imported", "plant", "rows", "new", "classes", "train / select / decide / test parts", "rejected")
    plants: list[dict[str, Any]] = []
    faults: list[str] = []
    for name in names:
        began = time.monotonic()
        try:
            with _Reading(show, f"reading {name}") as reading:
                found = import_plant(
                    catalog,
                    fleet,
                    fleet.plant(name),
                    files=PlantFiles(),
                    now=datetime.now(UTC),
                    is_new_generation=is_new_generation,
                    is_reread=is_reread,
                    progress=reading.tick,
                    look=Looks(fleet, cache=cache, say=reading.tick) if cache else None,
                )
        except InputError as error:
            faults += error.at_plant(name)
            continue
        seconds = time.monotonic() - began
        plants.append({**_imported(found), "seconds": round(seconds, 1)})
        classes = ", ".join(f"{k} {v}" for k, v in found.classes.items())
        splits = " / ".join(str(v) for v in found.splits.values())
        table.add_row(name, str(found.rows), str(found.new_rows), classes, splits, str(len(found.rejected)))
        _show_what_to_know(found, show=show, is_tied=cache is not None)
        show.print(f"{name}: {_rate(found, seconds=seconds)}", markup=False, soft_wrap=True)
    if plants:
        show.print(table)
    first = plants[0] if len(plants) == 1 else {}
    return {**first, "plants": plants, "faults": faults}


def _imported(found: Imported) -> dict[str, Any]:
    return {
        "plant": found.plant,
        "rows": found.rows,
        "new_rows": found.new_rows,
        "classes": found.classes,
        "splits": found.splits,
        "dealt": found.dealt._asdict(),
        "rejected": [{"frame": r.frame, "reason": r.reason} for r in found.rejected],
        "quarantined": [row._asdict() for row in found.quarantined],
        "rejects": found.rejects,
        "frames": found.num_frames,
        "frames_read": found.num_read,
    }


def _show_what_to_know(found: Imported, *, show: Console, is_tied: bool) -> None:
    """The first rejects, how many there are of each reason, and all notes are shown, a line each.

    is_tied: whether pictures that show the same were put into one lot.
    """
    name, rejected = found.plant, found.rejected
    shown = dict.fromkeys(f"rejected: plant {name}: file {row.frame}: {row.reason}" for row in rejected[:1000])
    lines = [*shown][:10]
    if len(rejected) > 10:
        reasons = Counter(re.sub(r"'.*'|\d+", "_", row.reason) for row in rejected)
        lines += [f"rejected: plant {name}: {n:,} times: {reason}" for reason, n in reasons.most_common(10)]
    if rejected:
        lines.append(f"rejected: plant {name}: all {len(rejected):,} are listed in {found.rejects}")
    lines += [f"quarantined: plant {name}: file {row.frame} of {row.role}: {row.why}" for row in found.quarantined[:10]]
    if len(found.quarantined) > 10:
        lines.append(f"quarantined: plant {name}: {len(found.quarantined) - 10} more, all listed with --json")
    lines += [f"note: plant {name}: {note}" for note in found.notes]
    if not found.lots_known:
        lines.append(
            f"note: plant {name}: lots are not known for every frame, so every such frame is its own lot"
            f"{', together with its copies' if is_tied else ''}: figures flatter when neighbouring frames look alike"
        )
    for line in lines:
        show.print(line, markup=False, soft_wrap=True)


def audit_fleet(
    fleet: Fleet, *, settings: Settings, names: Sequence[str], show: Console, is_looking: bool = True
) -> dict[str, Any]:
    """Findings of every plant named, worst first, and a page with their images where they are looked at."""
    from jobs import look

    document = look.audit_fleet(
        fleet,
        settings=settings,
        names=names,
        is_looking=is_looking,
        say=lambda text: show.print(text, markup=False),
    )
    table = new_table("Audit", "level", "plant", "kind", "finding", "remedy")
    for f in document["findings"]:
        table.add_row(f["level"], f["plant"], f["kind"], f["detail"], f["remedy"] or "")
    show.print(table)
    if document["report"]:
        show.print(f"report: {document['report']}", markup=False, soft_wrap=True)
    return document


def train(
    fleet: Fleet,
    *,
    settings: Settings,
    recipe_file: Path | None,
    seeds: Sequence[int],
    leave_out: Sequence[str],
    retry_failed: bool,
    refresh: bool = False,
    baselines: bool = False,
    show: Console,
    max_hours: float | None = None,
    max_gb: float | None = None,
    is_estimate: bool = False,
    is_by_data: bool = False,
    average: bool = False,
    is_by_donors: bool = False,
) -> dict[str, Any]:
    """The runs of the fleet's plan with their ends, or what it would cost.

    is_by_donors: a sister to start from is the one that the last comparison measured to be best.
    """
    from jobs.carry_out import Caps
    from jobs.fleet import train_fleet
    from jobs.learning import write_page
    from jobs.leave_out import named
    from jobs.recipe import default_recipe, load_recipe
    from jobs.refresh import refresh_fleet

    caps = Caps(max_hours=max_hours, max_gb=max_gb)
    recipe = load_recipe(recipe_file) if recipe_file else default_recipe(fleet.trunks[0].cuts)
    named(leave_out, fleet=fleet)
    donors = _measured_donors(fleet, show=show) if is_by_donors else None
    with _Progress(show) as progress:
        terms: dict[str, Any] = {"settings": settings, "say": progress.say, "caps": caps}
        terms |= {"retry_failed": retry_failed, "is_estimate": is_estimate}
        if refresh:
            trained = refresh_fleet(fleet, **terms)
        else:
            terms |= {"recipe": recipe, "seeds": seeds, "leave_out": leave_out, "donors": donors}
            trained = train_fleet(fleet, average=average, baselines=baselines, is_by_data=is_by_data, **terms)
    document = trained.to_json()
    if is_estimate:
        _show_inputs(document["cost"]["plants"], show=show)
        return document
    _show_runs(document, show=show)
    if took := document["cost"].get("took"):
        show.print(f"took {took['seconds']:,.0f} s", markup=False)
        records, store = trained.records, open_store(fleet.store)
        if found := write_page(trained.plan, records=records, store=store, home=settings.home):
            show.print(f"learning curves: {found}", markup=False, soft_wrap=True)
    return document


def _measured_donors(fleet: Fleet, *, show: Console) -> dict[str, str]:
    """Plant -> its best donor by the last comparison; which those are is said. Raises InputError before the first."""
    from jobs.donors import best_donors
    from jobs.verdicts import compared

    found = best_donors(compared(open_store(fleet.store)).get("donors", ()))
    said = ", ".join(f"{donor} for {plant}" for plant, donor in sorted(found.items()))
    show.print(f"donors as measured: {said or 'none gains, so by shared classes'}", markup=False)
    return found


def _show_runs(document: Mapping[str, Any], *, show: Console) -> None:
    """The plan's runs, the failed ones first."""
    table = new_table(f"Runs of {document['plan']}", "run", "state", "select", "seconds", "cause")
    for run in sorted(document["runs"], key=lambda r: {"failed": 0, "refused": 1}.get(r["state"], 2)):
        cause = run["error"] or ""
        table.add_row(run["name"], run["state"], _number(run["select"], 3), _number(run["seconds"], 1), cause)
    show.print(table)


def _show_inputs(plants: Sequence[Mapping[str, Any]], *, show: Console) -> None:
    """The plants with most trunk passes to come, most first."""
    most = sorted(plants, key=lambda row: -row["passes"])[:NUM_SHOWN]
    title = f"Inputs, {len(most)} of {len(plants)} plants" if len(most) < len(plants) else "Inputs"
    table = new_table(title, "plant", "train", "select", "trunk passes to come")
    for row in most:
        table.add_row(row["name"], *(f"{row[key]:,}" for key in ("train", "select", "passes")))
    show.print(table)


NUM_SHOWN = 20
LINE_S = 30.0


class _Progress:
    """A bar of finished runs, with what each lane is at; a line a finished run where there is no terminal."""

    def __init__(self, show: Console) -> None:
        self.show, self.start, self.now = show, time.monotonic(), {}  # type: ignore[var-annotated]
        self.line_at = self.start + LINE_S
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bar = Progress(*columns, console=show, transient=True, disable=not show.is_terminal)
        self.task = self.bar.add_task("preparing", total=None)

    def __enter__(self) -> _Progress:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def say(self, event: Mapping[str, Any]) -> None:
        """One event of training, shown."""
        kind, run = event["kind"], event.get("run_id", "")
        if kind == "plan":
            self.bar.update(self.task, total=event["runs"], completed=event["runs"] - event["todo"])
            self._line(f"plan {event['plan']}: {event['runs']} runs, {event['todo']} to do")
            for note in event["notes"]:
                self._line(note)
        elif kind == "cost":
            for line in event["words"]:
                self._line(line)
            self.bar.update(self.task, description="starting workers")
        elif kind == "prepared":
            said = f"{event['rows']} inputs cached in {event['seconds']:.1f} s"
            self._line(f"{event['plant']}: {event['error'] or said}")
        elif kind == "epoch":
            loss = f" loss {event['loss']:.3f}" if event.get("loss") is not None else ""
            is_judged = event.get("select") is not None
            select = f" select {event['select']:.3f} nll {event['select_nll']:.3f}" if is_judged else ""
            self._at(run, f"{run} stage {event['stage']} epoch {event['epoch']}{loss}{select}")
        elif kind == "part":
            self._at(run, f"{run} stage {event['stage']} epoch {event['epoch']}, {event['part']:.0%}")
        elif kind == "note":
            self._line(event["text"])
        elif kind == "strike":
            self._line(f"{run}: {event['error']}; it is tried once more")
        elif kind == "lost":
            self._line(f"{run}: its worker ended; it is taken up again")
        elif kind == "regroup":
            self._line(f"the group of {event['workers']} workers did not form, it is formed again: {event['error']}")
        elif kind in ("done", "refused", "failed"):
            self.now.pop(run, None)
            self.bar.advance(self.task)
            if kind != "done":
                self._line(f"{run}: {kind}: {event['error']}")
            else:
                select = "-" if event["select"] is None else f"{event['select']:.3f}"
                self._line(f"{run}: select {select} in {event['seconds']:.1f} s")

    def _at(self, run: str, what: str) -> None:
        """What a run is at: in the bar, or where there is no terminal a line every `LINE_S`."""
        self.now[run] = what
        self.bar.update(self.task, description=" | ".join(self.now.values())[-100:])
        if not self.show.is_terminal and time.monotonic() > self.line_at:
            self.line_at = time.monotonic() + LINE_S
            self._line(" | ".join(self.now.values()))

    def _line(self, text: str) -> None:
        self.show.print(f"[{time.monotonic() - self.start:6.1f} s] {text}", markup=False, soft_wrap=True)


class _Reading:
    """A bar of frames with rate and time left; a line every `LINE_S` where there is no terminal."""

    def __init__(self, show: Console, what: str) -> None:
        self.show, self.what, self.next_at, self.line_at = show, what, 0.0, time.monotonic() + LINE_S
        self.first: tuple[float, int] | None = None
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bar = Progress(
            *columns, TextColumn("{task.fields[rate]}"), console=show, transient=True, disable=not show.is_terminal
        )
        self.task = self.bar.add_task(what, total=None, rate="")

    def __enter__(self) -> _Reading:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def tick(self, done: int, total: int) -> None:
        """So many frames are done, those remembered from an earlier import included."""
        now = time.monotonic()
        if now < self.next_at and done < total:
            return
        self.next_at = now + 0.1
        if self.first and done < self.first[1]:
            self.first = None  # another pass over the frames
        began, num_before = self.first = self.first or (now, done)
        rate = (done - num_before) / (now - began) if now > began else 0.0
        said = f"{rate:,.0f} frames/s, {(total - done) / rate:,.0f} s left" if rate else ""
        self.bar.update(self.task, completed=done, total=total, rate=said)
        if not self.show.is_terminal and now > self.line_at:
            self.line_at = now + LINE_S
            self.show.print(f"{self.what}: {done:,} of {total:,} frames, {said}", markup=False, soft_wrap=True)


def _rate(found: Imported, *, seconds: float) -> str:
    """What was read and how fast, in words."""
    known = found.num_frames - found.num_read
    said = f"{found.num_read:,} frames read in {seconds:,.1f} s, {found.num_read / max(seconds, 1e-3):,.0f} frames/s"
    return f"{said}; {known:,} were known from an earlier import" if known else said


def new_table(title: str, *columns: str) -> Table:
    """A table with a title, whose cells fold instead of losing text."""
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def who() -> str:
    """The person or service account at work, for ledgers and journals."""
    try:
        return getpass.getuser()
    except OSError:
        return "unknown"
