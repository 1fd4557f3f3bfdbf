"""What the runs of a fleet are made of: label tables, packs, the trunk, activations, and the models in storage.

Every process opens its own; what one has written to the cache the others map into memory.
"""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from cluster import packs
from cluster.catalog import Catalog
from cluster.retention import cache_of, pack_store, sweep
from cluster.storage import LocalStore, PlantFiles, open_store
from jobs import lora
from jobs.activations import PlantData, RunData, prepare, training_rows
from jobs.compress import Evaluator, export_trunk
from jobs.leave_out import LeftOut
from jobs.model import CutModel, load_model
from jobs.normality import FILE, fit_normality
from jobs.plan import Plan, RunSpec
from jobs.recipe import Recipe
from jobs.train import Checkpoints, Fitted, Parent, World, fit
from plants.bundle import ADAPTER
from plants.copies import QUARANTINE
from plants.errors import InputError
from plants.governance import kept, oldest
from plants.normality import Normalities
from plants.plant import Fleet, Plant
from plants.views import view_boxes

LEARNING_ROLES = ("train", "select")


class Material:
    """The inputs of a fleet's runs on one trunk, opened when first asked for."""

    def __init__(self, fleet: Fleet, *, cache: Path, recipe: Recipe, trunk: int = 0) -> None:
        self.fleet, self.cache, self.recipe = fleet, cache, recipe
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
        )

    def to_config(self) -> dict[str, Any]:
        """Plain data from which another process makes the same material."""
        return {
            "fleet": self.fleet.model_dump(mode="json"),
            "cache": str(self.cache),
            "recipe": self.recipe.model_dump(mode="json"),
            "trunk": self.trunk_index,
        }

    @cached_property
    def model(self) -> CutModel:
        """The backbone, divided at the fleet's cuts."""
        return load_model(self.trunk, read=read_uri)

    @cached_property
    def trunk_path(self) -> Path:
        """The trunk as ONNX in the cache, exported on first use."""
        model = self.model
        folder = self.cache / "exports" / f"{model.weights_digest[:24]}-{'-'.join(map(str, model.cuts))}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "trunk.onnx"
        if not path.exists():
            export_trunk(model, path)
        return path

    @cached_property
    def runner(self) -> TrunkRunner:
        """What computes activations here: torch on a GPU, the exported trunk otherwise."""
        return TrunkRunner(self)

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
            plant = self.fleet.plant(name)
            labels = self.rows(name)
            labels = labels[labels["role"].isin(LEARNING_ROLES)]
            cache, now = cache_of(plant, cache=self.cache), datetime.now(UTC)
            sweep(LocalStore(cache), "activations", plants=[plant], now=now)
            pack = self.pack(plant, rows=labels)
            labels = labels if left_out is None else labels[~left_out.holds(labels)]
            rows = training_rows(plant, labels=labels, pack=pack, seed=self.fleet.seed)
            self._data[name, left_out] = prepare(
                plant,
                rows=rows,
                pack=pack,
                pack_digest=pack.digest,
                trunk=self.runner,
                cuts=self.cuts,
                policy=self.recipe.augment,
                views=self.recipe.views,
                cache=cache,
                since=oldest(labels, now=now),
                seed=self.fleet.seed,
                progress=progress,
            )
        return self._data[name, left_out]

    @property
    def cuts(self) -> tuple[int, ...]:
        """The cuts that the recipe needs."""
        return tuple(sorted({0, *(stage.cut for stage in self.recipe.stages)}))

    def save(self, fitted: Fitted, *, spec: RunSpec, plan: Plan) -> None:
        """The run's model is in storage, weights before words."""
        prefix = f"runs/{plan.plan_id}/{spec.run_id}"
        states = {"model": fitted.state, **({"start": fitted.start} if plan.is_parent(spec) else {})}
        for name, state in states.items():
            weights = save_tensors({k: v.contiguous() for k, v in state.items()})
            self.store.write(f"{prefix}/{name}.safetensors", weights)
        base = spec.parent or lora.PRETRAINED
        adapter = {"rank": spec.recipe.get("lora_rank"), "cut": fitted.cut, "base": base} if fitted.adapter else None
        if adapter:
            self.store.write(f"{prefix}/{ADAPTER}", lora.pack(fitted.adapter, words=adapter))
        words = {
            "run_id": spec.run_id,
            "kind": spec.kind,
            "plants": list(spec.plants),
            "target": spec.target,
            "parent": spec.parent,
            "seed": spec.seed,
            "recipe": spec.recipe,
            "leaves": list(fitted.leaves),
            "cut": fitted.cut,
            "trunk": self.trunk.model_dump(mode="json"),
            "weights_digest": self.model.weights_digest,
            "adapter": adapter,
            "select": fitted.score.value,
            "select_nll": fitted.score.nll,
            "history": fitted.history,
            "notes": fitted.notes,
        }
        self.store.write(f"{prefix}/model.json", json.dumps(words).encode())

    def save_normality(self, found: Normalities, *, spec: RunSpec, plan: Plan) -> None:
        """What the run found to be normal is in storage."""
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, FILE)
            found.save(path)
            self.store.write(f"runs/{plan.plan_id}/{spec.run_id}/{FILE}", path.read_bytes())

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
        weights = self.store.read(f"{prefix}/{what}.safetensors")
        return words, load_tensors(weights), hashlib.sha256(weights).hexdigest()


class TrunkRunner:
    """The frozen trunk on this machine, on its GPU where it has one; branches are trained on the CPU.

    Without a GPU it is the exported file in ONNX Runtime: the very trunk that serves, and measured on two AVX2 cores it
    gave 550 images/s where torch gave 145 (mobilenetv2_035 at 160 px, one thread, blocks of 8).
    """

    BLOCK = 8

    def __init__(self, material: Material) -> None:
        self.weights_digest = material.model.weights_digest
        self._cuda = copy.deepcopy(material.model.trunk).to("cuda") if torch.cuda.is_available() else None
        self._onnx = None if self._cuda else Evaluator(material.trunk_path)

    def activations(self, images: np.ndarray) -> Mapping[int, np.ndarray]:
        """Activations float32 [N, ...] by cut of images uint8 [N, S, S, 3]."""
        if self._cuda is None:
            assert self._onnx is not None
            return self._onnx.activations(images, batch=self.BLOCK)
        with torch.inference_mode():
            found = self._cuda(torch.from_numpy(images).cuda())
            return {cut: value.float().cpu().numpy() for cut, value in found.items()}


def read_uri(uri: str) -> bytes:
    """The bytes at a path or s3:// address, e.g. of a weights file."""
    folder, _, name = uri.rpartition("/")
    return open_store(folder).read(name)


def fit_run(
    spec: RunSpec,
    *,
    material: Material,
    plan: Plan,
    world: World | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> Fitted:
    """The run is fitted, resumed from its last epoch when there is one, and its model saved."""
    world = world or World()
    if spec.kind == "normality":
        fitted, normality = fit_normality(spec, material=material)
        material.save_normality(normality, spec=spec, plan=plan)
        material.save(fitted, spec=spec, plan=plan)
        return fitted
    store, state = material.store, f"runs/{plan.plan_id}/{spec.run_id}/state.pt"
    parent = None
    if spec.parent:
        words, start, _ = material.load(spec.parent, plan_id=plan.plan_id, what="start")
        parent = Parent(cut=words["cut"], leaves=tuple(words["leaves"]), state=start)
    fitted = fit(
        material.model,
        data=RunData(tuple(material.data(name, left_out=spec.left_out) for name in spec.plants)),
        leaf_sets=material.leaf_sets(spec.plants),
        leaves=material.leaves(spec.plants),
        recipe=Recipe.model_validate(spec.recipe),
        seed=spec.seed,
        parent=parent,
        world=world,
        checkpoints=Checkpoints(
            load=lambda: store.read(state) if store.exists(state) else None,
            save=lambda data: _write(store, state, data),
        ),
        on_epoch=on_epoch,
    )
    if world.rank == 0:
        material.save(fitted, spec=spec, plan=plan)
    return fitted


def _write(store: Any, key: str, data: bytes) -> None:
    store.write(key, data)
