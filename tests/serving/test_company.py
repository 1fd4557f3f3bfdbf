"""Nobody gets another plant's answer, whoever shares the batch and whatever is let go, loaded or promoted meanwhile."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from plants.errors import InputError
from plants.normality import ALL, Normalities, Normality
from serving.intake import Frame, PartRequest
from serving.predictor import Judgement, Predictor, judge
from serving.router import Target
from serving.scoring import Model
from serving.sessions import KeptSession
from serving.wiring import Shelf, Tiers
from tests.serving.toys import Works, plant_view, png

LEAVES = (("ok", "dent", "scratch"), ("scratch", "ok"), ("dent", "scratch", "ok"), ("dent", "ok"))


class Crowd:
    """Plants of every tier on one trunk, each with another head, so that no answer is right for two of them."""

    def __init__(self, works: Works, *, num: int = 24, branch_mb: float = 0.0) -> None:
        self.works = works
        self.shelf = Shelf(works.store, folder=works.root / "shelf", tiers=Tiers(branch_mb=branch_mb))
        self.predictors = [self._made(number) for number in range(num)]

    def _made(self, number: int) -> Predictor:
        plant, leaves = f"plant-{number}", LEAVES[number % len(LEAVES)]
        serves = {plant: plant_view(tuple(sorted(leaves)))}
        options = {"leaves": leaves, "serves": serves, "sharpness": 1.0 + 0.7 * number}
        rng = np.random.default_rng(number)
        good = Normalities({(plant, ALL): Normality.fit(rng.normal(0.5, 0.2, (40, 3)))})
        known = good if number % 5 == 3 else None
        cut = 1 if number % 4 == 1 else 0
        bundle = self.works.bundle(plant, cut=cut, normality=known, **options)
        if number % 6 == 5:
            other = self.works.bundle(f"{plant}-b", cut=1 - cut, **options | {"sharpness": 2.0 + number})
            bundle = self.works.ensemble((bundle, other), (1.0, 2.0), serves=serves, leaves=leaves)
        policy = self.works.policy(plant, classes=tuple(sorted(leaves)))
        return self.shelf.predictor(plant, Target(bundle, policy, 1))

    def work(self, rng: np.random.Generator, *, num: int) -> list[tuple[Predictor, PartRequest]]:
        """Parts of plants drawn at random, of one to four frames, tiled or not."""
        found = []
        for _ in range(num):
            one = self.predictors[int(rng.integers(len(self.predictors)))]
            frames = [png(tuple(rng.integers(0, 256, 3).tolist()), size=(70, 50)) for _ in range(rng.integers(1, 5))]
            environment = ["cam-1", "tiled"][int(rng.integers(2))]
            part = tuple(Frame(f"{at}.png", data) for at, data in enumerate(frames))
            found.append((one, PartRequest(one.plant, part, environment=environment)))
        return found


def agree(together: Judgement | Exception, alone: Judgement | Exception) -> None:
    assert isinstance(together, Judgement), together
    assert isinstance(alone, Judgement), alone
    assert together.probabilities == pytest.approx(alone.probabilities, abs=5e-5)
    assert together.novelty == (None if alone.novelty is None else pytest.approx(alone.novelty, rel=1e-4))
    assert together.decision.verdict == alone.decision.verdict
    assert [f.tensor_digest for f in together.frames] == [f.tensor_digest for f in alone.frames]


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Crowd:
    return Crowd(Works(tmp_path_factory.mktemp("crowd")))


def test_the_crowd_is_of_heads_and_branches_and_ensembles_with_and_without_good_parts(crowd: Crowd):
    scorers = [one.scorer for one in crowd.predictors]
    sessions = [isinstance(part, KeptSession) for one in scorers for part in one.parts]
    assert 0 < sum(sessions) < len(sessions)
    assert {isinstance(one, Model) for one in scorers} == {True, False}
    assert {one.normality.is_empty for one in scorers} == {True, False}


@pytest.mark.parametrize("seed", range(12))
def test_each_part_of_a_mixed_batch_is_judged_as_if_it_were_alone(crowd: Crowd, seed: int):
    work = crowd.work(np.random.default_rng(seed), num=20)
    for (one, part), together in zip(work, judge(work), strict=True):
        agree(together, judge([(one, part)])[0])


def test_threads_that_judge_while_branches_are_let_go_get_their_own_plants_answers(crowd: Crowd):
    work = crowd.work(np.random.default_rng(99), num=40)
    expected = [judge([item])[0] for item in work]
    faults: list[BaseException] = []

    def run(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(15):
                picked = rng.permutation(len(work))[:8].tolist()
                for at, found in zip(picked, judge([work[at] for at in picked]), strict=True):
                    agree(found, expected[at])
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert crowd.shelf.loader.branches.reloads > 0


def test_a_branch_that_breaks_while_it_serves_fails_its_own_parts_only(works: Works, tmp_path: Path):
    crowd = Crowd(works, num=6)
    broken = crowd.predictors[1]
    (part,) = broken.scorer.parts
    assert isinstance(part, KeptSession)

    class Breaking:
        def run(self, names: object, inputs: object) -> list[object]:
            raise RuntimeError("no memory")

    object.__setattr__(broken.scorer, "branch", Breaking())
    work = crowd.work(np.random.default_rng(3), num=24)
    for (one, part_request), found in zip(work, judge(work), strict=True):
        if one is broken:
            assert isinstance(found, RuntimeError)
        else:
            agree(found, judge([(one, part_request)])[0])
    assert any(one is broken for one, _ in work)


def test_a_branch_gone_from_disk_and_store_is_its_own_plants_problem(works: Works):
    crowd = Crowd(works, num=6)
    lost, kept = crowd.predictors[1], crowd.predictors[0]
    crowd.shelf.loader._branches._held.clear()
    digest = lost.scorer.digest
    for folder in (works.store.root / "bundles" / digest, works.root / "shelf" / "bundles" / digest):
        folder.rename(folder.with_name(f"gone-{digest}"))
    frames = (Frame("a.png", png((200, 30, 40))),)
    parts = [(one, PartRequest(one.plant, frames, environment="cam-1")) for one in (lost, kept)]
    bad, good = judge(parts)
    assert isinstance(bad, InputError)
    assert bad.plant == lost.plant
    assert isinstance(good, Judgement)
