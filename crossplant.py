"""The front door: one command, `crossplant <verb>`. Rooms are imported when a verb needs them.

Exit codes: 0 done, 1 a check said no, 2 the input is wrong (one line a fault, no traceback).
"""

from __future__ import annotations

import contextlib
import gc
import json
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

app = typer.Typer(
    name="crossplant",
    help="For every plant the defect classifier that is provably best there: trained, compared, served.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(stderr=True, highlight=False)

FleetFile = Annotated[Path, typer.Option("--fleet", help="The fleet's YAML file.")]
JsonFile = Annotated[
    str | None,
    typer.Option("--json", callback=lambda value: _checked(value), help="Write one JSON document here; - is stdout."),
]
Plants = Annotated[list[str] | None, typer.Option("--plant", help="Only this plant; may be repeated.")]
Seeds = Annotated[list[int] | None, typer.Option("--seed", help="A seed; may be repeated.")]
MaxHours = Annotated[float | None, typer.Option(min=0, help="Refuse a plan that may take longer.")]
MaxGb = Annotated[float | None, typer.Option(min=0, help="Refuse a plan that may write more, in 10^9 bytes.")]
FLEET = Path("fleet.yaml")
DEMO_EPOCHS = 5
"""Epochs a stage in the demo; a recipe's own default is 20."""
UNCERTIFIED = "plants got no certificate on this host"
WITHDRAWN = "decisions were withdrawn by the sealed test"


def _fleet(path: Path) -> Any:
    from plants.plant import load_fleet

    return load_fleet(path)


def _settings() -> Any:
    import os

    from cluster.settings import Settings

    return Settings.load(os.environ)


def _names(fleet: Any, chosen: list[str] | None) -> list[str]:
    return [fleet.plant(name).name for name in chosen] if chosen else [plant.name for plant in fleet.plants]


def _certify(fleet: Any, *, settings: Any) -> Any:
    """What stages a route on this host before the journal names it; nothing is opened before it is asked."""

    def staged(plant: str, bundle: str, policy: str) -> None:
        nonlocal made
        if made is None:
            from serving.wiring import certify

            made = certify(settings, store_uri=fleet.store, fleet=fleet.fleet)
        made(plant, bundle, policy)

    made: Any = None
    return staged


def _checked(to: str | None, *, field: str = "--json") -> str | None:
    """The file to write, refused before any work when nothing can be written there."""
    from plants.errors import InputError

    if to and to != "-" and not Path(to).parent.is_dir():
        raise InputError("the folder does not exist", file=to, field=field)
    if to and Path(to).is_dir():
        raise InputError("is a folder", file=to, field=field, remedy="Name a file in it")
    return to


def _finish(document: dict[str, Any], *, to: str | None) -> None:
    if not to:
        return
    with contextlib.nullcontext(sys.stdout) if to == "-" else Path(to).open("w", encoding="utf-8") as file:
        json.dump(document, file, indent=1, allow_nan=False, default=str)  # piece by piece: rejects may be many
        print(file=file, flush=True)


def _say(line: str) -> None:
    console.print(line, markup=False, soft_wrap=True)


@app.command("import")
def import_(
    fleet: FleetFile = FLEET,
    plant: Plants = None,
    new_generation: Annotated[
        bool, typer.Option(help="Lots seen for the first time get a sealed test of their own, to be opened anew.")
    ] = False,
    copies: Annotated[
        bool, typer.Option(help="Look for pictures that show the same, and keep them from playing two roles.")
    ] = True,
    reread: Annotated[
        bool, typer.Option("--reread", help="Read frames again that an earlier import has read.")
    ] = False,
    json_to: JsonFile = None,
) -> None:
    """Read frames and labels of the plants, deal new lots to train / select / decide / test, seal the test's labels.

    Example: crossplant import --fleet steel.yaml --plant neu
    """
    from jobs import verbs
    from plants.errors import ManyInputErrors

    loaded = _fleet(fleet)
    names = _names(loaded, plant)
    cache = _settings().cache if copies else None
    document = verbs.import_fleet(
        loaded, names=names, show=console, is_new_generation=new_generation, is_reread=reread, cache=cache
    )
    _finish(document, to=json_to)
    if document["faults"]:
        raise ManyInputErrors(document["faults"])


@app.command()
def label(
    plant: Annotated[str, typer.Option(help="The plant.")],
    annotator: Annotated[str | None, typer.Option(help="Who judges; the system's user when absent.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 picks a free one.")] = 0,
    fleet: FleetFile = FLEET,
    json_to: JsonFile = None,
) -> None:
    """Label a plant's frames on a page by keyboard, until interrupted: many at once, undo, several annotators.

    Open the address it prints, on this machine. `labels:` and `golden:` in the fleet's file name two CSV files, which
    need not exist yet. A second person runs it likewise, and judges before seeing what the first said.

    Example: crossplant label --fleet steel.yaml --plant neu --annotator ada
    """
    from serving import labelling

    chosen = _fleet(fleet).plant(plant)
    _finish(labelling.label(chosen, annotator=annotator, port=port, say=_say), to=json_to)


@app.command()
def audit(
    fleet: FleetFile = FLEET,
    plant: Plants = None,
    images: Annotated[bool, typer.Option(help="Look at the images too, and write a page with contact sheets.")] = True,
    json_to: JsonFile = None,
) -> None:
    """Say what is wrong with the data, how bad it is and what to do. Exit 1 when a finding is an error.

    Example: crossplant audit --fleet steel.yaml
    """
    from jobs import verbs

    loaded = _fleet(fleet)
    names = _names(loaded, plant)
    document = verbs.audit_fleet(loaded, settings=_settings(), names=names, show=console, is_looking=images)
    _finish(document, to=json_to)
    _fail_if([f for f in document["findings"] if f["level"] == "error"], "findings at level error")


@app.command()
def train(
    fleet: FleetFile = FLEET,
    recipe: Annotated[Path | None, typer.Option(help="A recipe file, as `crossplant tune` writes it.")] = None,
    seed: Seeds = None,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(help="Also fit without PLANT, PLANT/ENVIRONMENT or PLANT:product=NAME; all: each plant in turn."),
    ] = None,
    strategy: Annotated[
        Literal["all", "by-data"],
        typer.Option(help="Every stage, kept where it wins; or heads alone under 200 labels in the median class."),
    ] = "all",
    average: Annotated[
        bool, typer.Option("--average", help="Also mean weights: of own, warm and pooled, and of own over the seeds.")
    ] = False,
    measured_donors: Annotated[
        bool, typer.Option("--measured-donors", help="Start from the sister that the last `compare` says helps most.")
    ] = False,
    retry_failed: Annotated[bool, typer.Option(help="Try runs again that failed before.")] = False,
    estimate: Annotated[bool, typer.Option("--estimate", help="Only say what it would cost: hours and bytes.")] = False,
    max_hours: MaxHours = None,
    max_gb: MaxGb = None,
    refresh: Annotated[
        bool,
        typer.Option(
            "--refresh",
            help="Go on with what was decided for, on old and new rows: heads alone while at most a fifth is new.",
        ),
    ] = False,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Also nets from random weights and hand-made features: never chosen.")
    ] = False,
    json_to: JsonFile = None,
) -> None:
    """Train the fleet's plan: frozen baseline, own, pooled, warm-started; the same command resumes after a kill.

    Example: crossplant train --fleet steel.yaml --seed 0 --seed 1
    """
    from jobs import verbs
    from plants.errors import InputError

    if refresh and (recipe or seed or leave_out or average or baselines or measured_donors or strategy != "all"):
        remedy = "Leave out --recipe, --seed, --leave-out, --strategy, --average, --measured-donors and --baselines"
        raise InputError("what is trained is that of the plan that is refreshed", field="--refresh", remedy=remedy)
    document = verbs.train(
        _fleet(fleet),
        settings=_settings(),
        recipe_file=recipe,
        seeds=tuple(seed or (0,)),
        leave_out=tuple(leave_out or ()),
        average=average,
        is_by_donors=measured_donors,
        retry_failed=retry_failed,
        max_hours=max_hours,
        max_gb=max_gb,
        is_estimate=estimate,
        is_by_data=strategy == "by-data",
        refresh=refresh,
        baselines=baselines,
        show=console,
    )
    _finish(document, to=json_to)
    _fail_if([run for run in document["runs"] if run["state"] == "failed"], "runs failed")


@app.command()
def tune(
    fleet: FleetFile = FLEET,
    plant: Plants = None,
    trials: Annotated[int | None, typer.Option(min=1, help="How many recipes to try; 24 when absent.")] = None,
    out: Annotated[Path, typer.Option(help="Where the best recipe is written.")] = Path("recipe.yaml"),
    frozen: Annotated[
        bool,
        typer.Option("--frozen", help="Only heads on frozen features, all settings: every plant's floor in seconds."),
    ] = False,
    json_to: JsonFile = None,
) -> None:
    """Search the recipe by Bayesian optimisation; a killed search resumes. The best is written for `train --recipe`.

    Example: crossplant tune --fleet steel.yaml --trials 32 --out best.yaml
    """
    _checked(str(out), field="--out")
    loaded = _fleet(fleet)
    if frozen:
        from jobs import baselines
        from plants.errors import InputError

        if trials is not None:
            remedy = "Leave one of the two out"
            raise InputError("frozen heads are fitted at all settings, none is tried", field="--trials", remedy=remedy)

        document = baselines.frozen(loaded, settings=_settings(), named=plant or (), out=out, show=console)
        return _finish(document, to=json_to)
    from jobs import tune as search

    names = search.tuned_plants(loaded, named=plant or ())
    document = search.tune(loaded, settings=_settings(), plants=names, trials=trials or 24, out=out, show=console)
    _finish(document, to=json_to)


@app.command()
def compare(
    fleet: FleetFile = FLEET,
    robustness: Annotated[
        bool,
        typer.Option(
            "--robustness/--no-robustness", help="Also judge the chosen models on dark, blurred, noisy, ... parts."
        ),
    ] = True,
    floor_points: Annotated[
        float,
        typer.Option(
            min=0,
            max=100,
            help="After `train --leave-out all`: points of macro-F1 that a new plant's floor lies under its best.",
        ),
    ] = 2.0,
    json_to: JsonFile = None,
) -> None:
    """Judge every model at every plant on `decide`, from the exported files, and decide plant by plant.

    Example: crossplant compare --fleet steel.yaml
    """
    from jobs import verdicts

    document = verdicts.compare(
        _fleet(fleet), settings=_settings(), show=console, is_robust=robustness, floor_margin=floor_points / 100
    )
    _finish(document, to=json_to)


@app.command()
def compress(fleet: FleetFile = FLEET, json_to: JsonFile = None) -> None:
    """Make INT8 of what `compare` chose, judge it at every plant on `decide` and time it here; else float is kept.

    Before `evaluate` and `publish`: the bundles then name both, and each host serves the one that is faster there.

    Example: crossplant compress --fleet steel.yaml
    """
    from jobs import int8_release

    _finish(int8_release.compress(_fleet(fleet), settings=_settings(), show=console), to=json_to)


@app.command()
def evaluate(fleet: FleetFile = FLEET, plant: Plants = None, json_to: JsonFile = None) -> None:
    """Open the sealed test once for the models that `compare` chose; the ledger records it (5 openings at most).

    A decision that it contradicts is withdrawn, and the command ends with exit code 1.

    Example: crossplant evaluate --fleet steel.yaml
    """
    from jobs import verdicts

    loaded = _fleet(fleet)
    document = verdicts.evaluate(loaded, settings=_settings(), names=_names(loaded, plant), show=console)
    _finish(document, to=json_to)
    _fail_if([row for row in document["plants"].values() if row["withdrawn"]], WITHDRAWN)


@app.command()
def publish(fleet: FleetFile = FLEET, plant: Plants = None, json_to: JsonFile = None) -> None:
    """Put the chosen bundles and policies into the registry; a plant without a champion gets its route at once.

    Each is staged on this host first and gets a certificate that it answers here as where it was judged, and in time.

    Example: crossplant publish --fleet steel.yaml
    """
    from jobs import release

    loaded = _fleet(fleet)
    settings, names = _settings(), _names(loaded, plant)
    document = release.publish(
        loaded, settings=settings, names=names, show=console, certify=_certify(loaded, settings=settings)
    )
    _finish(document, to=json_to)
    _fail_if(document["withdrawn"], WITHDRAWN)
    _fail_if(document["uncertified"], UNCERTIFIED)


@app.command()
def policy(
    plant: Annotated[str, typer.Option(help="The plant.")],
    checked: Annotated[
        Path | None, typer.Option(help="Checked parts: part_id, class or is_defect, sample_prob, lot if known.")
    ] = None,
    parts: Annotated[int | None, typer.Option(min=1, help="All parts of that period, checked or not.")] = None,
    promote: Annotated[bool, typer.Option("--promote", help="Judge by it from now on.")] = False,
    fleet: FleetFile = FLEET,
    json_to: JsonFile = None,
) -> None:
    """Solve a plant's thresholds anew at the measured defect rate, as a new policy of the same bundle: no learning.

    Example: crossplant policy --fleet fleet.yaml --plant tilery --checked march.csv --parts 120000
    """
    from jobs.resolve import resolve

    given = {"name": plant, "checked": checked, "num_parts": parts, "is_promoted": promote}
    loaded, settings = _fleet(fleet), _settings()
    staged = _certify(loaded, settings=settings)
    _finish(resolve(loaded, settings=settings, show=console, certify=staged, **given), to=json_to)


@app.command()
def promote(
    plant: Annotated[str, typer.Option(help="The plant.")],
    bundle: Annotated[str, typer.Option(help="Digest of a published bundle, or its beginning.")],
    policy: Annotated[str | None, typer.Option(help="Digest of its policy; the latest one when absent.")] = None,
    expected: Annotated[
        int | None, typer.Option(min=0, help="Sequence of the route this was decided on; exit 1 when it is another.")
    ] = None,
    fleet: FleetFile = FLEET,
    json_to: JsonFile = None,
) -> None:
    """Make a published bundle the champion of a plant, once it has its certificate on this host.

    Example: crossplant promote --fleet steel.yaml --plant neu --bundle 3f2a
    """
    from jobs import release

    loaded, settings = _fleet(fleet), _settings()
    document = release.promote(
        loaded,
        settings=settings,
        plant=plant,
        bundle=bundle,
        policy=policy,
        expected=expected,
        show=console,
        certify=_certify(loaded, settings=settings),
    )
    _finish(document, to=json_to)


@app.command()
def rollback(
    plant: Annotated[str, typer.Option(help="The plant.")], fleet: FleetFile = FLEET, json_to: JsonFile = None
) -> None:
    """Give a plant the route it had before; again, and it walks further back.

    Example: crossplant rollback --fleet steel.yaml --plant neu
    """
    from jobs import release

    _finish(release.rollback(_fleet(fleet), settings=_settings(), plant=plant, show=console), to=json_to)


@app.command()
def status(fleet: FleetFile = FLEET, json_to: JsonFile = None) -> None:
    """Show runs, routes and alarms, from any shell.

    Example: crossplant status --fleet steel.yaml
    """
    from jobs import release

    _finish(release.status(_fleet(fleet), settings=_settings(), show=console), to=json_to)


@app.command()
def serve(
    fleet: FleetFile = FLEET,
    plant: Plants = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 picks a free one.")] = 8000,
    replicas: Annotated[int, typer.Option(min=1, help="Processes that answer.")] = 1,
    group: Annotated[
        str | None,
        typer.Option(
            help="Only the plants whose `group` in the fleet's file this is; each group has its own address, so give "
            "each a --port. Another group's plant is a 404 here."
        ),
    ] = None,
    branch_mb: Annotated[
        float, typer.Option(min=0, help="Memory of a replica for branches and whole models; heads are not counted.")
    ] = 1024,
    pin: Annotated[list[str] | None, typer.Option(help="A plant whose branch always stays loaded; repeat it.")] = None,
    merge_adapters: Annotated[
        bool,
        typer.Option("--merge-adapters", help="Adapters as branches: a little faster each, a session's memory each."),
    ] = False,
    json_to: JsonFile = None,
) -> None:
    """Serve every plant that has a route, until interrupted; tokens are written under home, never shown.

    Example: crossplant serve --fleet steel.yaml --port 8000
    """
    from serving import verbs

    loaded, settings = _fleet(fleet), _settings()
    document = verbs.serve_fleet(
        loaded,
        settings=settings,
        plants=plant or (),
        group=group,
        host=host,
        port=port,
        replicas=replicas,
        branch_mb=branch_mb,
        pinned=pin or (),
        merge_adapters=merge_adapters,
    )
    tokens = settings.home / "tokens"
    lines = [
        f"{document['address']}/plants/{name}/predict  token: {tokens}/{name}.token" for name in document["plants"]
    ]
    lines.append(f"promote, roll back: {tokens}/_lead.token; GET /metrics: {tokens}/_auditor.token")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    _finish(document, to=json_to)
    verbs.wait_until_interrupted(loaded)


@app.command()
def trace(
    part: Annotated[str, typer.Argument(help="The part's id as the line sent it, or a request_id.")],
    plant: Annotated[str, typer.Option(help="The plant that judged it.")],
    since: Annotated[str | None, typer.Option(help="First day to look at, YYYY-MM-DD in UTC.")] = None,
    until: Annotated[str | None, typer.Option(help="Last day to look at.")] = None,
    fleet: FleetFile = FLEET,
    json_to: JsonFile = None,
) -> None:
    """Say which model, policy and frames judged a part, when, and who made them the route. Exit 1 when it is not there.

    Reads the prediction log in the fleet's store, and says whether verdicts of these days are missing from it.

    Example: crossplant trace --fleet steel.yaml --plant neu 4711
    """
    from serving import log_verbs

    given = {"plant": plant, "part_id": part, "since": since, "until": until}
    document = log_verbs.trace(_fleet(fleet), settings=_settings(), say=_say, **given)
    _finish(document, to=json_to)
    if not document["judgements"]:
        from plants.errors import CheckFailed

        raise CheckFailed(f"no judgement of part {part} at {plant}")


@app.command("log")
def log_(
    compact: Annotated[
        bool, typer.Option("--compact", help="First make one Parquet file a plant and day of the segments.")
    ] = False,
    since: Annotated[str | None, typer.Option(help="First day, YYYY-MM-DD in UTC.")] = None,
    until: Annotated[str | None, typer.Option(help="Last day.")] = None,
    fleet: FleetFile = FLEET,
    json_to: JsonFile = None,
) -> None:
    """Say what the prediction log holds, day by day, and which verdicts are missing, whose and why.

    Replicas write a segment a second. Run `log --compact` every hour, so that `trace` stays fast: it is safe to repeat
    and to kill, writers are not disturbed, and segments go only after the rows of their Parquet files were counted.

    Example: crossplant log --fleet steel.yaml --compact
    """
    from serving import log_verbs

    given = {"is_compacting": compact, "since": since, "until": until}
    _finish(log_verbs.log_fleet(_fleet(fleet), settings=_settings(), say=_say, **given), to=json_to)


@app.command()
def token(
    fleet: FleetFile = FLEET,
    plant: Annotated[str | None, typer.Option(help="The plant whose token it is.")] = None,
    role: Annotated[
        Literal["lead", "auditor"] | None, typer.Option(help="Or a role that opens the whole fleet.")
    ] = None,
    overlap_hours: Annotated[float, typer.Option(min=0, help="How long the old ones still open.")] = 24.0,
    revoke: Annotated[bool, typer.Option("--revoke", help="End every one now, and make no new one.")] = False,
    json_to: JsonFile = None,
) -> None:
    """Change a token: a new one is kept under home, never shown; the old ones end after an overlap, or all end now.

    Replicas that run feel either within seconds.

    Example: crossplant token --fleet steel.yaml --plant neu --overlap-hours 2
    """
    from serving import verbs

    document = verbs.change_token(
        _fleet(fleet), settings=_settings(), plant=plant, role=role, overlap_hours=overlap_hours, is_revoked=revoke
    )
    if revoke:
        console.print(f"{document['old']} tokens of {document['of']} are revoked", markup=False)
    else:
        said = (
            f"{document['of']}: new token in {document['file']}; {document['old']} older end by {document['old_end']}"
        )
        console.print(said, markup=False, soft_wrap=True)
    _finish(document, to=json_to)


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="Frames, or folders of frames.")],
    plant: Annotated[str | None, typer.Option(help="The plant; a bundle that serves one needs none.")] = None,
    address: Annotated[str | None, typer.Option(help="Ask this endpoint, e.g. http://127.0.0.1:8000.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Or judge with this bundle's folder.")] = None,
    policy: Annotated[Path | None, typer.Option(help="Policy file for --bundle.")] = None,
    environment: Annotated[str | None, typer.Option(help="Where the frames were taken.")] = None,
    one_part: Annotated[bool, typer.Option("--one-part", help="All frames show one part.")] = False,
    expect: Annotated[Path | None, typer.Option(help="Golden parts: their last `--json`, to be reproduced.")] = None,
    repeats: Annotated[bool, typer.Option("--repeats", help="Shots of one part: all must be judged alike.")] = False,
    maps: Annotated[Path | None, typer.Option(help="A folder for pictures of where verdicts come from.")] = None,
    json_to: JsonFile = None,
) -> None:
    """Judge frames through a plant's endpoint or with a bundle on disk: the same frames get the same answer.

    With --expect or --repeats exit 1 when a result is not as expected; every such frame is named.

    Example: crossplant predict --plant neu --address http://127.0.0.1:8000 frames/
    """
    from plants.errors import InputError
    from serving import golden, verbs

    if repeats and one_part:
        raise InputError("shots of one part are judged one by one", field="--repeats / --one-part")
    before = golden.load_predictions(expect) if expect else None

    document = verbs.predict_files(
        images,
        plant=plant,
        address=address,
        bundle=bundle,
        policy=policy,
        environment=environment,
        one_part=one_part,
        maps=maps,
        settings=_settings(),
    )
    for row in document["predictions"]:
        said = row.get("error") or f"{row['verdict']}  {row['defect'] or ''}  {row['confidence']:.3f}"
        console.print(f"{row['image']}: {said}", markup=False, soft_wrap=True)
    found = golden.changed(document["predictions"], before=before) if before is not None else []
    found += golden.unlike(document["predictions"]) if repeats else []
    for line in found:
        console.print(f"not as expected: {line}", markup=False, soft_wrap=True)
    _finish({**document, "unexpected": found}, to=json_to)
    _fail_if([row for row in document["predictions"] if row.get("error")], "frames could not be judged")
    _fail_if(found, "results are not as expected")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
)
def submit(
    context: typer.Context,
    address: Annotated[str | None, typer.Option(help="The cluster's dashboard, e.g. http://head:8265.")] = None,
    kuberay: Annotated[bool, typer.Option("--kuberay", help="Print a RayJob manifest instead.")] = False,
    image: Annotated[str, typer.Option(help="Container image for --kuberay.")] = "crossplant-train:0.1.0",
    working_dir: Annotated[Path | None, typer.Option(help="Folder to send along.")] = None,
    env: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for the job; never a secret.")] = None,
    wait: Annotated[bool, typer.Option(help="Follow the log until the job ends.")] = True,
    json_to: JsonFile = None,
) -> None:
    """Run a verb as a Ray job of a cluster, or print it as a RayJob for Kubernetes.

    Example: crossplant submit --address http://127.0.0.1:8265 train --fleet steel.yaml
    """
    from plants.errors import InputError

    _check_words(context.args)
    if kuberay:
        from cluster.kuberay import manifests, to_yaml

        documents = manifests(context.args, image=image)
        if json_to != "-":
            sys.stdout.write(to_yaml(*documents))
        _finish({"manifest": documents}, to=json_to)
        return
    if address is None:
        raise InputError("no cluster is named", field="--address", remedy="Name its dashboard, or use --kuberay")
    given = dict(pair.partition("=")[::2] for pair in env or [])
    from cluster.submit import submit as send

    done = send(
        context.args,
        address=address,
        working_dir=working_dir,
        env=given,
        wait=wait,
        on_line=lambda line: console.print(line, markup=False, soft_wrap=True),
    )
    console.print(f"job {done.job_id}: {done.status}", markup=False)
    _finish({"job_id": done.job_id, "status": done.status}, to=json_to)
    if done.exit_code == 2:
        raise InputError(f"the job refused its input: {done.message}", field=done.job_id)
    _fail_if([done.status] if done.status in ("FAILED", "STOPPED") else [], "job did not succeed")


def _check_words(words: list[str]) -> None:
    """Ends with how the verb is used where its name or an option is none of ours; values are the cluster's to judge."""
    if words:
        command: Any = typer.main.get_command(app)
        name, verb, rest = command.resolve_command(context := command.make_context("crossplant", words[:1]), words)
        verb.make_parser(type(context)(verb, info_name=name, parent=context)).parse_args(list(rest))


@app.command()
def demo(
    seed: Annotated[int, typer.Option(help="Seed of the embedded fleet.")] = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Go on serving until interrupted.")] = False,
    json_to: JsonFile = None,
) -> None:
    """Generate the embedded fleet, train, compare, evaluate, publish, serve it and call its endpoints over HTTP.

    Example: crossplant demo
    """
    import time

    from cluster.settings import Settings
    from jobs import release, verbs, verdicts
    from jobs.recipe import default_recipe, save_recipe
    from plants.errors import ManyInputErrors
    from plants.synthetic import make_fleet

    start, own = time.monotonic(), _settings()
    home = own.home / "demo"
    marker = _begun(home)
    alone = {"home": home, "tracking_uri": "", "journal_url": "", "ray_address": "local"}
    settings = Settings.model_validate(own.model_dump() | alone)
    console.print("The embedded fleet: generated images of six invented plants. Nothing here is a real factory.")
    loaded = _fleet(make_fleet(home / "fleet", seed=seed))
    names = [plant.name for plant in loaded.plants]
    if faults := verbs.import_fleet(loaded, names=names, show=console)["faults"]:
        raise ManyInputErrors(faults)
    verbs.audit_fleet(loaded, settings=settings, names=names, show=console, is_looking=False)
    recipe = home / "recipe.yaml"
    save_recipe(default_recipe(loaded.trunks[0].cuts, epochs=DEMO_EPOCHS), recipe, header="The demo's: short stages")
    trained = verbs.train(
        loaded, settings=settings, recipe_file=recipe, seeds=(0,), leave_out=(), retry_failed=False, show=console
    )
    compared = verdicts.compare(loaded, settings=settings, show=console)
    verdicts.evaluate(loaded, settings=settings, names=names, show=console)
    staged = _certify(loaded, settings=settings)
    published = release.publish(loaded, settings=settings, names=names, show=console, certify=staged)
    withdrawn = published["withdrawn"]
    served = _called(loaded, settings=settings)
    document = {
        "plants": names,
        "synthetic": True,
        "runs": trained["runs"],
        **{key: compared[key] for key in ("matrix", "decisions", "report")},
        "withdrawn": withdrawn,
        **served,
        "seconds": round(time.monotonic() - start, 1),
    }
    marker.unlink()
    console.print(f"report: {compared['report']}", markup=False, soft_wrap=True)
    console.print(
        f"{len(names)} plants from images to endpoints in {document['seconds']:.0f} s. The data are synthetic. "
        f"Next: `crossplant --help`, and your own plants in a fleet.yaml (README).",
        soft_wrap=True,
    )
    _finish(document, to=json_to)
    _stop(loaded, keep=keep)
    _fail_if([run for run in trained["runs"] if run["state"] == "failed"], "runs failed")
    _fail_if(withdrawn, WITHDRAWN)
    _fail_if(published["uncertified"], UNCERTIFIED)


def _begun(home: Path) -> Path:
    """The file that stands in the demo's home until it has finished; what a finished demo left there is gone."""
    import shutil

    marker = home / "unfinished"
    if home.exists() and not marker.exists():
        shutil.rmtree(home)
    home.mkdir(parents=True, exist_ok=True)
    marker.touch()
    return marker


def _called(loaded: Any, *, settings: Any) -> dict[str, Any]:
    """The fleet is served, three parts of every plant were judged over HTTP with its token, and counted."""
    from rich.table import Table

    from cluster.catalog import Catalog
    from cluster.storage import PlantFiles
    from serving.client import Client
    from serving.verbs import ensure_token, serve_fleet

    served = serve_fleet(loaded, settings=settings, host="127.0.0.1", port=0)
    catalog, files = Catalog.of(loaded), PlantFiles()
    table = Table(title=f"Endpoints at {served['address']}, each called with its own token", title_justify="left")
    for column in ("endpoint", "environment", "frames", "verdict", "defect", "confidence", "ms"):
        table.add_column(column, overflow="fold")
    endpoints, metrics = {}, {}
    for name in served["plants"]:
        plant = loaded.plant(name)
        rows = catalog.rows(name)
        rows = rows[rows["role"] == "test"]
        with Client(served["address"], token=ensure_token(settings, plant=name)) as client:
            for part_id in rows["part_id"].drop_duplicates().head(3):
                frames = rows[rows["part_id"] == part_id]
                images = [(frame, files.read(plant.images, frame)) for frame in frames["frame"]]
                environment = frames["environment"].iloc[0]
                answer = client.predict(name, images, part_id=part_id, environment=environment)
                cells = [environment, str(len(images)), answer["verdict"], answer["defect"] or ""]
                table.add_row(
                    f"/plants/{name}/predict", *cells, f"{answer['confidence']:.2f}", f"{answer['latency_ms']:.0f}"
                )
            metrics[name] = client.metrics(name)
        endpoints[name] = f"{served['address']}/plants/{name}/predict"
    console.print(table)
    for name, counted in metrics.items():
        console.print(f"metrics {name}: {_counts(counted)}", markup=False, soft_wrap=True)
    return {"address": served["address"], "endpoints": endpoints, "metrics": metrics}


def _counts(metrics: dict[str, Any]) -> str:
    """Requests and verdicts by environment, in words."""
    said = []
    for name, row in metrics.get("environments", {}).items():
        verdicts = ", ".join(f"{verdict} {n}" for verdict, n in row["verdicts"].items() if n)
        said.append(f"{name}: {row['requests']} requests ({verdicts})")
    return "; ".join(said)


def _stop(loaded: Any, *, keep: bool) -> None:
    """Serving goes on until interrupted, or ends now; then Ray ends."""
    from serving import verbs

    if keep:
        console.print("serving; Ctrl-C ends it")
        verbs.wait_until_interrupted(loaded)
    else:
        verbs.stop(loaded)


def _fail_if(bad: list[Any], what: str) -> None:
    from plants.errors import CheckFailed

    if bad:
        raise CheckFailed(f"{len(bad)} {what}")


def main() -> None:
    """Run the command; faults of the input become lines, not tracebacks."""
    from plants.errors import CheckFailed, InputError

    gc.set_threshold(100_000, 50, 100)  # importing torch and timm then takes 3.3 s in place of 4.2
    warnings.showwarning = lambda message, *place, **more: console.print(  # one line, without a place in our code
        f"warning: {message}", style="yellow", markup=False, soft_wrap=True
    )
    try:
        app(standalone_mode=True)
    except InputError as error:
        for fault in error.faults:
            console.print(f"error: {fault}", style="red", markup=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except CheckFailed as error:
        console.print(f"check failed: {error}", style="yellow", markup=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
