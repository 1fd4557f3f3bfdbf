"""What transfer bought: the chosen model and the frozen one beside a net from random weights and a classical model.

All are judged on the same parts of `decide`, by the exported files, over every seed that was trained. A figure over
several seeds is their mean, and its interval the mean of their intervals: a mean is known at least as well as what it
is made of is on average. Such intervals are over lots; how far seeds lie apart stands beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cluster.ledger import RunRecord
from jobs.plan import BASELINES, Plan
from plants.differences import paired
from plants.metrics import report

if TYPE_CHECKING:
    from plants.verdict import Candidate

METHODS = ("classical", "scratch", "frozen", "chosen")
"""In the order of the table."""
Seeds = Mapping[int, "Candidate"]


def transfer(
    plant: str,
    *,
    chosen: Candidate,
    candidates: Sequence[Candidate],
    plan: Plan,
    done: Collection[str],
    judge: Callable[[str, str, tuple[str, ...]], Candidate],
    seed: int,
) -> dict[str, Any] | None:
    """The plant's row of the table, still without seconds; None where no baseline was trained or no class is named.

    candidates: of `seed`; judge: name, kind and runs -> the candidate of another seed.
    """
    known = {candidate.name: candidate for candidate in candidates}
    runs = [run for run in plan.runs if run.run_id in done and run.target == plant]
    if chosen.kind == "normality" or not any(run.kind in BASELINES for run in runs):
        return None

    def of(name: str, kind: str, members: tuple[str, ...]) -> Candidate:
        return known.get(name) or judge(name, kind, members)

    found: dict[str, dict[int, Candidate]] = {
        kind: {run.seed: of(run.run_id, kind, (run.run_id,)) for run in runs if run.kind == kind}
        for kind in METHODS[:-1]
    }
    found["chosen"] = {seed: chosen}
    for other in sorted({run.seed for run in plan.runs} - {seed}):
        members = tuple(f"{name.removesuffix(f'-s{seed}')}-s{other}" for name in chosen.members)
        if all(name in done for name in members):
            name = members[0] if len(members) == 1 else f"{chosen.name} at seed {other}"
            found["chosen"][other] = of(name, chosen.kind, members)
    drawn = {other: one for other in found["chosen"] for one in found["classical"].values()}
    """The classical model draws nothing at random: it is what every seed would have."""
    return {
        "plant": plant,
        "model": chosen.name,
        "methods": {method: _method(seeds) for method, seeds in found.items()},
        "against": {
            "scratch": _against(found["chosen"], found["scratch"]),
            "classical": _against(found["chosen"], drawn),
        },
    }


def _method(seeds: Seeds) -> dict[str, Any] | None:
    """Figures of a method over its seeds; None where none was trained to the end."""
    if not seeds:
        return None
    reports = [report(one.scores, policy=one.judged_by, seed=seed) for seed, one in seeds.items()]
    return {
        "num_seeds": len(seeds),
        "runs": {str(seed): list(one.members) for seed, one in seeds.items()},
        "macro_f1": _mean([each["macro_f1"] for each in reports]),
        "cost": _mean([each["cost"] for each in reports]),
    }


def _mean(figures: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """The mean of figures and of their intervals, with each one's value; None where there is none to be had."""
    there = [figure for figure in figures if figure is not None and figure["value"] is not None]
    if not there or len(there) < len(figures):
        return None
    ends = {}
    for key in ("value", "low", "high"):
        values = [figure[key] for figure in there]
        ends[key] = round(sum(values) / len(values), 6) if None not in values else None
    return {**ends, "words": there[0]["words"], "by_seed": [figure["value"] for figure in there]}


def _against(chosen: Seeds, other: Seeds) -> dict[str, Any] | None:
    """The chosen model less another method, seed by seed; None where they have none in common."""
    pairs = [(seed, chosen[seed], other[seed]) for seed in chosen if seed in other]
    if not pairs:
        return None
    f1 = [paired(a.scores, b.scores, seed=seed) for seed, a, b in pairs]
    money = [paired(a.scores, b.scores, policy_a=a.judged_by, policy_b=b.judged_by, seed=seed) for seed, a, b in pairs]
    cost = [row for row in money if row["metric"] == "cost"]
    return {"num_seeds": len(pairs), "macro_f1": _difference(f1), "cost": _difference(cost) if cost else None}


def _difference(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The mean difference and what it says; less money is better, more macro-F1 is."""
    found = _mean([{**row, "value": row["diff"]} for row in rows])
    if found is None or found["low"] is None:
        return found
    if found["low"] <= 0 <= found["high"]:
        return {**found, "words": "no difference shown"}
    is_better = (found["value"] > 0) == (rows[0]["metric"] == "macro_f1")
    return {**found, "words": "transfer is better" if is_better else "transfer is WORSE"}


def with_seconds(
    rows: Sequence[Mapping[str, Any]],
    *,
    plan: Plan,
    records: Mapping[str, RunRecord],
    prepared: Mapping[str, float],
) -> list[dict[str, Any]]:
    """The rows with `seconds` a method, the mean of its seeds: all its runs and those that they started from.

    prepared: plant -> seconds that its activations took. A run that learns from them is charged its share,
    `activation_seconds` within `seconds`; None where they lay in the cache from before this plan.
    """
    timed = []
    for row in rows:
        methods = {
            name: found and {**found, **_seconds(found["runs"], plan=plan, records=records, prepared=prepared)}
            for name, found in row["methods"].items()
        }
        timed.append({**row, "methods": methods})
    return timed


def _seconds(
    runs: Mapping[str, Sequence[str]],
    *,
    plan: Plan,
    records: Mapping[str, RunRecord],
    prepared: Mapping[str, float],
) -> dict[str, float | None]:
    users = [name for run in plan.runs if run.kind not in BASELINES for name in run.plants]
    needed: list[str] = []
    for members in runs.values():
        needed += {run_id: None for member in members for run_id in plan.line(member)}
    sources = [name for run_id in needed if plan.run(run_id).kind not in BASELINES for name in plan.run(run_id).plants]
    is_known = all(name in prepared for name in sources)
    shares = sum(prepared[name] / users.count(name) for name in sources) if is_known else None
    spent = sum(records[run_id].seconds for run_id in needed)
    return {
        "seconds": (spent + (shares or 0.0)) / len(runs),
        "activation_seconds": None if shares is None else shares / len(runs),
    }
