"""Networks that come with lapilli: small, with provenance, and as accurate as they say."""

import json
from pathlib import Path

import pytest

import lapilli
from lapilli.errors import UnsupportedError
from lapilli.recipe import Recipe
from lapilli.recipes import shipped_networks, trained_networks
from lapilli.samples import read_samples

MAX_BYTES = 2_000_000


@pytest.mark.parametrize("name", trained_networks())
def test_each_is_small_and_says_where_it_comes_from(name):
    assert trained_networks()[name].stat().st_size < MAX_BYTES
    metadata = lapilli.load(name).metadata
    recipe = Recipe.model_validate(metadata["recipe"])
    assert recipe.data.folder is None, "the path of somebody's machine"
    assert metadata["trained_with"]["torch"]
    assert 0.5 < metadata["accuracy"]["bit-true"] <= 1
    assert "/" not in json.dumps(metadata["recipe"]["data"])


def test_digits_is_as_accurate_as_it_says():
    network = lapilli.load("digits")
    samples = read_samples("digits", network)
    measured = lapilli.simulate(network, samples.x).accuracy(samples.y)
    claimed = network.metadata["accuracy"]
    assert (len(samples.y), measured) == (claimed["samples"], claimed["bit-true"])


def test_the_list_and_unknown_names():
    listed = {entry["name"]: entry for entry in shipped_networks()}
    assert list(listed) == list(trained_networks())
    assert listed["digits"]["sha256"] == lapilli.load("digits").digest() == lapilli.load(Path("digits")).digest()
    with pytest.raises(
        UnsupportedError, match=r"network 'digit': no trained network has that name; lapilli ships .*digits"
    ):
        lapilli.load("digit")
