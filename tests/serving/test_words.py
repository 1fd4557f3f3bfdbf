from __future__ import annotations

import gc
import tracemalloc

import numpy as np

from plants.bundle import Manifest, PlantView, TrunkRef, canonical, parse
from plants.costs import Policy
from plants.geometry import Environment, Geometry
from serving.heads import Heads
from serving.predictor import Predictor
from serving.scoring import Model, Trunk
from serving.words import Vocabulary

CLASSES = ("ok", "dent", "scratch", "stain", "chip")
NUM_FEATURES = 512


def manifest(number: int) -> bytes:
    """As a fleet's plants have them: the same classes and cameras, names and recipes of their own."""
    plant = f"plant-{number}"
    view = PlantView(
        classes=CLASSES,
        ok=("ok",),
        leaf_sets={name: (name,) for name in CLASSES},
        environments={name: Environment(geometry=Geometry(fit="tiles", tile_px=224)) for name in ("cam-1", "cam-2")},
    )
    trunk = TrunkRef(sha256="a" * 64, backbone="resnet18", weights_digest="b" * 64, size_px=224, cuts=(0, 1))
    return canonical(
        Manifest(
            kind="own",
            run_id=f"own-{plant}",
            name=f"fleet/own-{plant}",
            plants=(plant,),
            leaves=CLASSES,
            trunk=trunk,
            serves={plant: view},
            seed=0,
            recipe={f"field{at}": [number, at] for at in range(40)},
            data={plant: "c" * 64},
            code_version="1",
            created_at="2026-01-01",
            files=dict.fromkeys(("branch.onnx", "probe.npz", "report.json", "card.md"), "d" * 64),
        )
    )


def test_what_is_equal_at_many_plants_is_one_object_and_what_is_not_is_kept_apart():
    vocabulary = Vocabulary()
    one, two = (vocabulary.words(parse(manifest(number))) for number in (1, 2))
    assert one.serves["plant-1"] is two.serves["plant-2"]
    assert one.leaves is two.leaves
    read = parse(manifest(3))
    other = read.model_copy(
        update={"serves": {"plant-3": read.serves["plant-3"].model_copy(update={"environments": {"x": Environment()}})}}
    )
    three = vocabulary.words(other)
    assert three.serves["plant-3"].environments == {"x": Environment()}
    assert three.serves["plant-3"] is not one.serves["plant-1"]


def test_one_more_plant_on_a_head_costs_less_than_a_twentieth_of_a_megabyte_with_all_that_belongs_to_it():
    num, heads, vocabulary = 300, Heads(), Vocabulary()
    trunk, rng = Trunk("a" * 64, 224, None), np.random.default_rng(0)  # type: ignore[arg-type]

    def predictor(number: int) -> Predictor:
        words = vocabulary.words(parse(manifest(number)))
        weights = rng.normal(size=(len(CLASSES), NUM_FEATURES)).astype(np.float32)
        model = Model(f"{number:064d}", words, trunk, heads.put(weights, np.zeros(len(CLASSES), np.float32)))
        plant = f"plant-{number}"
        policy = Policy(plant=plant, classes=CLASSES, ok=("ok",), pass_below=0.2, reject_above=0.6)
        found = Predictor(plant, model, policy)
        assert len(found._projection) == len(found._ok) == len(CLASSES)
        return found

    kept = [predictor(-1)]
    gc.collect()
    tracemalloc.start()
    try:
        kept += [predictor(number) for number in range(num)]
        gc.collect()
        kilobytes = tracemalloc.get_traced_memory()[0] / num / 1000
    finally:
        tracemalloc.stop()
    assert kilobytes < 50, f"{kilobytes:.1f} kB a plant, of which the head is {len(CLASSES) * NUM_FEATURES * 4 / 1000}"
    print(f"{kilobytes:.1f} kB a plant")
