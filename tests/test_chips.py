"""Chip profiles: ours are complete and sourced, wrong ones are refused by name."""

import sys
import textwrap

import pytest

from lapilli.deploy import Chip, chip_names, load_chip
from lapilli.deploy.chip import EVENTS, KEYS, parse_chip
from lapilli.errors import FileFormatError

SMALL = """
format = 1
name = "small"
title = "A small chip"
[sources]
paper = "A paper, 2024"
[geometry]
cores_per_chip = { value = 4, source = "paper" }
[limits]
neurons_per_core = { value = 8, source = "paper" }
"""


def test_the_names_are_those_of_the_files():
    assert chip_names() == ("loihi1", "loihi2")


@pytest.mark.parametrize("name", chip_names())
def test_every_number_names_its_source_in_full(name):
    chip = load_chip(name)
    assert chip.name == name
    assert chip.quantities
    for key, quantity in chip.quantities.items():
        assert quantity.low <= quantity.typical <= quantity.high
        assert len(quantity.source) > 15, f"{key}: {quantity.source!r} is not among [sources]"
    for cost in chip.costs:
        assert len(cost.source) > 15
        assert set(cost.events) <= set(EVENTS)


def test_loihi1_has_the_published_numbers():
    chip = load_chip("loihi1")
    davies, sana_fe = chip.costs
    assert davies.events["synop_dense"].energy == 23.6e-12
    assert davies.events["update_active"].time == 8.4e-9
    assert (davies.calibrated, sana_fe.calibrated) == (False, True)
    assert sana_fe.events["update_active"].energy == pytest.approx((51.2 + 21.6) * 1e-12)
    assert davies.static_power == 0.104
    assert "derived" in davies.static_source
    assert chip.value("limits.synaptic_memory") == 128 * 1024 * 8
    assert (chip.compartments("subtract"), chip.compartments("zero"), chip.compartments("none")) == (2, 1, 1)
    assert chip.has_mesh


def test_what_loihi2_does_not_publish_is_unknown():
    chip = load_chip("loihi2")
    assert chip.costs == ()
    assert not chip.has_mesh
    assert chip.get("limits.input_axons") is None
    assert chip.value("limits.input_axons") is None
    assert "no energy" in chip.unknown["cost"]


def test_a_key_that_no_profile_can_have_is_a_programming_error():
    with pytest.raises(KeyError):
        load_chip("loihi1").get("limits.neurons")


def test_users_add_chips_by_path(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(SMALL)
    chip = load_chip(path)
    assert isinstance(chip, Chip)
    assert chip.get("limits.neurons_per_core").source == "A paper, 2024"
    assert load_chip(chip) is chip


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("format = 1", "format = 2", "format 2; this lapilli reads format 1"),
        ("[sources]", "[[sources", "not valid TOML"),
        ('name = "small"', "", "name is missing"),
        (
            "neurons_per_core",
            "neuron_per_core",
            r"\[limits\]: unknown key 'neuron_per_core'; known are .*neurons_per_core",
        ),
        ("value = 8, source", "value = '8', source", "limits.neurons_per_core is '8'; give a number"),
        ("value = 8, source", "value = nan, source", "give a number"),
        ("value = 8, source", "value = 0, source", "limits.neurons_per_core is 0; give 1 or more"),
        ('value = 8, source = "paper"', "value = 8", "limits.neurons_per_core: the source is missing"),
        ("value = 8", "low = 9, typical = 8, high = 10", "not in order"),
        ("value = 8", "low = 9, high = 10", "typical is missing"),
        ("value = 8", "value = 8, low = 8", "not both"),
        ("value = 8", "value = 8, units = 'x'", "unknown key 'units'"),
        ('[limits]\nneurons_per_core = { value = 8, source = "paper" }', "", "limits.neurons_per_core is missing"),
        ("[limits]", "[cost]\n[limits]", "cost is not a list"),
        ("[limits]", "[[cost]]\nname = 'x'\nsource = 'y'\n[limits]", "cost 1: synop_dense, .* is missing"),
        (
            "[limits]",
            "[synapses]\nindex_bits = { values = 3, source = 'x' }\n[limits]",
            "index_bits: values is not a list",
        ),
    ],
)
def test_wrong_profiles_are_refused_by_key(tmp_path, old, new, message):
    path = tmp_path / "wrong.toml"
    assert old in SMALL
    path.write_text(SMALL.replace(old, new))
    with pytest.raises(FileFormatError, match=f"wrong.toml.*{message}"):
        load_chip(path)


def test_a_cost_event_needs_energy_and_time():
    cost = textwrap.dedent("""
        [[cost]]
        name = "c"
        source = "paper"
        synop_dense = { energy = 1e-12, time = 1e-9 }
        update_active = { energy = 1e-12 }
        update_inactive = { energy = 1e-12, time = 1e-9 }
    """)
    with pytest.raises(FileFormatError, match=r"cost 1: update_active.time is None; give a number"):
        parse_chip(SMALL + cost, "x")
    chip = parse_chip(SMALL + cost.replace("1e-12 }", "1e-12, time = 1e-9 }"), "x")
    assert chip.costs[0].source == "A paper, 2024"
    assert chip.costs[0].static_power is None


@pytest.mark.parametrize("name", ["loihi3", "loihi1.TOML"])
def test_an_unknown_name_says_which_are_known(name):
    with pytest.raises(FileFormatError, match=rf"no chip '{name}'; known are loihi1, loihi2"):
        load_chip(name)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(FileFormatError, match=r"nothing.toml: cannot read"):
        load_chip(tmp_path / "nothing.toml")


def test_every_key_is_explained():
    assert all(text for section in KEYS.values() for text in section.values())


def test_importing_the_room_imports_nothing_heavy():
    import subprocess

    code = (
        "import sys, lapilli.deploy, lapilli.deploy.lava; from lapilli.deploy import check, plan, load_chip; "
        "from lapilli.deploy.lava import build, lava_executor; "
        "print([m for m in ('torch', 'lava', 'rich', 'scipy', 'onnx', 'matplotlib') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
