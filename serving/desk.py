"""One annotator at a plant's frames: pages of them, pictures, and verdicts that are durable before anybody is told so.

Two annotators in two processes lose nothing: both tables are read, changed and written under a lock that lies beside
them. Nothing here reads the seal, and nothing shows what others said but the list of disagreements. HTTP is
`serving.labelling`.
"""

from __future__ import annotations

import contextlib
import io
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from PIL import Image

from cluster.lock import locked
from cluster.storage import MissingFile, PlantFiles, Store, open_store
from plants.annotations import (
    GOLDEN_COLUMNS,
    LABEL_COLUMNS,
    Action,
    Tables,
    Verdicts,
    agreed,
    judge,
    labelled_frames,
    read_table,
    read_verdicts,
    table_addresses,
    take_back,
)
from plants.errors import InputError
from plants.hashing import sha256
from plants.images import ENDINGS, MAX_BYTES, Pixels, decode_reduced
from plants.plant import Plant
from serving.schemas import Refusal

Which = Literal["todo", "mine", "open", "apart"]
"""Frames that I have not judged, that I have, that have no label yet, and that I and others disagree on."""
PAGE = 60
THUMBNAIL_PX = 256
MAX_NAME = 64
TTL_S, TIMEOUT_S = 20.0, 60.0
"""Of the lock on the tables: a killed writer stops the others for less than they wait."""
NUM_DECODERS = 2
"""Frames decoded side by side: a large one takes hundreds of megabytes, see `plants.images`."""


class Desk:
    """What one annotator sees and does at one plant, in one session. Safe to use from several threads."""

    def __init__(self, plant: Plant, *, annotator: str) -> None:
        self.plant, self.annotator = plant, _checked(annotator, plant=plant)
        self._addresses = table_addresses(plant)
        _check_environments(plant)
        self._files = PlantFiles()
        self._sizes, self.num_left_out = _frames(plant, files=self._files)
        self.frames: Sequence[str] = tuple(self._sizes)
        self._digests: dict[str, str] = {}
        """Of the frames that were seen."""
        self._actions: list[Action] = []
        self._is_writing = threading.Lock()
        self._decoders = threading.BoundedSemaphore(NUM_DECODERS)
        self._read()

    def view(self, which: Which, *, after: int = -1, before: int | None = None) -> dict[str, Any]:
        """The next `PAGE` frames of a kind after a number, or those that come before one, and how far things are."""
        tables = self._read()
        verdicts = read_verdicts(tables.golden, plant=self.plant)
        labelled = labelled_frames(tables.labels)
        is_shown: dict[Which, Callable[[str], bool]] = {
            "todo": lambda frame: self.annotator not in verdicts.get(frame, {}),
            "mine": lambda frame: self.annotator in verdicts.get(frame, {}),
            "open": lambda frame: frame not in labelled,
            "apart": lambda frame: self.annotator in verdicts.get(frame, {}) and _is_apart(verdicts[frame]),
        }
        found = [number for number, frame in enumerate(self.frames) if is_shown[which](frame)]
        if before is None:
            numbers = [number for number in found if number > after][:PAGE]
        else:
            numbers = [number for number in found if number < before][-PAGE:]
        frames = [self._shown(number, verdicts=verdicts, is_open=which == "apart") for number in numbers]
        first = found.index(numbers[0]) if numbers else len(found)
        return {"frames": frames, "first": first, "of": len(found), **self._counts(tables, verdicts=verdicts)}

    def label(self, numbers: Sequence[int], name: str | None) -> dict[str, Any]:
        """Afterwards these frames are of this class to the annotator, or of none, and that is kept. Raises Refusal."""
        if name is not None and name not in self.plant.annotated:
            known = ", ".join(self.plant.annotated)
            raise Refusal(f"unknown class {name!r}; known: {known}", plant=self.plant.name, field="class")
        frames = [self._frame(number, status=422) for number in numbers]
        for number, frame in zip(numbers, frames, strict=True):
            if name is not None and frame not in self._digests:
                self.picture(number, longest_px=THUMBNAIL_PX)
        said, actions = dict.fromkeys(frames, name), list[Action]()

        def judged(tables: Tables) -> Tables:
            digests = self._known(frames, tables=tables)
            changed, action = judge(tables, plant=self.plant, annotator=self.annotator, said=said, digests=digests)
            actions.append(action)
            return changed

        with self._is_writing:
            changed = self._change(judged)
            self._actions += actions
        return self._told(frames, changed)

    def undo(self) -> dict[str, Any]:
        """Afterwards the session's last action that stands is taken back. Raises Refusal where there is none."""
        with self._is_writing:
            if not self._actions:
                raise Refusal("there is nothing to undo in this session", status=409, plant=self.plant.name)
            action = self._actions[-1]
            frames = list(action.said)
            changed = self._change(
                lambda tables: take_back(
                    tables, plant=self.plant, action=action, digests=self._known(frames, tables=tables)
                )
            )
            self._actions.pop()
        return self._told(list(action.said), changed)

    def picture(self, number: int, *, longest_px: int | None = None) -> bytes:
        """The frame as JPEG, whole or at most this large. Raises Refusal where it cannot be shown."""
        frame = self._frame(number, status=404)
        try:
            if self._sizes[frame] > MAX_BYTES:
                raise InputError(f"more than {MAX_BYTES >> 20} MiB")
            geometry = self.plant.environments[self._environment(frame)].geometry
            data = self._files.read(self.plant.images, frame)
            with self._decoders:
                pixels = decode_reduced(
                    data,
                    reduction=lambda width, height: max(1, min(width, height) // (longest_px or max(width, height))),
                    bit_depth=geometry.bit_depth,
                    window=geometry.window,
                ).pixels
                jpeg = _jpeg(pixels, longest_px=longest_px)
        except (InputError, OSError) as error:
            detail = error.detail if isinstance(error, InputError) else type(error).__name__
            raise Refusal(f"{frame} cannot be shown: {detail}", plant=self.plant.name, field="frames") from None
        self._digests[frame] = sha256(data)
        return jpeg

    def summary(self) -> dict[str, Any]:
        """What the session did, and what is left."""
        tables = self._read()
        counts = self._counts(tables, verdicts=read_verdicts(tables.golden, plant=self.plant))
        mine: dict[str, str | None] = {}
        for action in self._actions:
            mine |= action.said
        labels, golden = self._addresses
        return {
            "plant": self.plant.name,
            "annotator": self.annotator,
            "labelled": sum(name is not None for name in mine.values()),
            "unlabelled": counts["num_frames"] - counts["num_labelled"],
            "disagreements": counts["num_apart"],
            "labels": labels,
            "golden": golden,
        }

    def _frame(self, number: int, *, status: int) -> str:
        if not 0 <= number < len(self.frames):
            remedy = f"Frames are numbered 0 to {len(self.frames) - 1}"
            plant = self.plant.name
            raise Refusal(f"there is no frame {number}", status=status, plant=plant, field="frames", remedy=remedy)
        return self.frames[number]

    def _known(self, frames: Sequence[str], *, tables: Tables) -> dict[str, str]:
        """The digests of frames: as they were seen, or as the table has them."""
        recorded = {tables.golden.frame(row): tables.golden.cell(row, "sha256") for row in tables.golden.rows}
        return {frame: self._digests.get(frame) or recorded.get(frame, "") for frame in frames}

    def _environment(self, frame: str) -> str:
        names = self.plant.environments
        match = re.search(self.plant.environment_pattern, frame) if self.plant.environment_pattern else None
        name = match.group(1) if match else next(iter(names)) if len(names) == 1 else None
        if name not in names:
            raise InputError("its path names no environment of the plant")
        return str(name)

    def _shown(self, number: int, *, verdicts: Verdicts, is_open: bool) -> dict[str, Any]:
        said = verdicts.get(self.frames[number], {})
        shown = {"number": number, "frame": self.frames[number], "mine": said.get(self.annotator)}
        return {**shown, "said": said} if is_open else shown

    def _counts(self, tables: Tables, *, verdicts: Verdicts) -> dict[str, int]:
        labelled = labelled_frames(tables.labels)
        return {
            "num_frames": len(self.frames),
            "num_mine": sum(self.annotator in verdicts.get(frame, {}) for frame in self.frames),
            "num_labelled": sum(frame in labelled for frame in self.frames),
            "num_apart": sum(_is_apart(verdicts.get(frame, {})) for frame in self.frames),
        }

    def _told(self, frames: Sequence[str], tables: Tables) -> dict[str, Any]:
        """What a page must know of frames that changed: the annotator's own verdicts, and how far things are."""
        verdicts, wanted = read_verdicts(tables.golden, plant=self.plant), set(frames)
        mine = {
            number: verdicts.get(frame, {}).get(self.annotator)
            for number, frame in enumerate(self.frames)
            if frame in wanted
        }
        return {"mine": mine, **self._counts(tables, verdicts=verdicts)}

    # --- the tables ---------------------------------------------------------------------------------------------------

    def _read(self) -> Tables:
        """Raises InputError for what is no such table."""
        found = []
        for address, columns in zip(self._addresses, (LABEL_COLUMNS, GOLDEN_COLUMNS), strict=True):
            store, name = _place(address)
            try:
                data = store.read(name)
            except MissingFile:
                data = None
            found.append(read_table(data, columns=columns, plant=self.plant.name, address=address))
        return Tables(*found)

    def _change(self, change: Callable[[Tables], Tables]) -> Tables:
        """Afterwards both tables are what the function makes of them, and nobody else's change is lost.

        The locks lie beside the tables, where all who write them meet, whatever store they know. Verdicts are written
        first: should this process be killed before the labels are, a label stays as it was until its frame is judged
        again.
        """
        with contextlib.ExitStack() as held:
            claims = [held.enter_context(self._locked(address)) for address in sorted(self._addresses)]
            tables = self._read()
            changed = change(tables)
            pairs = ((tables.labels, changed.labels), (tables.golden, changed.golden))
            for address, (old, new) in reversed([*zip(self._addresses, pairs, strict=True)]):
                if new != old:
                    for claim in claims:
                        claim.check()
                    store, name = _place(address)
                    store.write(name, new.to_bytes())
        return changed

    def _locked(self, address: str) -> contextlib.AbstractContextManager[Any]:
        store, name = _place(address)
        beside = open_store(f"{store.uri}/.crossplant")
        return locked(beside, f"label-{name}", timeout_s=TIMEOUT_S, ttl_s=TTL_S)


def _place(address: str) -> tuple[Store, str]:
    folder, _, name = address.rpartition("/")
    return open_store(folder), name


def _checked(annotator: str, *, plant: Plant) -> str:
    if 0 < len(annotator) <= MAX_NAME and annotator.isprintable() and annotator == annotator.strip():
        return annotator
    remedy = f"Write a name of 1 to {MAX_NAME} characters"
    raise InputError("is no annotator's name", plant=plant.name, field="--annotator", remedy=remedy)


def _check_environments(plant: Plant) -> None:
    if len(plant.environments) > 1 and not plant.environment_pattern:
        what = "several environments are declared, but no path tells which one a frame is from"
        raise InputError(what, plant=plant.name, field="environment_pattern", remedy="Set environment_pattern")


def _frames(plant: Plant, *, files: PlantFiles) -> tuple[dict[str, int], int]:
    """Path and size of every frame, sorted, and how many have names that no table can hold. Raises InputError."""
    found, num_left_out = {}, 0
    for path, size, _ in sorted(files.list(plant.images)):
        if not path.lower().endswith(tuple(ENDINGS)):
            continue
        if path.isprintable() and "\\" not in path and path.strip():
            found[path] = size
        else:
            num_left_out += 1
    if not found:
        remedy = f"Known endings: {' '.join(sorted(ENDINGS))}"
        raise InputError(f"there are no frames in {plant.images}", plant=plant.name, field="images", remedy=remedy)
    return found, num_left_out


def _is_apart(said: Mapping[str, str]) -> bool:
    return bool(said) and agreed(said) is None


def _jpeg(pixels: Pixels, *, longest_px: int | None) -> bytes:
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    if longest_px:
        image.thumbnail((longest_px, longest_px))
    image.save(buffer, "JPEG", quality=80 if longest_px else 92)
    return buffer.getvalue()
