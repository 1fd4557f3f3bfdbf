"""What a replica keeps of a bundle's manifest: a few words, and one object for what is equal at many plants.

A manifest is 18 kB of Python objects once it is read, more than a head. Recipe, data, digests and governance are of no
use after the bundle was checked, and a fleet's plants mostly have cameras, classes and leaves in common.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from plants.bundle import Kind, Manifest, PlantView
from plants.ensembles import Rule
from plants.geometry import Environment
from plants.variants import Variant


@dataclass(frozen=True, slots=True)
class Words:
    """A manifest's fields that answers depend on, by their names there."""

    name: str
    kind: Kind
    leaves: tuple[str, ...]
    cut: int
    tier: Literal["head", "adapter", "branch", "whole"]
    rule: Rule
    serves: Mapping[str, PlantView]
    variant: Variant = "float"
    """What it was loaded from, see `serving.variants`."""


class Vocabulary:
    """Makes `Words` that share what is equal. For any thread."""

    def __init__(self) -> None:
        self._views: weakref.WeakValueDictionary[str, PlantView] = weakref.WeakValueDictionary()
        self._environments: weakref.WeakValueDictionary[str, Environment] = weakref.WeakValueDictionary()
        self._leaves: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._lock = threading.Lock()

    def words(self, manifest: Manifest, *, variant: Variant = "float") -> Words:
        """The manifest's words, of a bundle that is loaded in this variant."""
        with self._lock:
            return Words(
                name=manifest.name,
                kind=manifest.kind,
                leaves=self._leaves.setdefault(manifest.leaves, manifest.leaves),
                cut=manifest.cut,
                tier=manifest.tier,
                rule=manifest.rule,
                serves={sys.intern(plant): self._view(view) for plant, view in manifest.serves.items()},
                variant=variant,
            )

    def _view(self, view: PlantView) -> PlantView:
        key = view.model_dump_json()
        found = self._views.get(key)
        if found is None:
            shared = {sys.intern(name): self._environment(one) for name, one in view.environments.items()}
            found = self._views[key] = view.model_copy(update={"environments": shared})
        return found

    def _environment(self, environment: Environment) -> Environment:
        return self._environments.setdefault(environment.model_dump_json(), environment)
