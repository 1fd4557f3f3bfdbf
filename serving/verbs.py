"""What the verbs `serve` and `predict` do: tokens and the app, frames of a person's folder through it."""

from __future__ import annotations

import base64
import contextlib
import io
import signal
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cluster import session
from cluster.access import Access, Role, forget_token, keep_token, kept_token
from cluster.registry import Journal
from cluster.settings import Settings
from plants.errors import InputError
from plants.images import ENDINGS
from plants.names import checked_name
from plants.plant import Fleet
from serving import app
from serving.client import Client
from serving.intake import Frame, PartRequest
from serving.local import local_predictor, predict_local
from serving.predictor import Predictor, chosen_environment
from serving.sessions import BRANCH_MB
from serving.wiring import Tiers

FLEET_ROLES: tuple[Role, ...] = ("lead", "auditor")
"""Roles that open the whole fleet: a lead promotes and rolls back, an auditor reads, as Prometheus does."""
Files = list[tuple[str, Path]]
"""Frames on disk, each with the name it is reported by."""


def serve_fleet(
    fleet: Fleet,
    *,
    settings: Settings,
    plants: Sequence[str] = (),
    group: str | None = None,
    host: str,
    port: int,
    replicas: int = 1,
    branch_mb: float = BRANCH_MB,
    pinned: Sequence[str] = (),
    merge_adapters: bool = False,
) -> dict[str, Any]:
    """The app answers for every plant with a route; a token for each lies under home. Returns address and plants.

    plants, group: only these plants, or those of this group, are in the app's processes, also those that get their
    first route later. Otherwise all are that have a route, or get one.
    """
    for name in (*plants, *pinned):
        fleet.plant(name)
    wanted = chosen_plants(fleet, plants=plants, group=group)
    routes = Journal(settings.journal_url).current()
    live = [name for name in wanted if name in routes]
    if not live:
        raise InputError("no plant has a route", field="--plant", remedy="Run `crossplant publish` first")
    for name in live:
        ensure_token(settings, plant=name)
    for role in FLEET_ROLES:
        ensure_token(settings, role=role)
    address = app.run(
        settings,
        store_uri=fleet.store,
        fleet=fleet.fleet,
        plants=wanted if plants or group is not None else (),
        declared=[plant.name for plant in fleet.plants],
        host=host,
        port=port,
        num_replicas=replicas,
        tiers=Tiers(branch_mb=branch_mb, pinned=tuple(pinned), merge_adapters=merge_adapters),
    )
    return {"address": address, "plants": live}


def chosen_plants(fleet: Fleet, *, plants: Sequence[str] = (), group: str | None = None) -> list[str]:
    """The fleet's plants that one app serves. Raises InputError for a group that no plant is in, or not all named."""
    groups = sorted({plant.group for plant in fleet.plants if plant.group})
    if group is not None and group not in groups:
        known = f"Known: {', '.join(groups)}" if groups else "Give plants a `group` in the fleet's file"
        raise InputError(f"no plant is in group {group!r}", field="--group", remedy=known)
    members = [plant.name for plant in fleet.plants if group is None or plant.group == group]
    for name in plants:
        if name not in members:
            raise InputError(f"is not in group {group!r}", plant=name, field="--plant", remedy="Leave one of both out")
    return [name for name in members if not plants or name in plants]


def ensure_token(settings: Settings, *, plant: str | None = None, role: Role = "plant") -> str:
    """A valid token of a plant, or of a fleet-wide role, kept under home as `{plant}.token` or `_{role}.token`."""
    access, name = Access(settings.journal_url), plant or f"_{role}"
    with contextlib.suppress(InputError):
        token = kept_token(settings.home, name)
        if access.check(token) is not None:
            return token
    token = access.issue(role, plant=plant, ttl=timedelta(days=settings.token_ttl_days))
    keep_token(settings.home, name, token)
    return token


def change_token(
    fleet: Fleet, *, settings: Settings, plant: str | None, role: Role | None, overlap_hours: float, is_revoked: bool
) -> dict[str, Any]:
    """A new token of a plant or a fleet-wide role is kept under home and the old ones end; or all are dead now.

    Holds `of`, how many `old` ones there were, and the new one's `file` and the `old_end`. Raises InputError.
    """
    if (plant is None) == (role is None):
        raise InputError("a token is a plant's or a role's", field="--plant / --role", remedy="Name one of them")
    name = fleet.plant(plant).name if plant is not None else f"_{role}"
    access = Access(settings.journal_url)
    if is_revoked:
        old = access.revoke(plant=plant, role=role)
        forget_token(settings.home, name)
        return {"of": plant or role, "old": old}
    overlap, ttl = timedelta(hours=overlap_hours), timedelta(days=settings.token_ttl_days)
    token, old = access.rotate(role or "plant", plant=plant, ttl=ttl, overlap=overlap)
    file = keep_token(settings.home, name, token)
    ends = datetime.now(UTC) + overlap
    return {"of": plant or role, "old": old, "file": str(file), "old_end": ends.isoformat(timespec="seconds")}


def wait_until_interrupted(fleet: Fleet) -> None:
    """Blocks until Ctrl-C or SIGTERM, then `stop`; also where a shell began this in the background, ignoring Ctrl-C."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        stop(fleet)


def stop(fleet: Fleet) -> None:
    """The app is gone, and Ray where it is ours. Standard output, which may hold a document, is left alone.

    Ray prints there that the controller of Serve did not outlive the call that it was ended by.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        app.stop(fleet.fleet)
        session.stop()


def predict_files(
    images: Sequence[Path],
    *,
    settings: Settings,
    plant: str | None = None,
    address: str | None = None,
    bundle: Path | None = None,
    policy: Path | None = None,
    environment: str | None = None,
    one_part: bool = False,
    maps: Path | None = None,
) -> dict[str, Any]:
    """`predictions[]`, one a frame, or one for all frames of a part; a frame that cannot be judged carries `error`.

    maps: a folder for a picture of every part, which `map.file` then names in place of the picture itself.

    A frame below a folder is named by its path in the folder. Frames are read when it is their part's turn.
    Raises InputError before the first frame is sent, when not one of them could be judged.
    """
    if (address is None) == (bundle is None):
        raise InputError("name either an endpoint or a bundle", field="--address / --bundle")
    files = _files(images)
    parts = [files] if one_part else [[file] for file in files]
    if bundle is not None:
        predictor = local_predictor(bundle, plant=plant, policy=policy)
        where = predictor.environment(environment)
        answers = _judged(parts, predictor=predictor, environment=where, wants_map=maps is not None)
    else:
        asked = {"plant": plant, "address": str(address), "environment": environment, "wants_map": maps is not None}
        answers = _asked(parts, settings=settings, **asked)  # type: ignore[arg-type]
    rows: list[dict[str, Any]] = []
    for number, (part, answer) in enumerate(zip(parts, answers, strict=True), start=1):
        image = ", ".join(name for name, _ in part)
        if isinstance(answer, InputError):
            rows.append({"image": image, "error": str(answer)})
        else:
            rows.append({"image": image, **answer})
            if maps is not None:
                rows[-1]["map"] = _kept_map(answer, folder=maps, number=number)
    return {"predictions": rows}


def _kept_map(answer: dict[str, Any], *, folder: Path, number: int) -> dict[str, Any]:
    """The picture of an answer is a file in the folder, named by the part's number and the frame that it shows."""
    found = answer.get("map") or {"frame": None, "png": None, "problem": "the endpoint knows of no maps"}
    if found["png"] is None:
        return {"frame": found["frame"], "file": None, "problem": found["problem"]}
    name = Path(answer["frames"][found["frame"]]["image"]).stem
    path = folder / f"{number:04d}-{name}.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(found["png"]))
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", file=str(path), field="--maps") from None
    return {"frame": found["frame"], "file": str(path), "problem": None}


def _judged(
    parts: Sequence[Files], *, predictor: Predictor, environment: str, wants_map: bool = False
) -> Iterator[Any]:
    for number, part in enumerate(parts, start=1):
        try:
            request = PartRequest(predictor.plant, _read(part), environment=environment, wants_map=wants_map)
            (answer,) = predict_local(predictor, [request])
        except InputError as unreadable:
            answer = unreadable
        if isinstance(answer, InputError):
            yield answer
        else:
            yield {**answer.model_dump(mode="json"), "request_id": f"local-{number}"}


def _asked(
    parts: Sequence[Files],
    *,
    settings: Settings,
    plant: str | None,
    address: str,
    environment: str | None,
    wants_map: bool = False,
) -> Iterator[Any]:
    if plant is None:
        raise InputError("an endpoint is a plant's", field="--plant", remedy="Name the plant")
    checked_name(plant)
    with Client(address, token=settings.token or kept_token(settings.home, plant)) as client:
        known = client.check(plant).get("environments", ())
        environment = chosen_environment(environment, known=known, plant=plant)
        for part in parts:
            try:
                images = [(f.image, f.data) for f in _read(part)]
                answer = client.predict(plant, images, environment=environment, wants_map=wants_map)
            except InputError as refusal:
                yield refusal
                continue
            seen = zip(answer["frames"], part, strict=False)  # no frame is answered where the deadline passed
            yield {**answer, "frames": [{**frame, "image": name} for frame, (name, _) in seen]}


def _read(part: Files) -> tuple[Frame, ...]:
    try:
        return tuple(Frame(image=name, data=path.read_bytes()) for name, path in part)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=error.filename) from None


def _files(images: Sequence[Path]) -> Files:
    """The name and the place of every frame. Raises InputError where there is none."""
    found: Files = []
    for path in images:
        if path.is_dir():
            below = sorted(p for p in path.rglob("*") if p.suffix.lower() in ENDINGS)
            found += [(p.relative_to(path).as_posix(), p) for p in below]
        elif path.is_file():
            found.append((path.name, path))
        else:
            raise InputError("there is no such file or folder", file=str(path))
    if not found:
        raise InputError(
            "no images", file=", ".join(map(str, images)), remedy=f"Known endings: {' '.join(sorted(ENDINGS))}"
        )
    return found
