"""Recipes: what is shipped loads, what is wrong is named."""

import pytest
from click.testing import CliRunner

from lapilli.cli import main
from lapilli.errors import RecipeError
from lapilli.recipe import load_recipe, shipped

GOOD = """
name = "mine"

[data]
name = "digits"

[network]
steps = 4
layers = [{ type = "linear" }]

[train]
epochs = 1
"""


def written(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return str(path)


def test_every_shipped_recipe_loads_and_is_named_after_its_file():
    assert "digits" in shipped()
    for name, first_line in shipped().items():
        assert load_recipe(name).name == name
        assert first_line


def test_a_file_and_overrides(tmp_path):
    path = written(tmp_path, GOOD)
    assert load_recipe(path).network.steps == 4
    recipe = load_recipe(path, ["network.steps=7", "network.neuron=lif", "deploy.chips=['loihi2']"])
    assert (recipe.network.steps, recipe.network.neuron, recipe.deploy.chips) == (7, "lif", ("loihi2",))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("steps = 4", "stepz = 4"), "line 8: unknown key 'network.stepz'; did you mean 'steps'?"),
        (("[train]", "[trian]"), "unknown key 'trian'; did you mean 'train'?"),
        (("steps = 4", "steps = 0"), "line 8: network.steps"),
        (('name = "mine"', 'name = "../up"'), "line 2: name"),
        (('[data]\nname = "digits"\n', ""), "'data' is missing"),
        (("steps = 4", "steps = "), "not valid TOML"),
        (('{ type = "linear" }', '{ type = "pool" }'), "must be linear"),
    ],
)
def test_refused_with_place_and_remedy(tmp_path, change, reason):
    with pytest.raises(RecipeError) as caught:
        load_recipe(written(tmp_path, GOOD.replace(*change)))
    assert reason in str(caught.value)
    assert "mine.toml" in str(caught.value)
    assert "\n" not in str(caught.value).split("not valid TOML")[0]


@pytest.mark.parametrize(
    ("name", "overrides", "reason"),
    [
        ("digit", (), "did you mean 'digits'?"),
        ("nowhere/none.toml", (), "cannot be read"),
        ("digits", ("steps",), "section.key=value"),
        ("digits", ("network.steps=many",), "--set network.steps=many"),
        ("digits", ("name.first=x",), "not a section"),
        ("digits", ("train.epoch=3",), "did you mean 'epochs'?"),
    ],
)
def test_wrong_names_and_overrides(name, overrides, reason):
    with pytest.raises(RecipeError, match=r"^[^\n]*$") as caught:
        load_recipe(name, overrides)
    assert reason in str(caught.value)


@pytest.mark.parametrize("command", ["train", "run"])
def test_help_names_every_recipe(command):
    shown = CliRunner().invoke(main, [command, "--help"]).stdout
    words = " ".join(shown.split())
    assert all(name in words for name in shipped())
