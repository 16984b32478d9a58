"""Looking inside: traces are the reference's, files and figures hold them, overflow events have their place."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import lapilli
from lapilli.cli import main
from lapilli.errors import DataError, DescriptionError, FileFormatError, MissingDependencyError, UnsupportedError
from lapilli.network import INPUT, Connection, Conv2d, Dense, Input, Network, Population, Readout
from lapilli.recording import Recording
from lapilli.sim import overflow_events, save_traces, simulate, trace
from lapilli.sim import reference as reference_module
from lapilli.sim.engine import batched, kernels
from lapilli.sim.inside import figures, trace_files
from lapilli.sim.inside.selection import name_neuron, select_neurons, select_samples
from lapilli.sim.reference import reference
from strategies import networks_with_input


def convolutional(steps=6, samples=3):
    """conv (2, 4, 5), hidden (7,) with memory, out (3,) without spikes; and an input for it."""
    rng = np.random.default_rng(1)
    net = Network(
        name="three",
        steps=steps,
        input=Input(shape=(1, 4, 5)),
        populations=(
            Population(name="conv", shape=(2, 4, 5), threshold=64 * 40, reset_amount=64 * 40, du=4096),
            Population(name="hidden", shape=(7,), threshold=64 * 60, reset="zero", du=900, dv=300),
            Population(name="out", shape=(3,), reset="none"),
        ),
        connections=(
            Connection(
                source=INPUT, target="conv", synapse=Conv2d(rng.integers(-20, 60, (2, 1, 3, 3)), padding=(1, 1))
            ),
            Connection(source="conv", target="hidden", synapse=Dense(rng.integers(-30, 60, (7, 40)))),
            Connection(source="hidden", target="out", synapse=Dense(rng.integers(-60, 60, (3, 7)))),
        ),
        readout=Readout(population="out", kind="membrane"),
    )
    return net, (rng.random((steps, samples, 1, 4, 5)) < 0.3).astype(np.int64)


# Which neurons


@pytest.mark.parametrize(
    ("texts", "chosen"),
    [
        ("hidden", {"hidden": [0, 1, 2, 3, 4, 5, 6]}),
        ("hidden[2]", {"hidden": [2]}),
        ("hidden[-1]", {"hidden": [6]}),
        ("hidden[1:7:2]", {"hidden": [1, 3, 5]}),
        ("hidden[::-3]", {"hidden": [0, 3, 6]}),
        ("conv[1,2,3]", {"conv": [33]}),
        ("conv[0, 1:3, -1]", {"conv": [9, 14]}),
        ("conv[1]", {"conv": list(range(20, 40))}),
        ("conv[:,0,0]", {"conv": [0, 20]}),
        (["hidden[3]", "conv[0,0,0]", "hidden[1:4]"], {"hidden": [1, 2, 3], "conv": [0]}),
        ({"hidden": [4, 2, 2]}, {"hidden": [2, 4]}),
    ],
)
def test_neurons_are_selected_as_numpy_would(texts, chosen):
    found = select_neurons(convolutional()[0], texts)
    assert {name: indices.tolist() for name, indices in found.items()} == chosen


@pytest.mark.parametrize(
    ("select", "says"),
    [
        ("nobody", "no population 'nobody'; it has conv, hidden, out"),
        ("hidden[", "cannot be read"),
        ("hidden[1][2]", "cannot be read"),
        ("hidden[a]", "'a' is neither an integer nor a slice"),
        ("hidden[]", "'' is neither"),
        ("hidden[::0]", "'::0' is neither"),
        ("hidden[7]", r"7 is outside the shape \(7,\)"),
        ("hidden[0,0]", r"2 indices; 'hidden' has shape \(7,\)"),
        ("hidden[5:5]", "is empty"),
        ([], "no neuron is selected"),
        ({"hidden": [7]}, "7..7 is outside 0..6"),
        ({"hidden": [0.5]}, "as integers"),
        ({"hidden": []}, "at least one"),
    ],
)
def test_wrong_selections_are_refused_by_name(select, says):
    with pytest.raises(DescriptionError, match=says):
        select_neurons(convolutional()[0], select)


def test_samples_are_selected_likewise():
    assert select_samples("0:3,17,-1,2", 20).tolist() == [0, 1, 2, 17, 19]
    assert select_samples([4, 0, -2], 5).tolist() == [0, 3, 4]


@pytest.mark.parametrize(("text", "says"), [("5", "no sample 5"), ("x", "'x'"), ("", "''"), ("9:", "none of the 5")])
def test_wrong_samples_are_refused(text, says):
    with pytest.raises(DataError, match=says):
        select_samples(text, 5)


def test_a_neuron_is_named_in_the_syntax_that_selects_it():
    net = convolutional()[0]
    for name, neuron in (("conv", 33), ("hidden", 4)):
        text = name_neuron(name, net.shape_of(name), neuron)
        assert select_neurons(net, text)[name].tolist() == [neuron]


# Traces


@settings(max_examples=40, deadline=None)
@given(
    networks_with_input(wild=True, delays=True, acyclic=False, max_steps=10),
    st.sampled_from(("fast", "fast without kernels", "fast in slivers", "reference", "torch")),
    st.data(),
)
def test_traces_are_the_references_bit_for_bit(case, engine, data):
    net, x = case
    names = [p.name for p in net.populations]
    want = reference(net, x, names)
    batch = want.v_final[names[0]].shape[0]
    samples = data.draw(st.lists(st.integers(0, batch - 1), min_size=1, max_size=3))
    select = {
        p.name: data.draw(st.lists(st.integers(0, p.size - 1), min_size=1, max_size=5), label=p.name)
        for p in net.populations
        if data.draw(st.booleans()) or p is net.populations[0]
    }
    before = kernels.level, batched.CACHE_BYTES, batched.BLOCK_BYTES
    if engine == "fast without kernels":
        kernels.level = -1
    if engine == "fast in slivers":
        batched.CACHE_BYTES = batched.BLOCK_BYTES = 300
    try:
        got = trace(net, x, select, samples, ("spikes", "u", "v", "current"), engine.split()[0])
    finally:
        kernels.level, batched.CACHE_BYTES, batched.BLOCK_BYTES = before
    assert got.samples.tolist() == sorted(set(samples))
    assert list(got.neurons) == list(select)
    for name, neurons in select.items():
        assert got.neurons[name].tolist() == sorted(set(neurons))
        spikes = net.population(name).spikes
        assert set(got.of(name)) == {"u", "v", "current"} | ({"spikes"} if spikes else set())
        for quantity, values in got.of(name).items():
            whole = getattr(want, quantity)[name]
            flat = whole.reshape(*whole.shape[:2], -1)
            np.testing.assert_array_equal(values, flat[:, got.samples][..., got.neurons[name]])
            assert values.dtype == whole.dtype


def test_only_what_is_asked_for_is_kept_and_only_these_samples_are_run():
    net, x = convolutional(samples=9)
    seen = []

    def watching(network, x, traced=()):
        seen.append((x.shape[1], tuple(traced)))
        return reference(network, x, traced)

    got = trace(net, x, "conv[0]", "2,7", ["spikes"], watching)
    assert seen == [(2, ())]  # spikes need no trace of states
    assert got.u == got.v == got.current == {}
    assert got.engine == "watching"
    np.testing.assert_array_equal(
        got.spikes["conv"], reference(net, x).spikes["conv"].reshape(6, 9, 40)[:, [2, 7], :20]
    )
    assert got.nbytes == 6 * 2 * 20
    assert list(trace(net, x, ["conv[0]", "out"]).spikes) == ["conv"]


def test_traces_larger_than_the_limit_are_refused_with_their_size():
    net, x = convolutional()
    with pytest.raises(DataError, match=r"40 neurons over 6 steps and 3 samples take 12.0 KiB; the limit is 1.0 KiB"):
        trace(net, x, "conv", "0:3", max_bytes=1024)
    with pytest.raises(DataError, match=r"tracing conv needs 5.6 KiB for one sample .* fewer populations"):
        trace(net, x, "conv[0,0,0]", max_bytes=1024)
    trace(net, x, "conv", "0:3", max_bytes=6 * 3 * 40 * 17)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"quantities": ("w",)}, DescriptionError, "no quantity 'w'"),
        ({"quantities": ()}, DescriptionError, "choose from spikes"),
        ({"select": "out", "quantities": ["spikes"]}, DescriptionError, "out: no spikes"),
        ({"samples": [3]}, DataError, "no sample 3"),
        ({"x": np.zeros((2, 3))}, DataError, "does not fit"),
        ({"engine": "slow"}, UnsupportedError, "no executor 'slow'"),
        ({"engine": lambda *_: Recording()}, UnsupportedError, "cannot show 'spikes' of 'hidden'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, says):
    net, x = convolutional()
    with pytest.raises(error, match=says):
        trace(**({"net": net, "x": x, "select": "hidden"} | arguments))


# Files


@pytest.fixture
def traces():
    net, x = convolutional()
    return trace(net, x, ["conv[1]", "hidden[2:5]", "out"], "0,2", ("spikes", "u", "v", "current"))


def arrays_of(traces):
    return {f"{name}/{q}": a for name in traces.neurons for q, a in traces.of(name).items()}


def test_npz_holds_everything_and_the_same_bytes_each_time(traces, tmp_path):
    path = save_traces(traces, tmp_path / "t.npz")
    with np.load(path, allow_pickle=False) as file:
        for name, values in arrays_of(traces).items():
            np.testing.assert_array_equal(file[name], values)
            assert file[name].dtype == values.dtype
        assert file["samples"].tolist() == [0, 2]
        assert file["hidden/neurons"].tolist() == [2, 3, 4]
        about = json.loads(str(file["about"]))
        assert len(file.files) == len(arrays_of(traces)) + 5
    assert about == traces.about()
    assert about["digest"] == traces.network.digest()
    assert about["populations"]["hidden"] == {
        "shape": [7],
        "neurons": 3,
        "threshold": 3840,
        "reset": "zero",
        "quantities": ["spikes", "u", "v", "current"],
    }
    before = path.read_bytes()
    assert save_traces(traces, path).read_bytes() == before


def test_zarr_holds_everything_and_is_replaced_whole(traces, tmp_path):
    zarr = pytest.importorskip("zarr")
    path = tmp_path / "t.zarr"
    for _ in range(2):
        save_traces(traces, path)
        group = zarr.open_group(str(path), mode="r")
        for name, values in arrays_of(traces).items():
            np.testing.assert_array_equal(group[name][:], values)
            assert group[name].dtype == values.dtype
        assert group["conv/neurons"][:].tolist() == list(range(20, 40))
        assert dict(group.attrs) == traces.about()
    assert [p.name for p in tmp_path.iterdir()] == ["t.zarr"]


def test_nir_data_are_read_by_the_nir_package(traces, tmp_path):
    import h5py
    import nir

    path = save_traces(traces, tmp_path / "t.h5", dt=1e-3)
    data = nir.read_data(str(path))
    assert set(data.nodes) == {"conv", "hidden", "out"}
    for name, values in arrays_of(traces).items():
        node, _, quantity = name.partition("/")
        grid = data.nodes[node].observables[quantity]
        np.testing.assert_array_equal(grid.data, values.transpose(1, 0, 2))
        assert grid.data.dtype == (np.bool_ if quantity == "spikes" else np.int64)
        assert grid.dt == 1e-3
    with h5py.File(path) as file:
        assert file["nodes/hidden/neurons"][:].tolist() == [2, 3, 4]
        assert file["samples"][:].tolist() == [0, 2]
        assert json.loads(file.attrs["about"]) == traces.about()


def test_nir_data_of_whole_populations_match_the_exported_graph(tmp_path):
    import nir

    net, x = convolutional()
    lapilli.save(net, tmp_path / "net.nir", dt=1.0)
    save_traces(trace(net, x, ["hidden"]), tmp_path / "t.h5")
    nir.read_data(str(tmp_path / "t.h5")).check_nodes(nir.read(tmp_path / "net.nir"))


def test_files_that_cannot_be_written_are_refused_before_anything_is_lost(traces, tmp_path, monkeypatch):
    (tmp_path / "mine.zarr").mkdir()
    (tmp_path / "mine.zarr" / "thesis.txt").write_text("years of work")
    (tmp_path / "folder.npz").mkdir()
    for name, says in (
        ("t.csv", r"t.csv: traces are written as .npz, .zarr, .h5"),
        ("t.nir", "NIR data go to .h5"),
        ("nowhere/t.npz", "there is no folder"),
        ("mine.zarr", "is not a Zarr group"),
        ("folder.npz", "is a folder"),
    ):
        with pytest.raises(FileFormatError, match=says):
            save_traces(traces, tmp_path / name)
    assert (tmp_path / "mine.zarr" / "thesis.txt").exists()
    monkeypatch.setattr(trace_files, "find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"Zarr is not installed; pip install 'lapilli\[zarr\]'"):
        save_traces(traces, tmp_path / "t.zarr")


# Figures


def test_a_figure_for_everything_there_is(traces, tmp_path):
    run = simulate(*convolutional())
    names = ["rates", "raster", "membrane-conv", "membrane-hidden", "membrane-out"]
    for path, name in zip(figures.draw_all(run, traces, tmp_path / "a"), names, strict=True):
        assert path == tmp_path / "a" / f"{name}.png"
        assert path.read_bytes().startswith(b"\x89PNG")
    assert figures.draw_all(run, None, tmp_path / "b", ".svg") == [tmp_path / "b" / "rates.svg"]


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_figure_is_the_same_each_time(traces, tmp_path, suffix):
    first, again = (figures.membrane(traces, "hidden", tmp_path / f"{i}{suffix}") for i in range(2))
    assert first.read_bytes() == again.read_bytes()
    if suffix == ".svg":
        assert "hidden[3]" in first.read_text()
        assert "threshold 3,840" in first.read_text()


def test_the_membrane_before_a_reset_is_the_one_that_crossed(traces):
    p = traces.network.population("hidden")
    crossing = figures._crossing(traces, p, 1, 0)
    fired = traces.spikes["hidden"][:, 1, 0] > 0
    assert fired.any()
    np.testing.assert_array_equal(crossing > p.threshold, fired)
    np.testing.assert_array_equal(crossing[~fired], traces.v["hidden"][~fired, 1, 0])


def test_figures_refuse_what_was_not_traced(traces, tmp_path):
    with pytest.raises(DescriptionError, match="sample 1 was not traced; traced are 0, 2"):
        figures.raster(traces, tmp_path / "r.png", sample=1)
    only_u = trace(*convolutional(), "hidden", quantities=["u"])
    with pytest.raises(DescriptionError, match="needs spikes"):
        figures.raster(only_u, tmp_path / "r.png")
    with pytest.raises(DescriptionError, match="no traced membrane of 'hidden'"):
        figures.membrane(only_u, "hidden", tmp_path / "m.png")
    with pytest.raises(FileFormatError, match=r"as \.png or \.svg"):
        figures.raster(traces, tmp_path / "r.pdf")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileFormatError, match="cannot make the folder"):
        figures.draw_all(simulate(*convolutional()), None, tmp_path / "file")


# Overflow events


def events_of_the_reference(net, x):
    """Every event, taken down while the reference runs."""
    rank = {p.name: i for i, p in enumerate(net.order)}
    seen, clock = [], dict.fromkeys(rank, 0)
    original = reference_module.neuron_step

    def watched(p, u, v, drive, *rest):
        step = original(p, u, v, drive, *rest)
        n, clock[p.name] = clock[p.name], clock[p.name] + 1
        half = 2 ** (p.state_bits - 1)
        for sample, *place in np.ndindex(drive.shape):
            at = (sample, *place)
            neuron = int(np.ravel_multi_index(place, p.shape))
            kept_u, kept_v = (
                int(s) * (4096 - d) // 4096 if s >= 0 else -(-int(s) * (4096 - d) // 4096)
                for s, d in ((u[at], p.du), (v[at], p.dv))
            )
            exact_u = kept_u + int(drive[at])
            exact_v = kept_v + int(step.u[at]) + int(np.broadcast_to(p.bias, p.shape)[tuple(place)])
            where = (sample, n, rank[p.name], neuron)
            if not -half < exact_u <= half:
                seen.append((*where, 0, exact_u, int(step.u[at])))
            if abs(exact_v) >= half:
                seen.append((*where, 1, exact_v, half - 1 if exact_v > 0 else 1 - half))
        return step

    reference_module.neuron_step = watched
    try:
        recording = reference(net, x)
    finally:
        reference_module.neuron_step = original
    names = [p.name for p in net.order]
    kinds = ("current wraps", "membrane saturates")
    return recording, [(s, n, names[r], k, kinds[kind], b, a) for s, n, r, k, kind, b, a in sorted(seen)]


@settings(max_examples=40, deadline=None)
@given(
    networks_with_input(wild=True, delays=True, acyclic=False, max_steps=10),
    st.sampled_from(("fast", "reference")),
    st.sampled_from((1, 3, 10**6)),
)
def test_overflow_events_are_those_of_the_reference(case, engine, limit):
    net, x = case
    recording, want = events_of_the_reference(net, x)
    assert len(want) == sum(recording.wraps.values()) + sum(recording.saturations.values())
    got = overflow_events(net, x, engine=engine, limit=limit)
    assert [tuple(e) for e in got] == want[:limit]


def wrapping():
    p = Population(name="p", shape=(2, 1, 2), threshold=2**23 - 1, reset="zero", du=0, dv=0)
    return Network(
        name="wrapping",
        steps=9,
        input=Input(shape=(1,)),
        populations=(p,),
        connections=(
            Connection(source=INPUT, target="p", synapse=Dense([[0], [0], [127], [-127]]), weight_exponent=8),
        ),
    )


def test_events_are_told_with_place_and_value_and_across_batches(monkeypatch):
    monkeypatch.setattr("lapilli.sim.inside.overflows.batch_size", lambda *_: 2)
    x = np.array([[0], [0], [0], [1], [1]])
    events = overflow_events(wrapping(), x)
    assert {e.sample for e in events} == {3, 4}
    first = events[0]
    assert (first.step, first.neuron, first.kind) == (2, 2, "membrane saturates")
    assert first.before == 127 * 2**14 * (1 + 2 + 3)
    assert first.describe(wrapping()) == (
        "sample 3, step 2, p[1,0,0]: membrane saturates, 12,484,608 to 8,388,607 (24 bits)"
    )
    run = simulate(wrapping(), x)
    assert len(events) == run.wraps["p"] + run.saturations["p"]
    assert overflow_events(wrapping(), x, limit=3) == events[:3]
    assert overflow_events(wrapping(), x, ["p"], limit=0) == []


def test_where_the_bounds_exclude_events_nothing_is_run():
    net, x = convolutional()
    assert overflow_events(net, x, engine=lambda *_: pytest.fail("run")) == []


# The command


@pytest.fixture
def files(tmp_path):
    net, x = convolutional()
    lapilli.save(net, tmp_path / "net.onnx")
    lapilli.save(wrapping(), tmp_path / "wrapping.onnx")
    np.savez(tmp_path / "x.npz", x=x)
    np.savez(tmp_path / "ones.npz", x=np.ones((3, 1), np.int64))
    return tmp_path


def run_cli(files, *arguments):
    return CliRunner().invoke(main, [a.format(files) for a in arguments])


def test_the_command_traces_draws_and_says_so(files):
    result = run_cli(
        files, "sim", "{}/net.onnx", "{}/x.npz", "--trace", "hidden[0:3]", "--trace", "conv[0,:,1]", "--trace-samples",
        "1:", "--trace-quantities", "spikes,v", "--trace-out", "{}/t.npz", "--plots", "{}/figures",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert f"wrote {files / 't.npz'}: 7 neurons, 6 steps, samples: 2, 0.7 KiB in memory\n" in result.output
    assert sorted(p.name for p in (files / "figures").iterdir()) == [
        "membrane-conv.png",
        "membrane-hidden.png",
        "raster.png",
        "rates.png",
    ]
    with np.load(files / "t.npz") as file:
        np.testing.assert_array_equal(file["hidden/v"], reference(*convolutional(), ["hidden"]).v["hidden"][:, 1:, :3])


def test_the_command_says_where_states_overflow(files):
    result = run_cli(files, "sim", "{}/wrapping.onnx", "{}/ones.npz", "--events", "2")
    assert result.exit_code == 0, result.output
    assert "sample 0, step 2, p[1,0,0]: membrane saturates, 12,484,608 to 8,388,607 (24 bits)" in result.output
    assert "overflow events, 2 of" in result.output
    document = json.loads(run_cli(files, "sim", "{}/wrapping.onnx", "{}/ones.npz", "--json").stdout)
    assert len(document["overflow_events"]) == 5
    assert document["overflow_events"][0] == {
        "sample": 0,
        "step": 2,
        "population": "p",
        "neuron": 2,
        "kind": "membrane saturates",
        "before": 12484608,
        "after": 8388607,
        "name": "p[1,0,0]",
    }
    assert (
        "overflow_events"
        not in run_cli(files, "sim", "{}/wrapping.onnx", "{}/ones.npz", "--json", "--events", "0").stdout
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--trace", "hidden[9]"), "9 is outside the shape"),
        (("--trace", "hidden", "--trace-out", "{}/t.txt"), "traces are written as"),
        (("--trace", "hidden", "--trace-samples", "7"), "no sample 7"),
    ],
)
def test_the_command_refuses_in_one_line(files, arguments, says):
    result = run_cli(files, "sim", "{}/net.onnx", "{}/x.npz", *arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
