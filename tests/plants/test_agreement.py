"""Disagreement planted at a known rate is measured and named; sealed frames and broken tables do not slip through."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score

from plants.agreement import Golden, agreement_findings, drawn_kappa, kappa, read_golden
from plants.errors import InputError, ManyInputErrors
from plants.findings import Finding
from plants.plant import Fleet, Plant

WORDS = {
    "mill": {"good": "ok", "crack": "crack", "dent": "dent", "stain": "stain"},
    "werk": {"gut": "ok", "Riss": "crack", "Delle": "dent", "Fleck": "stain"},
}
PLANTS = {
    name: Plant.model_validate(
        {"name": name, "images": "x", "classes": words, "ok": [next(iter(words))], "golden": f"{name}/golden.csv"}
    )
    for name, words in WORDS.items()
}
FLEET = Fleet(fleet="f", store="s", plants=tuple(PLANTS.values()))
NUM = 160


def golden(
    name: str, seed: int, *, rates: dict[str, float], confused: tuple[int, int] | None = None, num: int = NUM
) -> Golden:
    """What annotators who err at these rates say of pictures, two a lot; `confused`: they err in two classes only."""
    truth = np.arange(num) % 4
    tables = []
    for who, rate in rates.items():
        rng = np.random.default_rng((seed, *map(ord, name + who)))
        wrong = (truth + rng.integers(1, 4, num)) % 4
        if confused:
            wrong = np.select([truth == confused[0], truth == confused[1]], [confused[1], confused[0]], truth)
        said = np.where(rng.random(num) < rate, wrong, truth)
        words = np.array(list(WORDS[name]), dtype=object)[said]
        tables.append(pd.DataFrame({"class": words, "annotator": who}).assign(**_pictures(num)))
    return Golden(PLANTS[name], pd.concat(tables, ignore_index=True), num_sealed=0)


def _pictures(num: int) -> dict[str, list[str]]:
    return {
        "image": [f"sha{i}" for i in range(num)],
        "frame": [f"{i}.png" for i in range(num)],
        "lot": [f"L{i // 2}" for i in range(num)],
    }


def expected(rate: float) -> float:
    """Kappa of two raters who each err at this rate, evenly over four classes of one size."""
    agree = (1 - rate) ** 2 + rate**2 / 3
    return (agree - 0.25) / 0.75


def the(found: list[Finding], kind: str) -> Finding:
    (finding,) = (f for f in found if f.kind == kind)
    return finding


def number(finding: Finding) -> float:
    return float(finding.detail.partition("kappa ")[2].split()[0])


def findings(*sets: Golden) -> list[Finding]:
    by_name = {one.plant.name: one for one in sets}
    return agreement_findings(FLEET, by_name, names=list(by_name))


@pytest.mark.parametrize("seed", range(4))
def test_kappa_is_the_published_one_weighted_too_and_its_mean_over_pairs(seed):
    rng = np.random.default_rng(seed)
    codes, weights = rng.integers(-1, 3, (50, 3)), rng.integers(0, 3, (4, 50)).astype(float)
    pairs = [(0, 1), (0, 2), (1, 2)]
    for row in [np.ones(50), *weights]:
        values, sums = [], []
        for a, b in pairs:
            both = (codes[:, a] >= 0) & (codes[:, b] >= 0)
            values.append(cohen_kappa_score(codes[both, a], codes[both, b], sample_weight=row[both]))
            sums.append(row[both].sum())
        (drawn,) = drawn_kappa(codes, pairs=pairs, weights=row[None])
        assert drawn == pytest.approx(np.average(values, weights=sums))
    assert kappa(codes, pairs=pairs) == pytest.approx(drawn_kappa(codes, pairs=pairs, weights=np.ones((1, 50)))[0])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("whos", ["ab", "abc"])
@pytest.mark.parametrize(("rate", "level"), [(0.02, "info"), (0.3, "warning")])
def test_annotators_who_err_at_a_known_rate_have_the_kappa_of_that_rate(rate, level, whos, seed):
    (found,) = findings(golden("mill", seed, rates=dict.fromkeys(whos, rate)))
    assert found.level == level
    assert found.kind == ("annotators_agree" if level == "info" else "annotators_disagree")
    assert number(found) == pytest.approx(expected(rate), abs=0.12)
    assert f"{len(whos)} annotators ({', '.join(whos)}) on 160 images" in found.detail
    assert "they differ on" in found.detail


@pytest.mark.parametrize("seed", range(5))
def test_two_classes_that_are_mixed_up_are_told_from_those_that_are_not(seed):
    (found,) = findings(golden("mill", seed, rates={"a": 0.0, "b": 0.5}, confused=(1, 2)))
    by_class = dict(one.split("' ")[:2] for one in found.detail.partition("by class: '")[2].split(", '"))
    values = {name: float(rest.split()[0]) for name, rest in by_class.items()}
    assert {name for name, value in values.items() if value < 0.6} == {"crack", "dent"}
    assert values["good"] == 1


def test_perfect_agreement_is_known_as_far_as_its_lots_reach():
    (few,) = findings(golden("mill", 0, rates={"a": 0.0, "b": 0.0}, num=24))
    (many,) = findings(golden("mill", 0, rates={"a": 0.0, "b": 0.0}, num=400))
    assert "kappa 1.00 (0.71 to 1.00)" in few.detail
    assert "kappa 1.00 (0.98 to 1.00)" in many.detail
    assert "differ" not in many.detail
    (fewer,) = findings(golden("mill", 0, rates={"a": 0.0, "b": 0.0}, num=8))
    assert "kappa 1.00 (not enough lots)" in fewer.detail


@pytest.mark.parametrize(("rate", "kind"), [(0.02, "plants_agree"), (0.3, "plants_disagree")])
def test_plants_are_compared_in_the_fleets_classes_on_the_pictures_both_judged(rate, kind):
    mine, theirs = golden("mill", 1, rates={"a": 0.02, "b": 0.02}), golden("werk", 1, rates={"c": rate})
    judged = theirs.judgements[theirs.judgements["image"] != "sha7"]
    found = the(findings(mine, Golden(theirs.plant, judged, num_sealed=0)), kind)
    assert found.plant == "mill"
    assert "with plant werk, in the fleet's classes, on 159 images" in found.detail
    assert "'ok' 0." in found.detail
    assert "gut" not in found.detail


def test_what_cannot_be_told_is_said():
    alone = golden("mill", 0, rates={"a": 0.0})
    assert the(findings(alone), "agreement_unknown").level == "warning"
    assert the(agreement_findings(FLEET, {}, names=["werk"]), "agreement_unknown").level == "info"
    same = golden("mill", 0, rates={"a": 0.0, "b": 0.0})
    same.judgements["class"] = "good"
    assert "kappa undefined" in the(findings(same), "annotators_agree").detail


# --- the table -------------------------------------------------------------------------------------------------------

ROWS = pd.DataFrame({"frame": ["1.png", "2.png"], "sha256": ["s1", "s2"], "lot": ["L1", "L1"]})


class Table:
    """One golden table in a plant's folder."""

    def __init__(self, text: str) -> None:
        self.text = text

    def read(self, uri: str, relpath: str) -> bytes:
        assert (uri, relpath) == ("mill", "golden.csv")
        return self.text.encode()


def read(text: str, *, sealed: tuple[str, ...] = ()) -> Golden:
    return read_golden(PLANTS["mill"], files=Table(text), rows=ROWS, sealed=sealed)


def test_a_frame_is_known_by_the_plants_labels_or_by_its_digest():
    found = read("frame,class,annotator,sha256\n1.png,good,ada,\n1.png,crack,bob,\nfar/9.png,dent,ada,s9\n")
    assert found.judgements["image"].tolist() == ["s1", "s1", "s9"]
    assert found.judgements["lot"].tolist() == ["L1", "L1", "s9"]


def test_a_class_may_be_written_as_a_mac_writes_it():
    plant = Plant.model_validate(
        {"name": "mill", "images": "x", "classes": {"Öl": "stain"}, "golden": "mill/golden.csv"}
    )
    text = "frame,class,annotator\n1.png,O\u0308l,ada\n"
    assert read_golden(plant, files=Table(text), rows=ROWS, sealed=()).judgements["class"].tolist() == ["Öl"]


def test_judgements_of_sealed_frames_are_left_out_and_counted():
    found = read("frame,class,annotator\n1.png,good,ada\n1.png,crack,bob\n2.png,dent,ada\n", sealed=("s1",))
    assert found.judgements["frame"].tolist() == ["2.png"]
    assert found.num_sealed == 2
    assert "2 judgements of sealed test frames are left out" in the(findings(found), "agreement_unknown").detail


def test_a_picture_that_lies_there_under_two_names_is_judged_once_and_differently_is_a_fault():
    text = "frame,class,annotator,sha256\n1.png,good,ada,\ncopy.png,good,ada,s1\ncopy.png,good,bob,s1\n"
    found = read(text)
    assert found.judgements[["annotator", "class"]].to_numpy().tolist() == [["ada", "good"], ["bob", "good"]]
    with pytest.raises(ManyInputErrors, match=r"ada judges the same picture differently under the names 1\.png, copy"):
        read(text.replace("copy.png,good,ada", "copy.png,crack,ada"))


@pytest.mark.parametrize("sealed", [(), ("s1",)])
def test_a_table_in_which_nothing_open_is_judged_tells_nothing(sealed):
    text = "frame,class,annotator\n" + ("1.png,good,ada\n" if sealed else "")
    assert the(findings(read(text, sealed=sealed)), "agreement_unknown").level == "warning"


def test_every_fault_of_the_table_is_said_at_once():
    with pytest.raises(ManyInputErrors) as raised:
        read("frame,class,annotator\n1.png,goood,ada\n2.png,good,\n3.png,dent,bob\n1.png,good,eve\n1.png,dent,eve\n")
    for words in ("unknown class 'goood'", "names no annotator", "frame 3.png: is not among", "eve judges 1.png twice"):
        assert sum(words in fault for fault in raised.value.faults) == 1
    assert all(fault.startswith("plant mill: file mill/golden.csv: field golden") for fault in raised.value.faults)


@pytest.mark.parametrize("text", ["frame,annotator\n1.png,ada\n", ""])
def test_a_table_that_is_none_is_refused_with_what_it_needs(text):
    with pytest.raises(InputError, match=r"field golden: .* columns frame, class and annotator"):
        read(text)
