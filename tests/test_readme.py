"""The README says what is true: its examples parse, its YAML loads, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer
import yaml

import crossplant
from cluster.settings import PREFIX, Settings
from jobs.recipe import Recipe, load_recipe
from plants.plant import Fleet, load_fleet
from serving.schemas import Answer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FOR_TESTS = {"CROSSPLANT_REAL_DATA", "CROSSPLANT_WEIGHTS", "CROSSPLANT_KUBERAY_CRDS"}


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return [text for name, text in BLOCK.findall(README) if name == language]


def commands(program: str) -> list[list[str]]:
    """The words after `program` of every line of a shell block that runs it."""
    lines = [line for text in blocks("sh") for line in text.replace("\\\n", " ").splitlines()]
    found = [shlex.split(line, comments=True) for line in lines]
    return [words[1:] for words in found if words[:1] == [program]]


def prose() -> str:
    """The README without fenced blocks."""
    return BLOCK.sub("", README)


def leaves(group: click.Group, *, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every verb, as the words that call it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, path=(*path, name))
        else:
            yield (*path, name)


def front_door() -> click.Group:
    """The command as click sees it."""
    return typer.main.get_command(crossplant.app)  # type: ignore[return-value]


def parse(words: list[str]) -> click.Context:
    """The context of a verb with these arguments, nothing run. Raises a usage error where they are wrong."""
    command: click.Command = front_door()
    for number, word in enumerate(words):
        if not hasattr(command, "commands"):
            return command.make_context(words[number - 1], words[number:])
        command = command.commands[word]
    return command.make_context(words[-1], [])


def plain_slug(heading: str) -> str:
    """The anchor of a heading, as code hosts make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_verb_has_an_example():
    shown = commands("crossplant")
    missing = [verb for verb in leaves(front_door()) if not any(tuple(words[: len(verb)]) == verb for words in shown)]
    assert not missing, f"no example in README.md: {missing}"


@pytest.mark.parametrize("words", commands("crossplant"), ids=" ".join)
def test_an_example_of_the_command_is_one_that_the_command_takes(words: list[str]):
    context = parse(words)
    assert context.command.name in words
    if words[0] == "submit":
        assert parse(context.args).command.name in context.args


WRONG = [["train", "--fleet", "a.yaml", "--sed", "1"], ["promote", "--plant", "a"], ["learn"]]


@pytest.mark.parametrize("words", WRONG)
def test_an_example_that_the_command_does_not_take_would_be_noticed(words: list[str]):
    with pytest.raises((Exception, SystemExit)) as raised:
        parse(words)
    assert type(raised.value).__name__ in {"NoSuchOption", "MissingParameter", "KeyError"}


def test_every_option_that_prose_names_is_an_option_of_some_verb():
    known = {"--help"}
    for verb in leaves(front_door()):
        command: click.Command = front_door()
        for word in verb:
            command = command.commands[word]  # type: ignore[attr-defined]
        known.update(option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", re.sub(r"<!--.*?-->", "", prose(), flags=re.DOTALL)))
    assert named - known == set()


def test_the_module_that_makes_the_backbone_knows_the_options_shown():
    (words,) = [words for words in commands("python") if words[:2] == ["-m", "jobs.pretrain"]]
    source = (ROOT / "jobs/pretrain.py").read_text("utf-8")
    for option in (word for word in words if word.startswith("--")):
        assert f'add_argument("{option}"' in source


def test_every_make_target_named_is_one_of_the_makefile():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = {words[0] for words in commands("make")} | set(re.findall(r"`make ([a-z-]+)[^`]*`", README))
    assert {"demo", "test"} <= named <= targets


def ten_lines() -> str:
    """The first YAML block."""
    return blocks("yaml")[0]


def test_the_recipe_shown_loads_and_shows_every_default_but_the_second_stage(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(blocks("yaml")[1], "utf-8")
    shown = load_recipe(file)
    assert shown.model_copy(update={"stages": shown.stages[:1]}) == Recipe()


def example(folder: Path) -> Fleet:
    """The README's fleet, read from a file as a person would write it."""
    file = folder / "fleet.yaml"
    file.write_text(ten_lines(), "utf-8")
    return load_fleet(file)


def test_your_own_plants_are_ten_lines_of_yaml_that_load(tmp_path: Path):
    fleet = example(tmp_path)
    assert len(ten_lines().splitlines()) == 10
    assert len(fleet.plants) == 2
    assert fleet.store == str(tmp_path / ".crossplant" / fleet.fleet)


def test_the_ten_lines_show_good_classes_environments_tiles_and_costs(tmp_path: Path):
    plant = example(tmp_path).plants[0]
    assert plant.ok
    assert plant.defects
    assert len(plant.environments) > 1
    assert "tiles" in {environment.geometry.fit for environment in plant.environments.values()}
    assert "costs" in yaml.safe_load(ten_lines())["plants"][0]


def test_the_tiles_of_the_ten_lines_show_their_smallest_defect_large_enough(tmp_path: Path):
    from plants.audit import MIN_DEFECT_PX

    fleet = example(tmp_path)
    for environment in fleet.plants[0].environments.values():
        geometry = environment.geometry
        if geometry.tile_px and geometry.min_defect_px:
            at_input = geometry.min_defect_px * fleet.trunks[0].size_px / geometry.tile_px
            assert at_input >= MIN_DEFECT_PX


def test_the_paths_in_the_ten_lines_name_classes_and_environments_that_are_declared(tmp_path: Path):
    plant = example(tmp_path).plants[0]
    shown = re.findall(r"tiles/([^/,]+/[^,]+?\.png)", ten_lines())
    assert shown
    for path in shown:
        assert path.split("/")[0] in plant.classes
        match = re.search(str(plant.environment_pattern), path)
        assert match
        assert match.group(1) in plant.environments


def test_the_trunk_that_prose_offers_is_one_that_loads():
    (text,) = re.findall(r"`(trunks: [^`]+)`", README)
    plants = [{"name": "a", "images": "a", "classes": {"good": "ok"}, "ok": ["good"]}]
    fleet = Fleet.model_validate({"fleet": "f", "store": "s", "plants": plants, **yaml.safe_load(text)})
    assert fleet.trunks[0].weights != "embedded"


def test_the_settings_named_are_exactly_those_that_exist():
    named = set(re.findall(rf"\b{PREFIX}[A-Z_]+\b", README)) - FOR_TESTS
    assert named == {PREFIX + name.upper() for name in Settings.model_fields}


def test_the_fields_of_an_answer_that_are_named_are_fields_of_an_answer():
    (sentence,) = re.findall(r"The answer holds (.*?)\. A refusal", README, re.DOTALL)
    named = set(re.findall(r"`(\w+)`", sentence)) - {"ok", "reject", "review"}
    assert named
    assert named <= set(Answer.model_fields)


def test_links_and_pictures_lead_to_what_is_there():
    anchors = {plain_slug(heading) for heading in re.findall(r"^#+ (.+)$", prose(), re.MULTILINE)}
    targets = re.findall(r"\]\(([^)]+)\)", README)
    assert any(target.endswith(".svg") for target in targets)
    for target in targets:
        assert "://" not in target, f"{target}: the README needs no other place"
        path, _, anchor = target.partition("#")
        assert not path or (ROOT / path).is_file(), f"{target} is not there"
        assert not anchor or path or anchor in anchors, f"{target} is not a heading"


def test_the_measured_figures_have_one_place():
    assert README.count("<!-- measured:begin -->") == README.count("<!-- measured:end -->") == 1
    assert README.index("<!-- measured:begin -->") < README.index("<!-- measured:end -->")


def test_nothing_in_it_is_true_on_one_machine_only():
    assert not re.findall(r"(?<![\w.])/(?:work|tmp|home|root)/", README)
