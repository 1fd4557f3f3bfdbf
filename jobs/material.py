"""What the runs of a fleet are made of: label tables, packs, the trunk, activations, and the models in storage.

Every process opens its own; what one has written to the cache the others map into memory.
"""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from cluster import packs
from cluster.catalog import Catalog
from cluster.retention import cache_of, pack_store, sweep
from cluster.settings import CACHE_GB
from cluster.storage import LocalStore, PlantFiles, open_store
from jobs import lora
from jobs.activations import Layout, PlantData, training_rows
from jobs.caching import absent, prepare
from jobs.compress import export_trunk
from jobs.compute import PLAIN, Compute, Computes
from jobs.leave_out import LeftOut
from jobs.model import CutModel, load_model
from jobs.normality import FILE
from jobs.plan import Plan, RunSpec
from jobs.recipe import Recipe
from jobs.stream import Stream, streamed_cuts
from jobs.train import Fitted
from jobs.trunk import TrunkRunner
from plants.bundle import ADAPTER, SEVERITY
from plants.copies import QUARANTINE
from plants.errors import InputError
from plants.governance import kept, oldest
from plants.normality import Normalities
from plants.plant import Fleet, Plant
from plants.severity import SeverityHead
from plants.views import view_boxes

LEARNING_ROLES = ("train", "select")


class Material:
    """The inputs of a fleet's runs on one trunk, opened when first asked for."""

    def __init__(
        self, fleet: Fleet, *, cache: Path, recipe: Recipe, trunk: int = 0, cache_gb: float = CACHE_GB
    ) -> None:
        """cache_gb: what the cache may take here; cuts whose activations would not fit are streamed."""
        self.fleet, self.cache, self.recipe, self.cache_gb = fleet, cache, recipe, cache_gb
        self.trunk = fleet.trunks[trunk]
        self.trunk_index = trunk
        self.store = open_store(fleet.store)
        self.catalog = Catalog.of(fleet)
        self._data: dict[tuple[str, LeftOut | None], PlantData] = {}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Material:
        """The material that `to_config` described, in another process."""
        return cls(
            Fleet.model_validate(config["fleet"]),
            cache=Path(config["cache"]),
            recipe=Recipe.model_validate(config["recipe"]),
            trunk=config["trunk"],
            cache_gb=config["cache_gb"],
        )

    def to_config(self) -> dict[str, Any]:
        """Plain data from which another process makes the same material."""
        return {
            "fleet": self.fleet.model_dump(mode="json"),
            "cache": str(self.cache),
            "recipe": self.recipe.model_dump(mode="json"),
            "trunk": self.trunk_index,
            "cache_gb": self.cache_gb,
        }

    @cached_property
    def model(self) -> CutModel:
        """The backbone, divided at the fleet's cuts."""
        return load_model(self.trunk, read=read_uri)

    @cached_property
    def learner(self) -> CutModel:
        """The model that trains: on the GPU where there is one, else the same."""
        return copy.deepcopy(self.model).to("cuda") if torch.cuda.is_available() else self.model

    @cached_property
    def trunk_path(self) -> Path:
        """The trunk as ONNX in the cache, exported on first use."""
        model = self.model
        cuts = "-".join(map(str, model.cuts))
        folder = self.cache / "exports" / f"{model.weights_digest[:24]}-{cuts}-map"  # earlier ones gave no map
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "trunk.onnx"
        if not path.exists():
            export_trunk(model, path)
        return path

    @cached_property
    def runner(self) -> TrunkRunner:
        """What computes activations here: torch on a GPU, the exported trunk otherwise."""
        return TrunkRunner(self)

    @cached_property
    def computes(self) -> Computes:
        """What this machine computes fastest in."""
        return Computes(self.cache / "compute", model=self.learner, threads=torch.get_num_threads())

    def compute(self, cut: int) -> Compute:
        """In what the stages above a cut are trained."""
        return PLAIN if self.recipe.compute == "float32" else self.computes.of_branch(cut, batch=self.recipe.batch)

    @cached_property
    def streamed(self) -> tuple[int, ...]:
        """The recipe's cuts whose activations are not cached."""
        inputs = sum(self._expected_inputs(plant.name) for plant in self.fleet.plants)
        return streamed_cuts(
            self.model.shapes,
            cuts=self.cuts,
            inputs=inputs,
            views=self.recipe.views,
            deepest=self.model.max_cut if self.cuts[-1] else -1,
            budget_bytes=self.cache_gb * 1e9 - self._packs_in_cache(),
            source=self.recipe.source,
        )

    def _packs_in_cache(self) -> int:
        """Bytes of the packs that lie in the cache, beside the activations: of a store elsewhere, or of none."""
        size, found = 3 * self.trunk.size_px**2, 0
        for plant in self.fleet.plants:
            place = pack_store(self.fleet, plant, cache=self.cache).local_path("packs")
            if place is None or place.is_relative_to(self.cache):
                found += size * self._expected_inputs(plant.name)
        return found

    def export_trunk_once(self) -> None:
        """The exported trunk is in the cache before many processes ask for it."""
        _ = self.trunk_path

    def leaf_sets(self, names: Sequence[str]) -> dict[str, dict[str, tuple[str, ...]]]:
        """Plant -> plant class -> leaves."""
        return {name: self.fleet.leaf_sets(self.fleet.plant(name)) for name in names}

    def leaves(self, names: Sequence[str]) -> tuple[str, ...]:
        """The outputs of a model of these plants."""
        return self.fleet.leaves([self.fleet.plant(name) for name in names])

    def pack(self, plant: Plant, *, rows: pd.DataFrame) -> packs.Pack:
        """The decoded inputs of these rows, from the cache, the store, or the frames themselves."""
        files = PlantFiles()
        return packs.build(
            rows,
            plant=plant,
            trunk_size_px=self.trunk.size_px,
            interpolation=self.model.interpolation,
            read=lambda frame: files.read(plant.images, frame),
            store=pack_store(self.fleet, plant, cache=self.cache),
            cache_dir=self.cache,
        )

    def rows(self, name: str) -> pd.DataFrame:
        """The plant's label rows that play a role and whose frames may still be stored, see `plants.governance`."""
        rows = self.catalog.rows(name)
        return kept(self.fleet.plant(name), rows[rows["role"] != QUARANTINE], now=datetime.now(UTC))

    def largest_first(self, names: Sequence[str]) -> list[str]:
        """The plants by how many inputs their frames make, the most first: so that no worker is last for long.

        A plant whose geometry no longer fits its frames counts as none; its runs will say why.
        """
        return sorted(names, key=lambda name: (-self._expected_inputs(name), name))

    def _expected_inputs(self, name: str) -> int:
        environments = self.fleet.plant(name).environments
        sizes = self.rows(name).groupby(["environment", "width_px", "height_px"]).size()
        try:
            return sum(
                int(count) * len(view_boxes(int(width), int(height), geometry=environments[environment].geometry))
                for (environment, width, height), count in sizes.items()
            )
        except (InputError, KeyError):
            return 0

    def data(
        self, name: str, *, left_out: LeftOut | None = None, progress: Callable[[int, int], None] | None = None
    ) -> PlantData:
        """The plant's learning rows, without what is left out of them, with their activations in the cache."""
        left_out = left_out if left_out and left_out.plant == name else None
        if (name, left_out) not in self._data:
            source = self.source(name, left_out=left_out)
            found = prepare(
                **source,
                trunk=self.runner,
                cuts=self.cached_cuts,
                views=self.recipe.views,
                progress=progress,
            )
            if self.streamed:
                stream = Stream(
                    found.plant,
                    found.rows,
                    source["pack"],
                    self.runner,
                    self.recipe.augment,
                    cuts=frozenset(self.streamed),
                )
                found = replace(found, stream=stream)
            self._data[name, left_out] = found
        return self._data[name, left_out]

    def forget(self, names: Sequence[str]) -> None:
        """The data of these plants are opened anew when asked for: a file of theirs may have been damaged."""
        self._data = {key: data for key, data in self._data.items() if key[0] not in names}

    def learning_rows(self, name: str) -> pd.DataFrame:
        """The plant's label rows that runs learn from or choose by."""
        rows = self.rows(name)
        return rows[rows["role"].isin(LEARNING_ROLES)]

    def absent(self, name: str, *, labels: pd.DataFrame, pack: Layout) -> tuple[pd.DataFrame, tuple[int, ...]]:
        """What `data` would learn from of these label rows and that pack, and by view how many are not in the cache."""
        plant = self.fleet.plant(name)
        rows = training_rows(plant, labels=labels, pack=pack, seed=self.fleet.seed)
        named = {"policy": self.recipe.augment, "views": self.recipe.views, "seed": self.fleet.seed}
        cache = cache_of(plant, cache=self.cache)
        found = absent(plant, rows=rows, pack=pack, trunk=self.runner, cuts=self.cached_cuts, cache=cache, **named)
        return rows, found

    def source(self, name: str, *, left_out: LeftOut | None = None) -> dict[str, Any]:
        """What `jobs.caching.prepare` takes of a plant, whatever computes its activations."""
        plant, labels = self.fleet.plant(name), self.learning_rows(name)
        cache, now = cache_of(plant, cache=self.cache), datetime.now(UTC)
        sweep(LocalStore(cache), "activations", plants=[plant], now=now)
        pack = self.pack(plant, rows=labels)
        labels = labels if left_out is None else labels[~left_out.holds(labels)]
        return {
            "plant": plant,
            "rows": training_rows(plant, labels=labels, pack=pack, seed=self.fleet.seed),
            "pack": pack,
            "policy": self.recipe.augment,
            "cache": cache,
            "cache_gb": self.cache_gb,
            "since": oldest(labels, now=now),
            "seed": self.fleet.seed,
        }

    @property
    def cuts(self) -> tuple[int, ...]:
        """The cuts that the recipe needs."""
        return tuple(sorted({0, *(stage.cut for stage in self.recipe.stages)}))

    @property
    def cached_cuts(self) -> list[int]:
        """Those of them whose activations are cached."""
        return [cut for cut in self.cuts if cut not in self.streamed]

    def save(self, fitted: Fitted, *, spec: RunSpec, plan: Plan) -> None:
        """The run's model is in storage, weights before words; of a refused run its words alone."""
        prefix = f"runs/{plan.plan_id}/{spec.run_id}"
        has_start = bool(fitted.start) and fitted.start is not fitted.state
        states = {"model": fitted.state, **({"start": fitted.start} if has_start else {})}
        if fitted.is_refused:
            states = {}
        for name, state in states.items():
            weights = save_tensors({k: v.contiguous() for k, v in state.items()})
            self.store.write(f"{prefix}/{name}.safetensors", weights)
        base = spec.start or spec.parent or lora.PRETRAINED
        adapter = {"rank": spec.recipe.get("lora_rank"), "cut": fitted.cut, "base": base} if fitted.adapter else None
        if adapter:
            self.store.write(f"{prefix}/{ADAPTER}", lora.pack(fitted.adapter, words=adapter))
        if fitted.severity:
            self._save(fitted.severity, f"{prefix}/{SEVERITY}")
        words = {
            "run_id": spec.run_id,
            "kind": spec.kind,
            "plants": list(spec.plants),
            "target": spec.target,
            "parent": spec.parent,
            "parents": list(spec.parents),
            "seed": spec.seed,
            "recipe": spec.recipe,
            "leaves": list(fitted.leaves),
            "cut": fitted.cut,
            "start": "start" if has_start else "model",
            "trunk": self.trunk.model_dump(mode="json"),
            "weights_digest": self.model.weights_digest,
            "adapter": adapter,
            "select": fitted.score.value,
            "select_nll": fitted.score.nll,
            "history": fitted.history,
            "notes": fitted.notes,
            "reweighting": fitted.reweighting,
            "severity": fitted.severity is not None,
            "task": fitted.task,
            "donor": fitted.donor,
            "forgetting": fitted.forgetting,
        }
        self.store.write(f"{prefix}/model.json", json.dumps(words).encode())

    def save_normality(self, found: Normalities, *, spec: RunSpec, plan: Plan) -> None:
        """What the run found to be normal is in storage."""
        self._save(found, f"runs/{plan.plan_id}/{spec.run_id}/{FILE}")

    def _save(self, found: Normalities | SeverityHead, key: str) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, "file")
            found.save(path)
            self.store.write(key, path.read_bytes())

    def severity(self, run_id: str, *, plan_id: str) -> SeverityHead | None:
        """The severity head that a run left; None where it left none."""
        key = f"runs/{plan_id}/{run_id}/{SEVERITY}"
        if not self.store.exists(key):
            return None
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, SEVERITY)
            path.write_bytes(self.store.read(key))
            return SeverityHead.load(path)

    def normality(self, name: str, *, plan: Plan) -> Normalities:
        """What is normal at a plant, by the plan's run that is done; nothing where there is none."""
        for run in plan.runs:
            prefix = f"runs/{plan.plan_id}/{run.run_id}"
            if run.kind == "normality" and run.target == name and self.store.exists(f"{prefix}/model.json"):
                with tempfile.TemporaryDirectory() as scratch:
                    path = Path(scratch, FILE)
                    path.write_bytes(self.store.read(f"{prefix}/{FILE}"))
                    return Normalities.load(path)
        return Normalities()

    def load(
        self, run_id: str, *, plan_id: str, what: Literal["model", "start"] = "model"
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor], str]:
        """A run's words from storage, the weights it serves or left for others to start from, and their SHA-256."""
        prefix = f"runs/{plan_id}/{run_id}"
        words: dict[str, Any] = json.loads(self.store.read(f"{prefix}/model.json"))
        weights = self.store.read(f"{prefix}/{words['start'] if what == 'start' else what}.safetensors")
        return words, load_tensors(weights), hashlib.sha256(weights).hexdigest()


def read_uri(uri: str) -> bytes:
    """The bytes at a path or s3:// address, e.g. of a weights file."""
    folder, _, name = uri.rpartition("/")
    return open_store(folder).read(name)
