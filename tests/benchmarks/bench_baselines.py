"""How long the frozen floor of a whole fleet takes: `crossplant tune --frozen`, and what people run in its place.

Fifteen settings (five strengths of L2, three weights of rare classes) at every plant of the embedded fleet but fargo
(tiles). The peers: `epochs`, the trunk run again for every image in every epoch of every setting, as a frozen net is
trained by hand; `recompute`, timm's features computed once a setting and scikit-learn's logistic regression. Each side
is a process of its own measured from its start, with the layout of the net that a trial found fastest; peers have their
images decoded in memory. `epochs` is measured on some settings and the rest counted in proportion. Quality is looked
at beside: each side's best on select, macro-F1 per part on decide. Prints one JSON object last.

    .venv/bin/python tests/benchmarks/bench_baselines.py                   one seed, some minutes
    .venv/bin/python tests/benchmarks/bench_baselines.py --seeds 0 1 2
    .venv/bin/python tests/benchmarks/bench_baselines.py --backbone mobilenetv2_100 --weights FILE --size-px 224 \\
        --option pad_type=same --scale 0.4
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench_fleet import made
from measuring import Child, entry, even_niceness, machine, mean, note

TIMEOUT_S = 3600
EPOCHS, PATIENCE, BATCH, RATE = 20, 5, 32, 3e-3
NUM_BY_EPOCHS = 2
"""Settings of which `epochs` is measured."""
SIDES = ("ours", "recompute", "epochs")


def compare(given: argparse.Namespace) -> dict[str, Any]:
    """The figures of all sides."""
    given.scale = 0.25 if given.quick else given.scale
    folder = Path(tempfile.mkdtemp(prefix="bench-baselines-"))
    turns = []
    for seed in given.seeds[: 1 if given.quick else None]:
        base = made(folder / f"seed{seed}", seed=seed, given=given)
        base["fleet"]["trunks"][0]["options"] |= dict(pair.split("=") for pair in given.option)
        turn = {}
        for side in SIDES:
            task = {**base, "home": str(folder / f"seed{seed}" / side)}
            turn[side] = Child(__file__, side, task, folder=folder / f"seed{seed}").result(timeout_s=TIMEOUT_S)
            note(f"seed {seed}, {side}: {turn[side]['seconds']:.1f} s, {turn[side]['counted_s']:.1f} s of all settings")
        turns.append(turn)
    shutil.rmtree(folder, ignore_errors=True)
    return figures(turns, given=given)


def figures(turns: list[dict[str, Any]], *, given: argparse.Namespace) -> dict[str, Any]:
    """Ratios above 1 are in our favour; `steady` leaves out imports and the start of Ray."""

    def total(side: str, key: str) -> float:
        return sum(float(turn[side][key]) for turn in turns)

    found: dict[str, Any] = {"name": "baselines", "is_smoke_run": given.quick, "seeds": given.seeds}
    for side in SIDES:
        found[side] = {
            key: round(total(side, key) / len(turns), 2)
            for key in ("seconds", "counted_s", "steady_s")
            if key in turns[0][side]
        }
        found[side]["macro_f1"] = {
            name: [round(turn[side]["quality"][name], 4) for turn in turns] for name in turns[0][side]["quality"]
        }
        found[side]["mean_macro_f1"] = mean([v for turn in turns for v in turn[side]["quality"].values()])
        found[side]["worst_macro_f1"] = mean([min(turn[side]["quality"].values()) for turn in turns])
    for side in SIDES[1:]:
        found[f"ratio_{side}"] = round(total(side, "counted_s") / total("ours", "seconds"), 1)
        found[f"ratio_{side}_steady"] = round(total(side, "steady_s") / total("ours", "steady_s"), 1)
    found["computed"] = {side: turns[0][side].get("compute") for side in SIDES[1:]}
    return found | {"machine": machine(threads={"ours": given.slots, "peers": 2})}


# --- the sides, each in its own process ------------------------------------------------------------------------------


def _opened(task: dict[str, Any]) -> Any:
    from cluster.settings import Settings
    from jobs.material import Material
    from jobs.recipe import Recipe
    from plants.plant import Fleet

    settings = Settings(home=Path(task["home"]), slots=task["slots"])
    material = Material(Fleet.model_validate(task["fleet"]), cache=settings.cache, recipe=Recipe(stages=(), views=1))
    return settings, material


def ours(task: dict[str, Any]) -> dict[str, Any]:
    """The call that `crossplant tune --frozen` makes."""
    from rich.console import Console

    from jobs import baselines

    settings, material = _opened(task)
    out = Path(task["home"], "recipe.yaml")
    out.parent.mkdir(parents=True, exist_ok=True)
    began = time.time()
    found = baselines.frozen(material.fleet, settings=settings, named=(), out=out, show=Console(stderr=True))
    ended = time.time()
    best = {row["plant"]: row["config"] for row in found["finalists"]}
    return {
        "ended_at": ended,
        "counted_s": ended - began,
        "steady_s": ended - began,
        "num_settings": len(found["trials"]) // len(best),
        "quality": _quality(material, answer=lambda name: _our_head(name, material=material, **best[name])),
    }


def _our_head(name: str, *, material: Any, max_class_weight: float, l2: float) -> tuple[Callable[[Any], Any], Any]:
    """The plant's head at a setting, fitted again: from features [N, F] to logits, and its leaves."""
    import torch

    from jobs.activations import RunData
    from jobs.head import STRENGTHS, HeadFit, Lesson
    from jobs.supervision import Supervision

    data = RunData((material.data(name),))
    leaves = material.leaves([name])
    taught = Supervision(data, leaf_sets=material.leaf_sets([name]), leaves=leaves, max_class_weight=max_class_weight)
    at = torch.from_numpy(taught.train_ids)
    lesson = Lesson(data.fetch(0, ids=taught.train_ids), taught.targets[at], taught.mask[at], taught.weights[at])
    head = dict(HeadFit(lesson).path(STRENGTHS))[l2]
    return lambda features: head.logits(torch.from_numpy(features)).numpy(), leaves


class Frozen:
    """timm's net without a head, in the layout that computes these images [N, S, S, 3] fastest here."""

    COMPUTES = (("float32", "contiguous"), ("float32", "channels_last"), ("bfloat16", "channels_last"))

    def __init__(self, trunk: Any, *, images: Any) -> None:
        import torch

        from jobs.backbone import load_backbone

        torch.set_num_threads(2)
        loaded = load_backbone(trunk)
        self.net = loaded.net
        self.scale = torch.tensor([1 / (255 * s) for s in loaded.std]).view(1, 3, 1, 1)
        self.shift = torch.tensor([-m / s for m, s in zip(loaded.mean, loaded.std, strict=True)]).view(1, 3, 1, 1)
        self.compute = min(self.COMPUTES, key=lambda compute: self._seconds(compute, images=images[:128]))

    def _seconds(self, compute: tuple[str, str], *, images: Any) -> float:
        self.compute = compute
        self.features(images[:BATCH])
        start = time.perf_counter()
        self.features(images)
        return time.perf_counter() - start

    def features(self, images: Any) -> Any:
        """Pooled features float32 [N, F]."""
        import torch

        dtype, layout = self.compute
        memory = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        net, blocks = self.net.to(memory_format=memory), []
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            for i in range(0, len(images), BATCH):
                x = torch.from_numpy(images[i : i + BATCH]).permute(0, 3, 1, 2).to(torch.float32, memory_format=memory)
                blocks.append(net(x * self.scale + self.shift).float())
        return torch.cat(blocks)


def _taught(material: Any) -> dict[str, Any]:
    """Every plant's rows and pixels, decoded once."""
    from bench_fleet import _labels
    from plain_training import taught

    fleet = material.fleet
    return {
        name: taught(fleet.plant(name), labels=rows, spec=material.trunk, seed=fleet.seed)
        for name, rows in _labels(material).items()
    }


def _prepared(task: dict[str, Any]) -> tuple[Any, dict[str, Any], Frozen, float]:
    """A peer's material, images and net, and the seconds that decoding and the trial took: part of the work."""
    began = time.time()
    _, material = _opened(task)
    sources = _taught(material)
    trunk = Frozen(material.trunk, images=next(iter(sources.values())).pixels)
    return material, sources, trunk, time.time() - began


def _supervised(source: Any, *, fleet: Any, weight: float) -> tuple[Any, Any]:
    from jobs.activations import RunData
    from jobs.supervision import Supervision

    plant = source.rows.plant
    leaves = fleet.leaves([plant])
    sets = {plant.name: fleet.leaf_sets(plant)}
    return Supervision(RunData((source.rows,)), leaf_sets=sets, leaves=leaves, max_class_weight=weight), leaves


def recompute(task: dict[str, Any]) -> dict[str, Any]:
    """For every plant and setting: features of all images again, then scikit-learn's logistic regression."""
    even_niceness()
    import numpy as np
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    from jobs.baselines import CLASS_WEIGHTS
    from jobs.head import STRENGTHS

    material, sources, trunk, decoded_s = _prepared(task)
    start, best = time.time(), {}
    for name, source in sources.items():
        num = source.rows.num_train
        for weight in CLASS_WEIGHTS:
            taught, leaves = _supervised(source, fleet=material.fleet, weight=weight)
            target = taught.targets.numpy()[:num].argmax(1)
            for strength in STRENGTHS:
                features = trunk.features(source.pixels).numpy()
                scaler = StandardScaler().fit(features[:num])
                model = LogisticRegression(C=1 / (num * strength), max_iter=200)
                model.fit(scaler.transform(features[:num]), target, sample_weight=taught.weights.numpy()[:num])

                def said(x: Any, model: Any = model, scaler: Any = scaler, leaves: Any = leaves) -> Any:
                    logits = np.full((len(x), len(leaves)), -30.0, dtype=np.float32)
                    logits[:, model.classes_] = model.predict_log_proba(scaler.transform(x))
                    return logits

                found = taught.judge_rows(torch.from_numpy(said(features[num:])))
                if name not in best or found.beats(best[name][0]):
                    best[name] = (found, said, leaves)
    ended = time.time()
    quality = _quality(material, answer=lambda name: best[name][1:], trunk=trunk)
    return {
        "ended_at": ended,
        "counted_s": ended - task["begun_at"],
        "steady_s": ended - start + decoded_s,
        "compute": trunk.compute,
        "quality": quality,
    }


def epochs(task: dict[str, Any]) -> dict[str, Any]:
    """For every plant and some settings: a frozen net and a linear head, the trunk run in every epoch."""
    even_niceness()
    import torch
    from torch import nn

    from jobs.baselines import CLASS_WEIGHTS
    from jobs.head import STRENGTHS
    from jobs.losses import partial_cross_entropy

    material, sources, trunk, decoded_s = _prepared(task)
    start, best, done = time.time(), {}, 0
    settings = [(CLASS_WEIGHTS[-1], decay) for decay in (1e-4, 1e-2)][:NUM_BY_EPOCHS]
    for name, source in sources.items():
        num, pixels = source.rows.num_train, source.pixels
        for weight, decay in settings:
            taught, leaves = _supervised(source, fleet=material.fleet, weight=weight)
            torch.manual_seed(task["seed"])
            width = trunk.features(pixels[:1]).shape[1]
            head = nn.Sequential(nn.BatchNorm1d(width, affine=False), nn.Linear(width, len(leaves)))
            optimizer = torch.optim.AdamW(head.parameters(), lr=RATE, weight_decay=decay)
            since, top = 0, None
            for _ in range(EPOCHS):
                head.train()
                for ids in torch.randperm(num).split(BATCH):
                    if len(ids) < 2:
                        continue
                    logits = head(trunk.features(pixels[ids.numpy()]).clone())
                    loss = partial_cross_entropy(logits, taught.targets[ids], taught.mask[ids], taught.weights[ids])
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()
                done += 1
                head.eval()
                with torch.inference_mode():
                    found = taught.judge_rows(head(trunk.features(pixels[num:])))
                since = 0 if found.beats(top) else since + 1
                top = found if since == 0 else top
                if since == 0 and (name not in best or found.beats(best[name][0])):
                    kept = {key: value.clone() for key, value in head.state_dict().items()}
                    best[name] = (found, _head_of(kept, width=width, leaves=leaves), leaves)
                if since >= PATIENCE:
                    break
    ended = time.time()
    all_settings = len(CLASS_WEIGHTS) * len(STRENGTHS) / len(settings)
    work = (ended - start) * all_settings
    return {
        "ended_at": ended,
        "counted_s": start - task["begun_at"] + work,
        "steady_s": decoded_s + work,
        "compute": trunk.compute,
        "epochs_a_run": done / (len(settings) * len(sources)),
        "quality": _quality(material, answer=lambda name: best[name][1:], trunk=trunk),
    }


def _head_of(state: Mapping[str, Any], *, width: int, leaves: Any) -> Callable[[Any], Any]:
    import torch
    from torch import nn

    head = nn.Sequential(nn.BatchNorm1d(width, affine=False), nn.Linear(width, len(leaves)))
    head.load_state_dict(state)
    head.eval()

    def said(features: Any) -> Any:
        with torch.inference_mode():
            return head(torch.from_numpy(features)).numpy()

    return said


def _quality(material: Any, *, answer: Callable[[str], Any], trunk: Frozen | None = None) -> dict[str, float]:
    """Plant -> macro-F1 per part on decide, pooled by one and the same code; not timed."""
    import numpy as np

    from jobs.plan import Plan
    from jobs.scoring import Exports, role_inputs
    from jobs.selection import macro_f1
    from plants.scores import softmax

    exports, found = Exports(material, plan=Plan("bench", "none", runs=())), {}
    for plant in material.fleet.plants:
        inputs = role_inputs(plant.name, role="decide", exports=exports)
        if inputs is None:
            continue
        said, leaves = answer(plant.name)
        images = inputs.pixels[inputs.inputs]
        features = trunk.features(images).numpy() if trunk else np.asarray(inputs.activations[0], np.float32)
        scores = inputs.scores([(softmax(said(features)), leaves)], leaf_sets=material.fleet.leaf_sets(plant))
        named = np.asarray(scores.classes, dtype=object)[np.asarray(scores.probs).argmax(1)]
        found[plant.name] = macro_f1(np.asarray(scores.truth, dtype=object), named)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run; its figures mean nothing")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the fleet and its splits")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the embedded fleet's parts")
    parser.add_argument("--plants", nargs="*", help="only these plants")
    parser.add_argument("--slots", type=int, default=2, help="lanes of ours")
    parser.add_argument("--backbone", help="another backbone of timm's")
    parser.add_argument("--weights", help="its weights, a safetensors file")
    parser.add_argument("--option", action="append", default=[], help="NAME=VALUE that its weights need")
    parser.add_argument("--size-px", type=int, default=160, help="its input size")
    parser.set_defaults(epochs=2, patience=None, plain_epochs=None, trainers=0, at_once=1)
    entry({"ours": ours, "recompute": recompute, "epochs": epochs}, parser=parser, compare=compare)
