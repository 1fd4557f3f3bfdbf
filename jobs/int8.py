"""INT8 beside float: made rung by rung, judged at every plant, and timed here.

One trunk is shared by the fleet, so one plant that loses too much keeps the whole fleet in float. What is decided from
this is in `jobs.ladder`, what becomes of it in `jobs.int8_release`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from jobs.calibrate import chosen, teachers
from jobs.int8_gate import Files, Judged, QuantisedExports, gate
from jobs.ladder import Rung, Tried, next_rung
from jobs.parity import open_session
from jobs.plan import HEADLESS
from jobs.quantise import has_layers, prepared, quantise, worst_nodes
from jobs.scoring import Exports, RoleInputs, role_inputs
from plants.costs import OutOfFold, Policy
from plants.scores import PartScores
from plants.variants import PlantGate, Speed, speed

Say = Callable[[str], None]


@dataclass
class Workshop:
    """What all rungs share: the plants' `decide` inputs, what float says of them, and the files to be quantised."""

    exports: Exports
    judged: Sequence[Judged]
    serves: Mapping[str, Sequence[str]]
    """Run -> the plants that its bundle serves."""
    folder: Path
    inputs: dict[str, RoleInputs] = field(init=False)

    def __post_init__(self) -> None:
        fleet = self.exports.material.fleet
        found = {plant.name: role_inputs(plant.name, role="decide", exports=self.exports) for plant in fleet.plants}
        self.inputs = {name: inputs for name, inputs in found.items() if inputs is not None}
        self.judged = [one for one in self.judged if one.plant in self.inputs]

    @cached_property
    def runs(self) -> list[str]:
        """The runs that are judged and have a branch."""
        found = {run for one in self.judged for run in one.decision["members"]}
        return sorted(run for run in found if self.exports.plan.run(run).kind not in HEADLESS)

    @cached_property
    def said(self) -> list[tuple[Judged, PartScores, OutOfFold | Policy]]:
        """What float says at every plant, and the policy that judges it."""
        fleet = self.exports.material.fleet
        scores = [one.scores(self.inputs[one.plant], fleet=fleet) for one in self.judged]
        policies = [one.judge(s, plant=fleet.plant(one.plant)) for one, s in zip(self.judged, scores, strict=True)]
        return list(zip(self.judged, scores, policies, strict=True))

    @cached_property
    def trunk(self) -> tuple[Path, np.ndarray]:
        """The prepared float trunk, and images [N, S, S, 3] to calibrate it on, none where no plant may give any."""
        fleet, path = self.exports.material.fleet, self.folder / "trunk.float.onnx"
        prepared(self.exports.material.trunk_path, path)
        names = teachers(fleet, among=self.inputs, serves=[plant.name for plant in fleet.plants])
        rows = chosen(self.inputs, names=names)
        size = self.exports.material.trunk.size_px
        blocks = [self.inputs[name].pack.take(self.inputs[name].inputs[at]) for name, at in rows.items()]
        return path, np.concatenate([np.zeros((0, size, size, 3), dtype=np.uint8), *blocks])

    @cached_property
    def branches(self) -> dict[str, tuple[Path, np.ndarray]]:
        """The same of every branch that is more than a head: calibrated on float activations at its cut."""
        fleet, found = self.exports.material.fleet, {}
        for run in self.runs:
            words, _, path = self.exports.branch(run)
            if not has_layers(path):
                continue
            serves = self.serves[run]
            rows = chosen(
                self.inputs, names=teachers(fleet, among=[n for n in self.inputs if n in serves], serves=serves)
            )
            if rows:
                target = self.folder / f"{run}.float.onnx"
                prepared(path, target)
                cut = words["cut"]
                found[run] = target, np.concatenate([self.inputs[n].activations[cut][at] for n, at in rows.items()])
        return found

    def made(self, rung: Rung) -> Files:
        """The INT8 files of a rung."""
        folder = self.folder / rung.name.replace(" ", "-").replace(",", "")
        folder.mkdir(exist_ok=True)
        branches = {run: folder / f"{run}.onnx" for run in self.branches}
        files = Files(folder / "trunk.onnx", branches)
        for (source, values), target in [
            (self.trunk, files.trunk),
            *((self.branches[r], branches[r]) for r in branches),
        ]:
            quantise(source, target, inputs=values, method=rung.method)
            if rung.num_excluded:
                worst = worst_nodes(source, target, inputs=values, num=rung.num_excluded)
                quantise(source, target, inputs=values, method=rung.method, exclude=worst)
        return files

    def gates(self, files: Files) -> dict[str, PlantGate]:
        """What the files say at every plant, beside float."""
        exports, fleet = QuantisedExports(self.exports, files=files), self.exports.material.fleet
        inputs: dict[str, RoleInputs] = {}
        found: dict[str, PlantGate] = {}
        decided = {one.plant: one.model for one in reversed(self.judged)}
        for one, in_float, policy in self.said:
            if one.plant not in inputs:
                before = self.inputs[one.plant]
                inputs[one.plant] = RoleInputs(
                    before.plant, rows=before.frames.reset_index(), pack=before.pack, exports=exports
                )
            in_int8 = one.scores(inputs[one.plant], fleet=fleet)
            where = one.plant if one.model == decided[one.plant] else f"{one.plant}: {one.model}"
            is_named = one.decision["kind"] != "normality"
            found[where] = gate(in_float, in_int8, policy=policy, plant=fleet.plant(one.plant), is_named=is_named)
        return found

    def speed(self, files: Files) -> Speed:
        """One image through trunk and branch, the branch on the deepest cut that is judged; one thread."""
        image = self.trunk[1][:1]
        in_float = Files(self.exports.material.trunk_path, {})
        return speed(self._once(in_float, image), self._once(files, image))

    def _once(self, files: Files, image: np.ndarray) -> Callable[[], object]:
        cuts = {run: self.exports.words(run)["cut"] for run in self.runs}
        run = max(cuts, key=lambda name: (cuts[name], name), default=None)
        first = open_session(str(files.trunk))
        if run is None:
            return lambda: first.run(["cut0"], {"images": image})
        second = open_session(str(files.branches.get(run) or self.exports.branch(run)[2]))
        output = f"cut{cuts[run]}"
        return lambda: second.run(["logits"], {"activation": first.run([output], {"images": image})[0]})

    def size(self, files: Files | None = None) -> int:
        """Of the trunk and of all branches."""
        paths = [files.trunk if files else self.exports.material.trunk_path]
        paths += [(files.branches if files else {}).get(run) or self.exports.branch(run)[2] for run in self.runs]
        return sum(path.stat().st_size for path in paths)


def climb(workshop: Workshop, *, say: Say) -> tuple[list[Tried], Files | None]:
    """What was tried, in order, and the files of the last rung; nothing where there is nothing to calibrate on."""
    tried: list[Tried] = []
    files = None
    if not workshop.judged or not len(workshop.trunk[1]) or not has_layers(workshop.trunk[0]):
        return tried, files
    while (rung := next_rung(tried)) is not None:
        say(f"{rung.name}: quantising the trunk and {len(workshop.branches)} branches, judging {len(workshop.judged)}")
        files = workshop.made(rung)
        one = Tried(rung, workshop.gates(files), workshop.speed(files))
        tried.append(one)
        say(f"{rung.name}: {'; '.join(one.faults[:3]) or 'every plant holds'}; {one.speed.ratio:.2f} x float's speed")
    return tried, files
