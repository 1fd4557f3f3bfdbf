"""The front door: one command, `crossplant <verb>`. Rooms are imported when a verb needs them.

Exit codes: 0 done, 1 a check said no, 2 the input is wrong (one line a fault, no traceback).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

app = typer.Typer(
    name="crossplant",
    help="For every plant the defect classifier that is provably best there: trained, compared, served.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
plant_app = typer.Typer(help="Plants of a fleet.", no_args_is_help=True)
app.add_typer(plant_app, name="plant")
console = Console(stderr=True, highlight=False)

FleetFile = Annotated[Path, typer.Option("--fleet", help="The fleet's YAML file.")]
JsonFile = Annotated[str | None, typer.Option("--json", help="Write one JSON document to this file, or - for stdout.")]
Plants = Annotated[list[str] | None, typer.Option("--plant", help="Only this plant; may be repeated.")]
FLEET = Path("fleet.yaml")


def _fleet(path: Path) -> Any:
    from plants.plant import load_fleet

    return load_fleet(path)


def _settings() -> Any:
    import os

    from cluster.settings import Settings

    return Settings.load(os.environ)


def _names(fleet: Any, chosen: list[str] | None) -> list[str]:
    return [fleet.plant(name).name for name in chosen] if chosen else [plant.name for plant in fleet.plants]


def _finish(document: dict[str, Any], *, to: str | None) -> None:
    if to == "-":
        sys.stdout.write(json.dumps(document, indent=1, allow_nan=False, default=str) + "\n")
    elif to:
        Path(to).write_text(json.dumps(document, indent=1, allow_nan=False, default=str) + "\n", encoding="utf-8")


@app.command("import")
def import_(fleet: FleetFile = FLEET, plant: Plants = None, json_to: JsonFile = None) -> None:
    """Read frames and labels of the plants, deal new lots to train / select / decide / test, seal the test's labels.

    Example: crossplant import --fleet steel.yaml --plant neu
    """
    from jobs import verbs

    document = verbs.import_fleet(_fleet(fleet), names=_names(_fleet(fleet), plant), show=console)
    _finish(document, to=json_to)


@app.command()
def audit(fleet: FleetFile = FLEET, plant: Plants = None, json_to: JsonFile = None) -> None:
    """Say what is wrong with the data, how bad it is and what to do. Exit 1 when a finding is an error.

    Example: crossplant audit --fleet steel.yaml
    """
    from jobs import verbs

    loaded = _fleet(fleet)
    document = verbs.audit_fleet(loaded, names=_names(loaded, plant), show=console)
    _finish(document, to=json_to)
    _fail_if([f for f in document["findings"] if f["level"] == "error"], "findings at level error")


@app.command()
def train(
    fleet: FleetFile = FLEET,
    recipe: Annotated[Path | None, typer.Option(help="A recipe file, as `crossplant tune` writes it.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="A seed; may be repeated.")] = None,
    leave_out: Annotated[list[str] | None, typer.Option(help="Also pool without this plant; may be repeated.")] = None,
    retry_failed: Annotated[bool, typer.Option(help="Try runs again that failed before.")] = False,
    json_to: JsonFile = None,
) -> None:
    """Train the fleet's plan: frozen baseline, own, pooled, warm-started; the same command resumes after a kill.

    Example: crossplant train --fleet steel.yaml --seed 0 --seed 1
    """
    from jobs import verbs

    document = verbs.train(
        _fleet(fleet),
        settings=_settings(),
        recipe_file=recipe,
        seeds=tuple(seed or (0,)),
        leave_out=tuple(leave_out or ()),
        retry_failed=retry_failed,
        show=console,
    )
    _finish(document, to=json_to)
    _fail_if([run for run in document["runs"] if run["state"] == "failed"], "runs failed")


@app.command()
def tune(
    fleet: FleetFile = FLEET,
    plant: Plants = None,
    trials: Annotated[int, typer.Option(min=1, help="How many recipes to try.")] = 24,
    out: Annotated[Path, typer.Option(help="Where the best recipe is written.")] = Path("recipe.yaml"),
    json_to: JsonFile = None,
) -> None:
    """Search the recipe by Bayesian optimisation; a killed search resumes. The best is written for `train --recipe`.

    Example: crossplant tune --fleet steel.yaml --trials 32 --out best.yaml
    """
    from jobs import tune as search

    loaded = _fleet(fleet)
    document = search.tune(
        loaded, settings=_settings(), plants=_names(loaded, plant), trials=trials, out=out, show=console
    )
    _finish(document, to=json_to)


@app.command()
def compare(fleet: FleetFile = FLEET, json_to: JsonFile = None) -> None:
    """Judge every model at every plant on `decide`, from the exported files, and decide plant by plant.

    Example: crossplant compare --fleet steel.yaml
    """
    from jobs import verbs

    _finish(verbs.compare(_fleet(fleet), settings=_settings(), show=console), to=json_to)


@app.command()
def evaluate(fleet: FleetFile = FLEET, plant: Plants = None, json_to: JsonFile = None) -> None:
    """Open the sealed test once for the models that `compare` chose; the ledger records it (5 openings at most).

    Example: crossplant evaluate --fleet steel.yaml
    """
    from jobs import verbs

    loaded = _fleet(fleet)
    document = verbs.evaluate(loaded, settings=_settings(), names=_names(loaded, plant), show=console)
    _finish(document, to=json_to)


@app.command()
def publish(fleet: FleetFile = FLEET, plant: Plants = None, json_to: JsonFile = None) -> None:
    """Put the chosen bundles and policies into the registry; a plant without a champion gets its route at once.

    Example: crossplant publish --fleet steel.yaml
    """
    from jobs import verbs

    loaded = _fleet(fleet)
    document = verbs.publish(loaded, settings=_settings(), names=_names(loaded, plant), show=console)
    _finish(document, to=json_to)


@app.command()
def promote(
    plant: Annotated[str, typer.Option(help="The plant.")],
    bundle: Annotated[str, typer.Option(help="Digest of a published bundle, or its beginning.")],
    policy: Annotated[str | None, typer.Option(help="Digest of its policy; the latest one when absent.")] = None,
    fleet: FleetFile = FLEET,
    json_to: JsonFile = None,
) -> None:
    """Make a published bundle the champion of a plant.

    Example: crossplant promote --fleet steel.yaml --plant neu --bundle 3f2a
    """
    from jobs import verbs

    document = verbs.promote(
        _fleet(fleet), settings=_settings(), plant=plant, bundle=bundle, policy=policy, show=console
    )
    _finish(document, to=json_to)


@app.command()
def rollback(
    plant: Annotated[str, typer.Option(help="The plant.")], fleet: FleetFile = FLEET, json_to: JsonFile = None
) -> None:
    """Give a plant the route it had before; again, and it walks further back.

    Example: crossplant rollback --fleet steel.yaml --plant neu
    """
    from jobs import verbs

    _finish(verbs.rollback(_fleet(fleet), settings=_settings(), plant=plant, show=console), to=json_to)


@app.command()
def status(fleet: FleetFile = FLEET, json_to: JsonFile = None) -> None:
    """Show runs, routes and alarms, from any shell.

    Example: crossplant status --fleet steel.yaml
    """
    from jobs import verbs

    _finish(verbs.status(_fleet(fleet), settings=_settings(), show=console), to=json_to)


def _fail_if(bad: list[Any], what: str) -> None:
    from plants.errors import CheckFailed

    if bad:
        raise CheckFailed(f"{len(bad)} {what}")


def main() -> None:
    """Run the command; faults of the input become lines, not tracebacks."""
    from plants.errors import CheckFailed, InputError

    try:
        app(standalone_mode=True)
    except InputError as error:
        for fault in error.faults:
            console.print(f"error: {fault}", style="red", markup=False, soft_wrap=True)
        sys.exit(2)
    except CheckFailed as error:
        console.print(f"check failed: {error}", style="yellow", markup=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
