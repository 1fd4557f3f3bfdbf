"""What the verbs `log` and `trace` do: the prediction log compacted, its gaps named, one part's judgements told."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime
from typing import Any

from cluster.registry import Journal
from cluster.settings import Settings
from cluster.storage import open_store
from plants.errors import InputError
from plants.plant import Fleet
from serving.compaction import compact
from serving.gaps import Gap, gaps
from serving.segments import Index, load_index
from serving.spool import waiting_on_disk
from serving.tracing import find, judged_by

Say = Callable[[str], None]
_ALWAYS = "9999"


def log_fleet(
    fleet: Fleet,
    *,
    settings: Settings,
    is_compacting: bool = False,
    since: str | None = None,
    until: str | None = None,
    say: Say,
) -> dict[str, Any]:
    """`days[]`, `compacted[]`, `gaps[]`, `missing` and `lost` rows; compacted first where that was asked for."""
    store, first, last = open_store(fleet.store), checked_day(since, "--since"), checked_day(until, "--until")
    done = []
    if is_compacting:
        today = datetime.now(UTC).strftime("%Y-%m-%d")
        done = compact(store, today=today, since=first, until=last or _ALWAYS)
        for one in done:
            say(f"{one.day}: {one.segments} segments compacted into {one.files} files; the day has {one.rows} verdicts")
            for key in one.unreadable:
                say(f"warning: {store.at(key)} is no segment of the log; it was left where it is")
    index = load_index(store, since=first, until=last or _ALWAYS)
    days = [_day(index, day) for day in index.days]
    for row in days if not is_compacting else ():
        say(
            f"{row['day']}: {row['verdicts']} verdicts, of them {row['fresh']} in {row['segments']} segments to compact"
        )
    missing = _missing(index, fleet=fleet, settings=settings, is_whole=not first)
    for gap in missing:
        say(told(gap))
    if not missing:
        say(f"no gap in {sum(row['verdicts'] for row in days)} verdicts of {len(days)} days")
    return {
        "days": days,
        "compacted": [{"day": one.day, "segments": one.segments, "rows": one.rows, "files": one.files} for one in done],
        "gaps": [gap.document() for gap in missing],
        "missing": sum(gap.num_rows for gap in missing),
        "lost": sum(gap.num_rows for gap in missing if gap.is_lost),
    }


def trace(
    fleet: Fleet,
    *,
    settings: Settings,
    plant: str,
    part_id: str,
    since: str | None = None,
    until: str | None = None,
    say: Say,
) -> dict[str, Any]:
    """`judgements[]` of a part, the oldest first, and the `gaps[]` of the days that were looked through."""
    name, store = fleet.plant(plant).name, open_store(fleet.store)
    first, last = checked_day(since, "--since"), checked_day(until, "--until") or _ALWAYS
    found = find(store, plant=name, part_id=part_id, since=first, until=last)
    judgements = judged_by(store, Journal(settings.journal_url), plant=name, rows=found.rows)
    for row in judgements:
        _tell(row, say=say)
    missing = _missing(found.index, fleet=fleet, settings=settings, is_whole=not first)
    days = found.index.days
    if not judgements:
        span = f"from {days[0]} to {days[-1]}" if days else f"{first or 'ever'}, which is empty"
        num = sum(gap.num_rows for gap in missing)
        state = f"{num} verdicts are missing there" if missing else "which has no gap"
        say(f"part {part_id} is not in the log of {name} {span}; {state}")
    for gap in missing:
        say(told(gap))
    return {
        "plant": name,
        "part_id": part_id,
        "judgements": judgements,
        "days": days,
        "gaps": [gap.document() for gap in missing],
    }


def told(gap: Gap) -> str:
    """A gap in one line."""
    replica = gap.owner.partition("@")[0]
    when = gap.since if gap.since == gap.until else f"{gap.since} to {gap.until}"
    return f"gap: {gap.num_rows} verdicts of {when} ({replica}-{gap.first} to {replica}-{gap.last}): {gap.why}"


def checked_day(text: str | None, field: str) -> str:
    """The day as the log names it, nothing where none is given. Raises InputError."""
    if not text:
        return ""
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise InputError(f"{text} is not a day", field=field, remedy="Write YYYY-MM-DD, a day of UTC") from None


def _missing(index: Index, *, fleet: Fleet, settings: Settings, is_whole: bool) -> list[Gap]:
    return gaps(index, spooled=waiting_on_disk(settings.home / "spool" / fleet.fleet), is_whole=is_whole)


def _day(index: Index, day: str) -> dict[str, Any]:
    fresh = [one for one in index.segments if one.day == day]
    compacted = index.records[day].num_rows if day in index.records else 0
    num_fresh = sum(one.num_rows for one in fresh)
    return {"day": day, "verdicts": compacted + num_fresh, "fresh": num_fresh, "segments": len(fresh)}


def _tell(row: dict[str, Any], *, say: Say) -> None:
    model, route = row["model"], row["route"]
    defect = f" {row['defect']}" if row["defect"] else ""
    say(
        f"{row['at']}  {row['environment']}  {row['verdict']}{defect}, confidence {row['confidence']:.3f}"
        f"  (request {row['request_id']}, part {row['part_id']})"
    )
    say(f"  why     {row['why']}")
    named = f"{model['name']} ({model['kind']})" if model["name"] else "its manifest is not in the store"
    say(f"  model   {named}, arm {model['arm']}")
    say(f"          bundle {model['bundle']}")
    say(f"          policy {model['policy']}")
    if route:
        say(f"  route   {route['sequence']}, {route['action']} by {route['who']} at {route['at']}")
    else:
        say(f"  route   unknown: {row['route_problem']}")
    for digest in _some(row["frames"]):
        say(f"  frame   sha256 {digest}")


def _some(frames: Iterable[str] | None) -> list[str]:
    return list(frames or ()) or ["of no frame: the deadline passed first"]
