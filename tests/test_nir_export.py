"""NIR files that lapilli writes: read back exactly, and meaning the same to who reads the graph alone."""

from __future__ import annotations

import dataclasses
import json
import warnings

import h5py
import numpy as np
import pytest
from hypothesis import assume, given, settings

from lapilli import Connection, Dense, Input, Network, Population, Readout
from lapilli.errors import FileFormatError, UnsupportedError
from lapilli.export.nir.reading import NIRWarning, load_nir, nir_in_steps
from lapilli.export.nir.tree import build_tree
from lapilli.export.nir.writing import save_nir
from lapilli.sim.reference import reference
from strategies import inputs, networks, networks_with_input

DT = 1e-3
pytestmark = pytest.mark.filterwarnings("ignore::lapilli.export.nir.real_network.NIRWarning")


def _save(network, path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NIRWarning)
        try:
            return save_nir(network, path, dt=DT, **options)
        except UnsupportedError:
            assume(False)


def _small(**changes):
    values = {"name": "p", "shape": (2,), "threshold": 640, "reset": "zero"} | changes
    return Network(
        name="small",
        steps=4,
        input=Input(shape=(3,)),
        populations=[Population(**values)],
        connections=[Connection(source="input", target="p", synapse=Dense(np.array([[1, -2, 3], [4, 5, -6]])))],
        readout=Readout(population="p", kind="membrane" if values["reset"] == "none" else "count"),
        labels=("a", "b"),
        metadata={"origin": "a test"},
    )


@given(network=networks(acyclic=False, delays=True, wild=True, graded=False))
@settings(max_examples=40, deadline=None)
def test_a_file_is_read_back_as_the_same_network(network, tmp_path_factory):
    path = _save(network, tmp_path_factory.mktemp("nir") / "net.nir")
    assert load_nir(path) == network


@given(case=networks_with_input(resets=("zero",), acyclic=False, delays=True, graded=False))
@settings(max_examples=40, deadline=None)
def test_the_graph_alone_gives_the_same_spikes_where_nothing_is_lost(case):
    network, x = case
    plain = [
        dataclasses.replace(p, du=4096, dv=4096 * (p.dv > 2048), v_init=0, bias=_per_channel(p.bias))
        for p in network.populations
    ]
    network = dataclasses.replace(network, populations=plain)
    try:
        tree = build_tree(network, DT)
    except UnsupportedError:
        assume(False)
    real = nir_in_steps(_InMemory(tree), steps=network.steps, dt=DT, reset="zero", discretization="euler")
    spikes, _ = real.simulate(x)
    expected = reference(network, x)
    for name, fired in expected.spikes.items():
        assert np.array_equal(spikes[name], fired)


@given(network=networks(stock=True, acyclic=False, delays=True))
@settings(max_examples=20, deadline=None)
def test_leaks_survive_the_time_constants(network):
    try:
        tree = build_tree(network, DT)
    except UnsupportedError:
        assume(False)
    real = nir_in_steps(_InMemory(tree), steps=network.steps, dt=DT, reset="zero", discretization="euler")
    for p in real.populations:
        ours = network.population(p.name)
        if ours.du < 4096 or ours.dv < 4096:
            assert round(4096 * (1 - p.keep_u)) == ours.du
            assert round(4096 * (1 - p.keep_v)) == ours.dv
            unit = 2**ours.fraction_bits
            assert np.allclose(p.bias * unit, np.broadcast_to(ours.bias, ours.shape), rtol=1e-9)


def _per_channel(bias):
    return bias[:, :1, :1] if bias.ndim == 3 else bias


class _InMemory:
    def __init__(self, tree):
        self.tree = tree

    def to_dict(self):
        return self.tree


def test_the_nir_package_reads_what_lapilli_writes(tmp_path):
    nir = pytest.importorskip("nir")
    path = save_nir(_small(), tmp_path / "net.nir", dt=DT)
    graph = nir.read(path)
    assert {type(n).__name__ for n in graph.nodes.values()} == {"Input", "Linear", "IF", "Output"}
    assert np.array_equal(graph.nodes["input_to_p"].weight, [[1, -2, 3], [4, 5, -6]])
    assert np.array_equal(graph.nodes["p"].v_threshold, [10, 10])
    assert json.loads(graph.metadata["lapilli"])["structure"]["labels"] == ["a", "b"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reset": "subtract", "reset_amount": 640}, "soft reset of p"),
        ({"dv": 100}, "truncation of decays in p"),
        ({"v_init": 5}, "initial membrane of p"),
        ({"state_bits": 8, "threshold": 100}, "overflow of 8-bit states"),
    ],
)
def test_what_nir_cannot_say_is_a_warning_a_record_and_strictly_refused(changes, said, tmp_path):
    network = _small(**changes)
    with pytest.warns(NIRWarning, match=said):
        path = save_nir(network, tmp_path / "net.nir", dt=DT)
    with h5py.File(path) as file:
        record = json.loads(file["node/metadata/lapilli"][()])
    assert said in record["not_said_by_nir"][0]
    with pytest.raises(UnsupportedError, match=said):
        save_nir(network, tmp_path / "strict.nir", dt=DT, strict=True)
    assert [p.name for p in tmp_path.iterdir()] == ["net.nir"]


def test_a_network_that_nir_can_say_is_written_strictly_with_what_no_file_says(tmp_path):
    with pytest.warns(NIRWarning, match=r"integers of 8 bits.*delays of zero"):
        path = save_nir(_small(), tmp_path / "net.nir", dt=DT, strict=True)
    assert load_nir(path) == _small()
    with h5py.File(path) as file:
        said = json.loads(file["node/metadata/lapilli"][()])["not_said_by_nir"]
    assert [s.split(":")[0] for s in said] == ["quantization", "delays of zero"]


def test_a_current_without_leak_after_it_has_no_nir_node(tmp_path):
    with pytest.raises(UnsupportedError, match="population 'p': NIR has no neuron"):
        save_nir(_small(du=100), tmp_path / "net.nir", dt=DT)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["nodes/p/v_threshold", "nodes/input_to_p/weight", "metadata/lapilli array p|bias"])
def test_a_graph_changed_after_writing_is_refused(where, tmp_path):
    path = save_nir(_small(), tmp_path / "net.nir", dt=DT)
    with h5py.File(path, "r+") as file:
        file[f"node/{where}"][...] = file[f"node/{where}"][()] + 1
    with pytest.raises(FileFormatError, match="changed after lapilli wrote it"):
        load_nir(path)
    assert load_nir(path, steps=4, dt=DT, reset="zero", discretization="euler").steps == 4


@given(case=networks(resets=("zero",), max_steps=4, graded=False).flatmap(lambda n: inputs(n).map(lambda x: (n, x))))
@settings(max_examples=5, deadline=None)
def test_the_same_network_gives_the_same_record(case, tmp_path_factory):
    network, _ = case
    folder = tmp_path_factory.mktemp("nir")
    first, second = _save(network, folder / "a.nir"), _save(network, folder / "b.nir")
    with h5py.File(first) as a, h5py.File(second) as b:
        assert a["node/metadata/lapilli"][()] == b["node/metadata/lapilli"][()]
