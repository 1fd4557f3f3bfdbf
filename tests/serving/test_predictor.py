from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plants.errors import InputError
from plants.geometry import Environment, Geometry, Photometry
from plants.images import decode, tensor_digest
from plants.normality import ALL, Normalities, Normality
from plants.views import views
from serving.intake import Frame, PartRequest
from serving.loading import Loader
from serving.local import local_predictor, predict_local
from serving.predictor import CHUNK_VIEWS, Judgement, Predictor, judge
from serving.router import Target
from serving.wiring import Shelf
from tests.serving.toys import BLUE, GREEN, LEAVES, RED, SIZE_PX, TILES, Works, plant_view, png, spoil


def part(*images: bytes, environment: str | None = "cam-1", plant: str = "mill") -> PartRequest:
    return PartRequest(plant, tuple(Frame(f"{n}.png", data) for n, data in enumerate(images)), environment=environment)


def predictor(works: Works, *, plant: str = "mill", policy: str | None = None, bundle: str | None = None) -> Predictor:
    shelf = Shelf(works.store, folder=works.root / "shelf")
    return shelf.predictor(plant, Target(bundle or works.bundle("own"), policy or works.policy(plant), 1))


def test_the_digest_of_a_frame_is_that_of_the_tensor_training_makes(works: Works):
    judgement = predictor(works).predict(part(png(RED, size=(100, 80)), environment="tiled"))
    seen = views(decode(png(RED, size=(100, 80))), geometry=TILES, photometry=Photometry(), size_px=SIZE_PX)
    assert judgement.frames[0].tensor_digest == tensor_digest(seen.pixels)


def test_many_parts_of_many_plants_at_once_get_the_answers_they_get_alone(works: Works):
    rng = np.random.default_rng(1)
    bundle = works.bundle("both", serves={"mill": plant_view(), "foundry": plant_view()})
    shelf = Shelf(works.store, folder=works.root / "shelf")
    plants = {p: shelf.predictor(p, Target(bundle, works.policy(p), 1)) for p in ("mill", "foundry")}
    plants["deep"] = shelf.predictor("mill", Target(works.bundle("deep", cut=1), works.policy(), 1))
    work = []
    for n in range(12):
        one = plants[["mill", "foundry", "deep"][n % 3]]
        images = [png(tuple(rng.integers(0, 256, 3).tolist()), size=(90, 70)) for _ in range(n % 4 + 1)]
        work.append((one, part(*images, environment=["cam-1", "tiled"][n % 2], plant=one.plant)))
    together, alone = judge(work), [judge([one])[0] for one in work]
    for a, b in zip(together, alone, strict=True):
        assert isinstance(a, Judgement)
        assert isinstance(b, Judgement)
        assert a.decision.verdict == b.decision.verdict
        assert a.probabilities == pytest.approx(b.probabilities, abs=2e-6)
        assert [f.tensor_digest for f in a.frames] == [f.tensor_digest for f in b.frames]


def test_a_part_that_cannot_be_judged_does_not_harm_its_batch(works: Works):
    one = predictor(works)
    good, bad, also_good = judge([(one, part(png(GREEN))), (one, part(png(GREEN), b"text")), (one, part(png(RED)))])
    assert isinstance(good, Judgement)
    assert isinstance(also_good, Judgement)
    assert also_good.decision.defect == "dent"
    assert isinstance(bad, InputError)
    assert bad.field == "image[1]"


def test_plants_share_one_trunk_session_and_one_model_of_the_same_bundle(works: Works):
    shelf = Shelf(works.store, folder=works.root / "shelf")
    bundle = works.bundle("both", serves={"mill": plant_view(), "foundry": plant_view()})
    mill, foundry = (shelf.predictor(p, Target(bundle, works.policy(p), 1)) for p in ("mill", "foundry"))
    deep = shelf.predictor("mill", Target(works.bundle("deep", cut=1), works.policy(), 1))
    assert mill.scorer is foundry.scorer
    assert deep.scorer is not mill.scorer
    assert deep.scorer.trunk.session is mill.scorer.trunk.session


def test_mass_on_a_class_that_cannot_occur_here_goes_to_a_person(works: Works):
    classes = ("ok", "dent")
    bundle = works.bundle("pooled", serves={"mill": plant_view(classes)})
    judgement = predictor(works, bundle=bundle, policy=works.policy(classes=classes)).predict(part(png(BLUE)))
    assert judgement.impossible > 0.9
    assert (judgement.decision.verdict, set(judgement.probabilities)) == ("review", {"ok", "dent"})


def test_a_plant_that_divides_a_class_less_finely_gets_the_sum_of_its_leaves(works: Works):
    view = plant_view(("ok", "damage")).model_copy(update={"leaf_sets": {"ok": ("ok",), "damage": ("dent", "scratch")}})
    bundle = works.bundle("fine", serves={"mill": view})
    judgement = predictor(works, bundle=bundle, policy=works.policy(classes=("ok", "damage"))).predict(part(png(RED)))
    assert judgement.decision.defect == "damage"
    assert sum(judgement.probabilities.values()) == pytest.approx(1, abs=1e-5)


def test_the_environments_own_geometry_and_photometry_are_applied(works: Works):
    environments = {
        "left": Environment(geometry=Geometry(roi=(0, 0, 20, 40))),
        "dark": Environment(photometry=Photometry(gain=10)),
        "deep": Environment(geometry=Geometry(bit_depth=16)),
    }
    one = predictor(works, bundle=works.bundle("own", serves={"mill": plant_view(environments=environments)}))
    half = png(GREEN, patch=(RED, (24, 0, 48, 40)))
    assert one.predict(part(half, environment="left")).decision.verdict == "ok"
    assert one.predict(part(png((2, 22, 2)), environment="dark")).decision.verdict == "ok"
    with pytest.raises(InputError, match="16 bit"):
        one.predict(part(png(GREEN), environment="deep"))


def test_a_roi_outside_the_frame_names_plant_and_frame(works: Works):
    environments = {"wide": Environment(geometry=Geometry(roi=(0, 0, 500, 500)))}
    one = predictor(works, bundle=works.bundle("own", serves={"mill": plant_view(environments=environments)}))
    with pytest.raises(InputError, match=r"plant mill: file 0\.png: field image\[0\].*500") as caught:
        one.predict(part(png(GREEN), environment=None))
    assert caught.value.field == "image[0]"


def test_an_ensemble_is_the_weighted_mean_of_its_members_on_one_trunk_pass(works: Works):
    sure, unsure = works.bundle("sure"), works.bundle("unsure", cut=1, sharpness=2.0)
    colour = (200, 60, 40)
    alone = [predictor(works, bundle=b).predict(part(png(colour))).probabilities for b in (sure, unsure)]
    both = predictor(works, bundle=works.ensemble((sure, unsure), (3.0, 1.0)))
    calls: list[Any] = []
    session = both.scorer.trunk.session

    class Counting:
        def run(self, names: Any, inputs: Any) -> Any:
            calls.append(names)
            return session.run(names, inputs)

    object.__setattr__(both.scorer.trunk, "session", Counting())
    found = both.predict(part(png(colour))).probabilities
    assert calls == [["cut0", "cut1"]]
    for name in LEAVES:
        assert found[name] == pytest.approx(0.75 * alone[0][name] + 0.25 * alone[1][name], abs=2e-6)


def test_members_that_disagree_about_a_part_send_it_to_a_person_and_the_answer_says_how_far(works: Works):
    sure, blind = works.bundle("sure", sharpness=40.0), works.bundle("blind", leaves=("ok", "scratch"))
    policy = works.policy(pass_below=0.9, reject_above=0.95, disagreement_above=0.3)
    both = predictor(works, bundle=works.ensemble((sure, blind), (1.0, 1.0)), policy=policy)
    red, green = both.predict(part(png(RED))), both.predict(part(png(GREEN)))
    assert green.disagreement == pytest.approx(0, abs=1e-3)
    assert green.decision.verdict == "ok"
    assert red.disagreement is not None
    assert red.disagreement > 0.5
    assert (red.decision.verdict, red.decision.why) == ("review", "the models of the ensemble disagree")
    assert predictor(works, bundle=sure).predict(part(png(RED))).disagreement is None


def test_a_log_linear_ensemble_multiplies_powers_of_what_its_members_say(works: Works):
    members = works.bundle("sure"), works.bundle("unsure", cut=1, sharpness=2.0)
    alone = [predictor(works, bundle=b).predict(part(png((150, 90, 60)))).probabilities for b in members]
    both = predictor(works, bundle=works.ensemble(members, (0.4, 1.5), rule="log"))
    found = both.predict(part(png((150, 90, 60)))).probabilities
    product = {name: alone[0][name] ** 0.4 * alone[1][name] ** 1.5 for name in LEAVES}
    for name in LEAVES:
        assert found[name] == pytest.approx(product[name] / sum(product.values()), abs=1e-4)


def test_members_with_other_leaves_are_averaged_by_name(works: Works):
    narrow = works.bundle("narrow", leaves=("ok", "dent"))
    turned = works.bundle("turned", leaves=("scratch", "dent", "ok"))
    both = predictor(works, bundle=works.ensemble((narrow, turned), (1.0, 1.0)))
    assert both.scorer.leaves == ("ok", "dent", "scratch")
    blue = both.predict(part(png(BLUE))).probabilities
    assert blue["scratch"] == pytest.approx(0.5, abs=0.01)
    assert sum(blue.values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("cut", [0, 1])
def test_five_members_answer_as_each_does_alone_for_every_tile_of_every_frame(works: Works, cut: int):
    sharp = (2.0, 4.0, 8.0, 16.0, 3.0)
    orders = (LEAVES, LEAVES[::-1], LEAVES, ("dent", "ok", "scratch"), LEAVES)
    members = tuple(
        works.bundle(f"m{at}", cut=cut, leaves=leaves, sharpness=sharp[at]) for at, leaves in enumerate(orders)
    )
    weights = (0.4, 0.3, 0.1, 0.1, 0.1)
    both = predictor(works, bundle=works.ensemble(members, weights)).scorer
    trunk, rng = both.trunk, np.random.default_rng(0)
    pixels = rng.integers(0, 256, (9, trunk.size_px, trunk.size_px, 3), dtype=np.uint8)
    activations = trunk.activations(pixels, cuts=both.cuts)
    found = both.score(activations, [("mill", "cam-1")] * 9)
    assert found.members is not None
    for at, (bundle, leaves) in enumerate(zip(members, orders, strict=True)):
        alone = predictor(works, bundle=bundle).scorer.score(activations, [("mill", "cam-1")] * 9).probabilities
        np.testing.assert_array_equal(found.members[:, at][:, [both.leaves.index(leaf) for leaf in leaves]], alone)
    mean = np.tensordot(found.members, weights, axes=(1, 0))
    np.testing.assert_allclose(found.probabilities, mean, atol=1e-6)


def test_a_bundle_is_refused_when_it_answers_otherwise_than_where_it_was_exported(works: Works):
    digest = works.bundle("own")
    folder = works.root / "exports" / "own"
    with np.load(folder / "probe.npz") as probe:
        inputs, logits = probe["inputs"], probe["logits"]
    np.savez(folder / "probe.npz", inputs=inputs, logits=logits + 1)
    from plants import bundle

    manifest, _ = bundle.read(works.store.root / "bundles" / digest)
    changed = bundle.write(folder, manifest).digest
    works.bundles.publish(folder)
    with pytest.raises(InputError, match="gives other outputs here"):
        predictor(works, bundle=changed)


@pytest.mark.parametrize("name", ["branch.onnx", "manifest.json", "probe.npz"])
def test_a_bundle_with_one_byte_changed_is_refused_and_the_file_named(works: Works, name: str):
    folder = works.root / "exports" / "own"
    works.bundle("own")
    spoil(folder / name)
    with pytest.raises(InputError, match=name.removesuffix(".json") if name != "manifest.json" else "manifest|bundle"):
        local_predictor(folder, trunk=works.trunk)


def test_another_trunk_than_the_bundle_was_made_on_is_refused(works: Works):
    from tests.serving.toys import make_trunk

    works.bundle("own")
    other = make_trunk(works.root / "other.onnx", scale=1 / 128)
    with pytest.raises(InputError, match="not what the bundle was made with"):
        local_predictor(works.root / "exports" / "own", trunk=other)


def test_a_policy_of_another_plant_or_other_classes_is_refused(works: Works):
    with pytest.raises(InputError, match="policy of plant foundry"):
        predictor(works, policy=works.policy("foundry"))
    with pytest.raises(InputError, match="other classes"):
        predictor(works, policy=works.policy(classes=("ok", "dent")))


def test_a_policy_that_was_solved_for_another_bundle_is_refused(works: Works):
    one, other = works.bundle("own"), works.bundle("other", sharpness=5.0)
    with pytest.raises(InputError, match=r"solved for bundle .*Promote the bundle with its own policy"):
        predictor(works, bundle=one, policy=works.policy(bundle=other))
    assert predictor(works, bundle=one, policy=works.policy(bundle=one)).predict(part(png(RED))).decision.defect


def test_a_policy_that_was_changed_in_the_store_is_refused(works: Works):
    digest = works.policy()
    path = works.store.root / "policies" / f"{digest}.json"
    path.write_text(path.read_text().replace("0.2", "0.3"))
    with pytest.raises(InputError, match="not the policy it is named after"):
        predictor(works, policy=digest)


def test_a_bundle_on_disk_answers_as_the_one_in_the_store(works: Works, tmp_path: Path):
    digest, policy = works.bundle("own"), works.policy()
    served = predictor(works, bundle=digest, policy=policy).predict(part(png(RED), png(GREEN)))
    folder = works.store.root / "bundles" / digest
    local = local_predictor(folder, policy=works.store.root / "policies" / f"{policy}.json")
    (answer,) = predict_local(local, [part(png(RED), png(GREEN))])
    assert not isinstance(answer, InputError)
    assert answer.probabilities == served.probabilities
    assert answer.frames == list(served.frames)
    assert (answer.verdict, answer.model.bundle) == (served.decision.verdict, digest)


def test_without_a_policy_the_larger_probability_decides_and_bad_files_are_told_one_by_one(works: Works):
    digest = works.bundle("own")
    local = local_predictor(works.store.root / "bundles" / digest)
    answers = list(predict_local(local, [part(png(GREEN)), part(b"text"), part(png(BLUE))]))
    assert [a if isinstance(a, InputError) else a.verdict for a in answers][::2] == ["ok", "reject"]
    assert isinstance(answers[1], InputError)
    assert "money" in local.policy.note[0]


def test_a_bundle_of_several_plants_asks_which_one(works: Works):
    works.bundle("both", serves={"mill": plant_view(), "foundry": plant_view()})
    folder = works.root / "exports" / "both"
    with pytest.raises(InputError, match="foundry, mill"):
        local_predictor(folder, trunk=works.trunk)
    assert local_predictor(folder, plant="mill", trunk=works.trunk).plant == "mill"
    with pytest.raises(InputError, match="does not serve this plant"):
        local_predictor(folder, plant="moon", trunk=works.trunk)


@pytest.mark.parametrize("missing", ["trunk", "policy"])
def test_a_missing_trunk_or_policy_is_named(works: Works, missing: str):
    works.bundle("own")
    kwargs = {"trunk": works.trunk, "policy": None} | {missing: works.root / "nowhere"}
    with pytest.raises(InputError, match="nowhere"):
        local_predictor(works.root / "exports" / "own", **kwargs)


def test_a_file_that_is_no_model_is_refused_in_one_line(works: Works):
    from plants import bundle

    folder = works.root / "exports" / "broken"
    folder.mkdir(parents=True)
    (folder / "branch.onnx").write_bytes(b"not a model")
    bundle.write(folder, works.manifest(serves={"mill": plant_view()}))
    with pytest.raises(InputError, match=r"branch\.onnx.*no ONNX model") as caught:
        local_predictor(folder, trunk=works.trunk)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_models_nobody_uses_are_freed(works: Works):
    import gc

    digest = works.bundle("own")
    loader = Loader(folder_of=lambda d: works.store.root / "bundles" / d, trunk_of=lambda _: works.trunk)
    scorer = loader.scorer(digest)
    assert loader.scorer(digest) is scorer
    trunk = f"{scorer.trunk.sha256} {SIZE_PX} bilinear"
    assert loader._trunks.find(trunk) is scorer.trunk
    del scorer
    gc.collect()
    assert loader._scorers.find(digest) is None
    assert loader._trunks.find(trunk) is None


def near(colour: tuple[float, float, float], *, places: tuple[tuple[str, str], ...] = (("mill", ALL),)) -> Normalities:
    """What is normal where good parts have about this colour."""
    views = np.random.default_rng(0).normal(np.array(colour) / 255, 0.02, (40, 3))
    return Normalities(dict.fromkeys(places, Normality.fit(views)))


SQUARE = (40, 40)
LAST_TILE = (740, 172, 768, 200)
"""What the last tile shows of a frame of 768 x 200, half an overlap of it beyond the corner."""


def test_a_part_unlike_the_good_ones_is_looked_at_though_its_class_says_good(works: Works):
    bundle = works.bundle("own", normality=near(GREEN))
    one = predictor(works, bundle=bundle, policy=works.policy(novelty_above=4.0))
    usual = one.predict(part(png(GREEN, size=SQUARE), png(GREEN, size=SQUARE)))
    odd = one.predict(part(png(GREEN, size=SQUARE), png((110, 255, 110), size=SQUARE)))
    assert usual.decision.verdict == "ok"
    assert usual.novelty is not None
    assert odd.novelty is not None
    assert usual.novelty < 2 < 4 < odd.novelty
    assert (odd.decision.verdict, odd.probabilities["ok"] > 0.9) == ("review", True)


def test_each_view_is_measured_by_the_good_parts_of_its_plant_and_environment(works: Works):
    known = Normalities({**near(GREEN).by_place, **near(RED, places=(("mill", "tiled"),)).by_place})
    bundle = works.bundle("both", normality=known, serves={"mill": plant_view(), "forge": plant_view()})
    shelf = Shelf(works.store, folder=works.root / "shelf")
    mill, forge = (shelf.predictor(p, Target(bundle, works.policy(p), 1)) for p in ("mill", "forge"))
    work = [(mill, part(png(GREEN, size=SQUARE), environment=name)) for name in ("tiled", "cam-1", "tiled")]
    odd, usual, also_odd, unknown = judge([*work, (forge, part(png(GREEN, size=SQUARE), plant="forge"))])
    assert usual.novelty < 2 < 10 < odd.novelty == also_odd.novelty
    assert unknown.novelty is None


@pytest.mark.parametrize("cut", [0, 1])
def test_a_part_keeps_its_novelty_whatever_model_its_plant_has(works: Works, cut: int):
    known = near(GREEN)
    own = works.bundle("own", normality=known, cut=cut)
    without = works.ensemble((own,), (1.0,))
    both = works.ensemble((own, works.bundle("not", cut=1)), (1.0, 1.0), normality=known)
    frame = part(png((60, 200, 60), size=SQUARE))
    novelty = predictor(works, bundle=own).predict(frame).novelty
    assert novelty is not None
    for bundle in (both, works.good_parts(known)):
        assert predictor(works, bundle=bundle).predict(frame).novelty == novelty
    assert predictor(works, bundle=without).predict(frame).novelty is None


def test_where_only_good_parts_are_known_far_parts_are_looked_at_and_none_is_rejected(works: Works):
    limits = {"pass_below": 1.0, "reject_above": 1.0, "impossible_above": 1.0, "novelty_above": 4.0}
    one = predictor(works, bundle=works.good_parts(near(GREEN)), policy=works.policy(**limits))
    usual, odd = (one.predict(part(png(colour, size=SQUARE))) for colour in (GREEN, RED))
    assert (usual.decision.verdict, odd.decision.verdict) == ("ok", "review")
    assert (odd.decision.defect, odd.decision.why) == (None, "far from the good parts of this plant")
    assert usual.probabilities["ok"] > odd.probabilities["ok"]
    assert odd.probabilities["ok"] + odd.impossible == pytest.approx(1.0, abs=1e-6)
    frame = png(GREEN, size=(32 * 24, 200), patch=(RED, LAST_TILE))
    tiled = one.predict(part(frame, environment="tiled"))
    assert tiled.location is not None
    assert tiled.location.box == LAST_TILE


def test_a_frame_of_more_tiles_than_one_trunk_pass_takes_is_scored_whole(works: Works):
    frame = png(GREEN, size=(32 * 24, 200), patch=(RED, LAST_TILE))
    judgement = predictor(works).predict(part(frame, environment="tiled"))
    assert judgement.frames[0].num_views > 2 * CHUNK_VIEWS
    assert judgement.decision.defect == "dent"
    assert judgement.location is not None
    assert judgement.location.box == LAST_TILE
