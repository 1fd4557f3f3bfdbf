"""What frames look like, kept beside their packs, so that every machine of the fleet finds copies of them.

4 KiB a frame, by the SHA-256 of the image, in pieces that are written once and named by what they hold: two imports at
once lose nothing. Governed as packs are: see `plants.governance`.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import numpy as np

from cluster import retention
from cluster.storage import LocalStore, MissingFile
from plants.alignment import Pixels
from plants.duplicates import SIGNATURE
from plants.errors import InputError
from plants.hashing import sha256
from plants.plant import Fleet, Plant

NUM_READERS = 8
FORMAT = 2
"""Of the pieces; what older versions kept is not read."""


class Signatures:
    """The kept signatures of one plant's frames, as `plants.duplicates.signature`; contacts nothing when made."""

    def __init__(self, fleet: Fleet, plant: Plant, *, cache: Path) -> None:
        self.plant = plant
        self.store = retention.pack_store(fleet, plant, cache=cache)
        self.cache = LocalStore(retention.cache_of(plant, cache=cache))
        depths = [(name, e.geometry.bit_depth, e.geometry.window) for name, e in plant.environments.items()]
        self.prefix = f"looks/{plant.name}-{sha256(repr((FORMAT, SIGNATURE, depths)).encode())[:8]}"

    def read(self, images: Collection[str], *, now: datetime) -> dict[str, Pixels]:
        """SHA-256 -> signature uint8 [64, 64] of those of these images that are known. What is due is deleted first.

        Raises InputError where the store cannot be read.
        """
        for place in (self.store, self.cache):
            retention.sweep(place, "looks", plants=[self.plant], now=now)
        stems = [entry.key.removesuffix(".npz") for entry in self.store.list(self.prefix) if entry.key[-4:] == ".npz"]
        wanted = set(images)
        with ThreadPoolExecutor(NUM_READERS, thread_name_prefix="signatures") as pool:
            pieces = pool.map(self._piece, stems)
            return {sha: one for piece in pieces for sha, one in piece.items() if sha in wanted}

    def write(self, signatures: Mapping[str, Pixels], *, since: datetime) -> None:
        """These are kept too; since: when the oldest of the frames was taken."""
        stem = f"{self.prefix}/{sha256(','.join(sorted(signatures)).encode())[:24]}"
        data = io.BytesIO()
        np.savez(data, sha256=np.array([*signatures]), signatures=np.stack([*signatures.values()]))
        retention.record(self.store, stem, since={self.plant.name: since})
        self.store.write(f"{stem}.npz", data.getvalue())

    def _piece(self, stem: str) -> dict[str, Pixels]:
        try:
            path = self._local(stem)
            with np.load(path, allow_pickle=False) as file:
                return dict(zip(file["sha256"].tolist(), file["signatures"], strict=True))
        except (MissingFile, FileNotFoundError):  # another process of the fleet has swept it
            return {}
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            if isinstance(error, InputError):
                raise
            where, remedy = self.store.at(f"{stem}.npz"), "Delete it; it is made again"
            raise InputError("is not a readable file of signatures", file=where, remedy=remedy) from None

    def _local(self, stem: str) -> Path:
        """The piece on this machine: a bucket's is kept in the cache, as old as the bucket's."""
        key = f"{stem}.npz"
        if path := self.store.local_path(key):
            return path
        path = self.cache.local_path(key)
        if not path.exists():
            retention.copy_record(stem, source=self.store, target=self.cache)
            self.store.download(key, path)
        return path
