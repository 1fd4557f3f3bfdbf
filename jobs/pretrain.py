"""The embedded backbone: timm's `test_resnet`, taught on images made of nothing, so that it may ship with the project.

Three questions are asked of every image of `jobs.procedural`: which texture, which kind of local anomaly (both of the
pooled features), and where it lies (of the map below the last stage, the one that is cached). Their heads are thrown
away. Not for real images: weights pretrained on photographs go in by `weights: <path>`.

    python -m jobs.pretrain --out jobs/weights/embedded.safetensors
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from jobs.procedural import ANOMALIES, World, draw_batch
from plants.errors import InputError

BACKBONE = "test_resnet"
MEAN = STD = (0.5, 0.5, 0.5)
STEPS = 2000
"""What the shipped file was made with."""
STATE_EVERY_S = 60.0
REPORT_EVERY_STEPS = 50
EXAM_IMAGES = 1024
_UNSEEN = 1 << 40
"""Added to the seed where images are drawn that training never draws."""


@dataclass(frozen=True, slots=True)
class Course:
    """Everything the result depends on; an interrupted run goes on only with the same."""

    seed: int
    steps: int
    num_textures: int = 256
    batch_size: int = 64
    sizes_px: tuple[int, int] = (64, 96)
    """Most steps see the small size, the last ones the size it will be used at."""
    large_from: float = 0.88
    rate: float = 3e-3
    weight_decay: float = 0.05

    def size_at(self, step: int) -> int:
        """The edge of the images of a step, in pixels."""
        return self.sizes_px[step >= self.large_from * self.steps]

    def boldness_at(self, step: int) -> float:
        """How much stronger than usual anomalies are: three times at first, as usual from half time on."""
        return max(1.0, 3.0 - 4.0 * step / self.steps)

    def rate_at(self, step: int) -> float:
        """Linear warm-up over the first twentieth, then a half cosine down to 0."""
        warm_up = max(1, self.steps // 20)
        if step < warm_up:
            return self.rate * (step + 1) / warm_up
        return self.rate * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, self.steps - warm_up)))


class Pupil(nn.Module):
    """The backbone and the three heads that ask it questions."""

    def __init__(self, *, num_textures: int) -> None:
        super().__init__()
        self.backbone = timm.create_model(BACKBONE, num_classes=0)
        kinds = len(ANOMALIES)
        self.texture = nn.Linear(self.backbone.num_features, num_textures)
        self.anomaly = nn.Linear(self.backbone.num_features, kinds)
        self.cells = nn.Conv2d(192, kinds, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of texture [N, C], of anomaly [N, K], and of anomaly per cell [N, K, S/16, S/16]."""
        net = self.backbone
        x = net.maxpool(net.act1(net.bn1(net.conv1(images))))
        below = net.layer3(net.layer2(net.layer1(x)))
        features = net.forward_head(net.layer4(below))
        return self.texture(features), self.anomaly(features), self.cells(below)


def normalise(images: Tensor) -> Tensor:
    """uint8 [N, S, S, 3] as the network's input, float [N, 3, S, S] in -1..1."""
    return (images.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def cell_targets(mask: Tensor, anomaly: Tensor, *, cells: int) -> Tensor:
    """The kind of anomaly in each cell [N, cells, cells]: 0 where there is none, -100 where one only just reaches."""
    reach = functional.adaptive_max_pool2d(mask[:, None], cells)[:, 0]
    targets = torch.where(reach > 0.5, anomaly[:, None, None], 0)
    return torch.where((reach > 0.1) & (reach <= 0.5), -100, targets)


def loss_of(pupil: Pupil, world: World, *, course: Course, step: int) -> Tensor:
    """The loss of one step's images."""
    batch = draw_batch(
        world,
        seed=course.seed,
        step=step,
        num_images=course.batch_size,
        size_px=course.size_at(step),
        boldness=course.boldness_at(step),
    )
    texture, anomaly, cells = pupil(normalise(batch.images))
    where = cell_targets(batch.mask, batch.anomaly, cells=cells.shape[-1])
    rarity = torch.full((len(ANOMALIES),), 4.0)
    rarity[0] = 1.0
    return (
        functional.cross_entropy(texture, batch.texture, label_smoothing=0.05)
        + functional.cross_entropy(anomaly, batch.anomaly)
        + functional.cross_entropy(cells, where, weight=rarity, ignore_index=-100)
    )


def pretrain(
    out: Path,
    *,
    seed: int = 0,
    minutes: float | None = None,
    steps: int | None = None,
    threads: int = 1,
    num_textures: int = 256,
    batch_size: int = 64,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Writes the pretrained backbone to `out` (fp16, no classifier) and returns how it was made and what it knows.

    Interrupted, it goes on from `<out>.state.pt` at its next call. `minutes` plans as many steps as this machine does
    in that time; the same `steps` and `seed` on the same machine give the same file.
    Raises InputError where both are given or make no sense, `out` is a folder, or the state is of another course.
    """
    if minutes is not None and steps is not None:
        raise InputError("minutes and steps exclude each other", field="steps", remedy="Give one of them")
    if steps is not None and steps < 1:
        raise InputError(f"must be at least 1, not {steps}", field="steps")
    if minutes is not None and minutes <= 0:
        raise InputError(f"must be positive, not {minutes:g}", field="minutes")
    if out.is_dir():
        raise InputError("is a folder", file=str(out), field="out", remedy="Name the file to write")
    torch.set_num_threads(threads)
    out.parent.mkdir(parents=True, exist_ok=True)
    state_file = out.with_name(out.name + ".state.pt")
    sized = {"seed": seed, "num_textures": num_textures, "batch_size": batch_size}
    if steps is None:
        steps = STEPS if minutes is None else _affordable_steps(minutes, state_file=state_file, **sized)
    course = Course(steps=steps, **sized)
    pupil, seconds = _teach(course, state_file=state_file, progress=progress)
    knows = examine(pupil, course=course)
    digest = _write(pupil.backbone, out, course=course)
    state_file.unlink(missing_ok=True)
    return {"path": str(out), "sha256": digest, "backbone": BACKBONE, "seconds": round(seconds, 1), **knows} | {
        "images": course.steps * course.batch_size,
        "course": asdict(course),
    }


def _affordable_steps(minutes: float, *, state_file: Path, **sized: int) -> int:
    if state_file.exists():
        return int(torch.load(state_file, weights_only=True)["course"]["steps"])
    trial = Course(steps=1000, **sized)
    torch.manual_seed(0)
    pupil, world = Pupil(num_textures=trial.num_textures), World.draw(trial.num_textures, seed=trial.seed)
    pupil.to(memory_format=torch.channels_last)
    took = []
    for step in range(4):
        start = time.perf_counter()
        loss_of(pupil, world, course=trial, step=step).backward()
        took.append(time.perf_counter() - start)
    small, large = trial.sizes_px
    mean_s = sorted(took)[1] * (trial.large_from + (1 - trial.large_from) * (large / small) ** 2)
    return max(1, int(minutes * 60 / mean_s))


def _teach(course: Course, *, state_file: Path, progress: Callable[[str], None] | None) -> tuple[Pupil, float]:
    torch.manual_seed(course.seed)
    pupil = Pupil(num_textures=course.num_textures).to(memory_format=torch.channels_last)
    world = World.draw(course.num_textures, seed=course.seed)
    optimizer = torch.optim.AdamW(pupil.parameters(), weight_decay=course.weight_decay)
    first, before_s = _resume(pupil, optimizer, course=course, state_file=state_file)
    start = saved = time.perf_counter()
    pupil.train()
    for step in range(first, course.steps):
        for group in optimizer.param_groups:
            group["lr"] = course.rate_at(step)
        optimizer.zero_grad()
        loss = loss_of(pupil, world, course=course, step=step)
        loss.backward()
        optimizer.step()
        now = time.perf_counter()
        if now - saved > STATE_EVERY_S:
            _save_state(pupil, optimizer, course=course, step=step + 1, seconds=before_s + now - start, file=state_file)
            saved = now
        if progress and ((step + 1) % REPORT_EVERY_STEPS == 0 or step + 1 == course.steps):
            progress(f"step {step + 1}/{course.steps} loss {loss.item():.3f} {before_s + now - start:.0f} s")
    return pupil.eval(), before_s + time.perf_counter() - start


def _save_state(
    pupil: Pupil, optimizer: torch.optim.Optimizer, *, course: Course, step: int, seconds: float, file: Path
) -> None:
    state = {"pupil": pupil.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "seconds": seconds}
    _replace(file, lambda part: torch.save(state | {"course": asdict(course)}, part))


def _resume(pupil: Pupil, optimizer: torch.optim.Optimizer, *, course: Course, state_file: Path) -> tuple[int, float]:
    if not state_file.exists():
        return 0, 0.0
    state = torch.load(state_file, weights_only=True)
    if state["course"] != asdict(course):
        raise InputError(
            "is the state of another course", file=str(state_file), remedy="Repeat its arguments or delete"
        )
    pupil.load_state_dict(state["pupil"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["seconds"]


def _replace(file: Path, write: Callable[[Path], Any]) -> None:
    part = file.with_name(file.name + ".part")
    write(part)
    os.replace(part, file)


def _write(backbone: nn.Module, out: Path, *, course: Course) -> str:
    state = {
        name: value.half().contiguous() if value.is_floating_point() else value
        for name, value in backbone.state_dict().items()
    }
    if not all(torch.isfinite(value.float()).all() for value in state.values()):
        raise RuntimeError("a weight does not fit fp16")
    data = _with_sorted_header(save(state, metadata=_about(course)))
    _replace(out, lambda part: part.write_bytes(data))
    return hashlib.sha256(data).hexdigest()


def _about(course: Course) -> dict[str, str]:
    return {
        "backbone": BACKBONE,
        "mean": json.dumps(MEAN),
        "std": json.dumps(STD),
        "course": json.dumps(asdict(course)),
        "made_by": "crossplant jobs/pretrain.py",
        "license": "Apache-2.0",
    }


def _with_sorted_header(data: bytes) -> bytes:
    """The same safetensors file with its metadata in one order, which the library leaves to chance."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]


@torch.no_grad()
def examine(pupil: Pupil, *, course: Course) -> dict[str, float]:
    """Accuracy on images that training never drew: of the texture, of the anomaly's kind, of its presence."""
    world, size_px = World.draw(course.num_textures, seed=course.seed), course.sizes_px[1]
    hits, num_batches = np.zeros(3), EXAM_IMAGES // 128
    for step in range(num_batches):
        batch = draw_batch(world, seed=course.seed + _UNSEEN, step=step, num_images=128, size_px=size_px)
        texture, anomaly, _ = pupil(normalise(batch.images))
        kind = anomaly.argmax(1)
        rights = (texture.argmax(1) == batch.texture, kind == batch.anomaly, (kind > 0) == (batch.anomaly > 0))
        hits += [float(right.float().mean()) for right in rights]
    texture, kind, presence = (hits / num_batches).round(4).tolist()
    return {"texture_accuracy": texture, "anomaly_accuracy": kind, "anomaly_presence_accuracy": presence}


def main() -> None:
    """The command line of `pretrain`."""
    parser = argparse.ArgumentParser(prog="python -m jobs.pretrain", description=pretrain.__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--threads", type=int, default=1)
    arguments = vars(parser.parse_args())
    try:
        print(pretrain(progress=lambda line: print(line, flush=True), **arguments))
    except InputError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
