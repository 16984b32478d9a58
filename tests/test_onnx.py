"""The ONNX graph of a description means what the description means."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx.checker
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lapilli.errors import DescriptionError, ExecutionError, UnsupportedError
from lapilli.export import Connection, Conv2d, Dense, Input, Network, Population, Readout, Scale
from lapilli.export.onnx.executors import onnx_reference_executor, onnxruntime_executor
from lapilli.export.onnx.graph import build_model
from lapilli.export.onnx.neurons import Kind, neuron_function
from lapilli.export.onnx.synapses import DIGIT, Nodes, fits_accumulator, split
from lapilli.recording import scores
from lapilli.sim.reference import reference
from strategies import networks_with_input

EXECUTORS = pytest.mark.parametrize("executor", [onnxruntime_executor, onnx_reference_executor])


def some(examples):
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))


def assert_same(network, x, executor, trace=()):
    expected, found = reference(network, x, trace), executor(network, x, trace)
    assert found.spikes.keys() == expected.spikes.keys()
    for name, spikes in expected.spikes.items():
        assert found.spikes[name].dtype == spikes.dtype
        np.testing.assert_array_equal(found.spikes[name], spikes, err_msg=name)
    assert found.v_final.keys() >= {p.name for p in network.populations if not p.spikes}
    for name, v in found.v_final.items():
        np.testing.assert_array_equal(v, expected.v_final[name], err_msg=name)
    for what in ("current", "u", "v"):
        assert getattr(found, what).keys() == set(trace)
        for name, values in getattr(found, what).items():
            np.testing.assert_array_equal(values, getattr(expected, what)[name], err_msg=f"{what} of {name}")
    if network.readout:
        np.testing.assert_array_equal(scores(network, found), scores(network, expected))


def assert_graph_scores(network, x):
    """Executors compute scores from spikes; the graph's own output must be the same."""
    model = build_model(network).SerializeToString()
    frames = x[None] if x.ndim == len(network.input.shape) + 1 else x
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    found = session.run(["scores"], {"input": frames.astype(np.int32)})[0]
    np.testing.assert_array_equal(found, scores(network, reference(network, x)))


def small(**changes):
    """Two populations: a convolution with signed graded input, and dense spikes into a LIF."""
    rng = np.random.default_rng(1)
    given = {
        "name": "small",
        "steps": 6,
        "input": Input(shape=(2, 4, 5), low=-7, high=8),
        "populations": [
            Population(name="a", shape=(3, 4, 5), threshold=3000, reset="zero", dv=300, du=2000, bias=[64]),
            Population(name="b", shape=(4,), threshold=500, reset_amount=700, dv=100, v_init=-80),
        ],
        "connections": [
            Connection(source="input", target="a", synapse=Conv2d(rng.integers(-90, 90, (3, 2, 3, 3)), padding=1)),
            Connection(source="a", target="b", synapse=Dense(rng.integers(-9, 12, (4, 60)))),
        ],
        "readout": Readout(population="b"),
    }
    return Network(**(given | changes))


def random_input(network, batch=3, frames=False, seed=0):
    rng = np.random.default_rng(seed)
    lead = (network.steps, batch) if frames else (batch,)
    return rng.integers(network.input.low, network.input.high + 1, (*lead, *network.input.shape))


@pytest.mark.parametrize("traced", [False, True])
@some(60)
@given(networks_with_input(wild=True, delays=True))
def test_onnxruntime_equals_the_reference_on_acyclic_networks(traced, case):
    network, x = case
    assert_same(network, x, onnxruntime_executor, [p.name for p in network.populations] if traced else [])


@pytest.mark.parametrize("traced", [False, True])
@some(40)
@given(networks_with_input(wild=True, delays=True, acyclic=False))
def test_onnxruntime_equals_the_reference_on_recurrent_networks(traced, case):
    network, x = case
    assert_same(network, x, onnxruntime_executor, [p.name for p in network.populations] if traced else [])


@pytest.mark.parametrize("acyclic", [True, False])
@some(20)
@given(networks_with_input(wild=True, delays=True), st.data())
def test_onnx_reference_evaluator_equals_the_reference(acyclic, case, data):
    if not acyclic:
        case = data.draw(networks_with_input(wild=True, delays=True, acyclic=False))
    network, x = case
    assert_same(network, x, onnx_reference_executor, [network.populations[-1].name])


@some(40)
@given(networks_with_input(delays=True, acyclic=False))
def test_the_model_passes_the_full_check_and_gives_scores(case):
    network, x = case
    model = build_model(network)
    onnx.checker.check_model(model, full_check=True)
    assert_graph_scores(network, x)


@EXECUTORS
@pytest.mark.parametrize(
    ("low", "high"),
    [
        (0, 1),
        (0, 127),
        (0, 128),
        (0, 255),
        (-1, 1),
        (-128, 127),
        (-100, 3),
        (5, 9),
        (-9, -5),
        (0, 2**20),
        (-(2**23), 2**23 - 1),
    ],
)
@pytest.mark.parametrize("frames", [False, True])
@pytest.mark.parametrize("delay", [0, 2])
def test_graded_input_of_any_range_is_exact(executor, low, high, frames, delay):
    base = small(input=Input(shape=(2, 4, 5), low=low, high=high))
    conv = dataclasses.replace(base.connections[0], delay=delay)
    rng = np.random.default_rng(0)
    more = [
        Connection(source="input", target="b", synapse=Dense(rng.integers(-128, 128, (4, 40))), delay=delay),
        Connection(source="input", target="c", synapse=Scale(np.array([-3, 100]))),
    ]
    c = Population(name="c", shape=(2, 4, 5), threshold=100, reset="zero")
    network = dataclasses.replace(
        base, populations=[*base.populations, c], connections=[conv, base.connections[1], *more]
    )
    x = random_input(network, frames=frames)
    x[..., 0, 0, 0], x[..., 0, 0, 1] = low, high
    assert_same(network, x, executor, ["a", "b", "c"])


@given(st.integers(-(2**23), 2**23 - 1), st.integers(-(2**23), 2**23 - 1), st.data())
@some(60)
def test_digits_stay_below_128_and_add_up(a, b, data):
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    low, high = sorted((a, b))
    inside = data.draw(st.lists(st.integers(low, high), min_size=1, max_size=20))
    x = np.array([0, low, high, *inside], np.int32)
    nodes = Nodes()
    digits = split(nodes, "x", "x/", low, high)
    graph = helper.make_graph(
        nodes.nodes,
        "digits",
        [helper.make_tensor_value_info("x", TensorProto.INT32, ["n"])],
        [helper.make_tensor_value_info(d.value, TensorProto.UINT8, ["n"]) for d in digits],
    )
    found = ReferenceEvaluator(helper.make_model(graph, ir_version=8)).run(None, {"x": x})
    assert all(d.max() < DIGIT for d in found)
    assert all(0 <= d.zero < DIGIT for d in digits)
    np.testing.assert_array_equal(
        sum(d.factor * (v.astype(np.int64) - d.zero) for d, v in zip(digits, found, strict=True)), x
    )


def test_values_outside_the_input_range_are_clipped_as_encode_does():
    network = small()
    x = random_input(network)
    x[0], x[1] = 40, -40
    clipped = np.clip(x, network.input.low, network.input.high)
    np.testing.assert_array_equal(
        onnxruntime_executor(network, x).spikes["a"], onnxruntime_executor(network, clipped).spikes["a"]
    )


@EXECUTORS
@pytest.mark.parametrize("kind", ["count", "weighted_count", "membrane"])
@pytest.mark.parametrize("steps", [1, 7])
def test_every_readout(executor, kind, steps):
    first, second = small().populations
    if kind == "membrane":
        second = dataclasses.replace(second, reset="none", reset_amount=0, threshold=0)
    readout = Readout(population="b", kind=kind, decay=500 if kind == "weighted_count" else 0)
    network = small(steps=steps, populations=[first, second], readout=readout)
    assert_same(network, random_input(network), executor)
    assert_graph_scores(network, random_input(network, frames=True))


@EXECUTORS
def test_a_population_without_input_runs_on_its_bias(executor):
    lone = Population(name="lone", shape=(2, 3), threshold=100, reset_amount=90, bias=[[40, 50, -3]])
    base = small()
    for connections in (
        base.connections,
        [*base.connections, Connection(source="b", target="b", synapse=Scale([3]), delay=1)],
    ):
        network = small(populations=[*base.populations, lone], connections=connections)
        assert_same(network, random_input(network), executor, ["lone"])
        assert reference(network, random_input(network)).spikes["lone"].any()


@EXECUTORS
def test_delays_as_long_as_the_window_and_longer(executor):
    base = small()
    for delay in (5, 6, 62):
        late = [dataclasses.replace(c, delay=delay) for c in base.connections]
        assert_same(small(connections=late), random_input(base, frames=True), executor, ["a", "b"])


@EXECUTORS
def test_a_long_input_delay_inside_a_cycle(executor):
    base = small()
    recurrent = [
        dataclasses.replace(base.connections[0], delay=2),
        *base.connections[1:],
        Connection(source="input", target="b", synapse=Dense(np.ones((4, 40))), delay=4),
        Connection(source="b", target="b", synapse=Dense(np.full((4, 4), 90)), delay=3, name="again"),
        Connection(source="b", target="b", synapse=Scale([-50]), delay=1, name="self"),
    ]
    assert_same(small(connections=recurrent), random_input(base, frames=True), executor, ["a", "b"])


@EXECUTORS
def test_negative_exponents_use_the_fraction_bits(executor):
    base = small()
    finer = [dataclasses.replace(c, weight_exponent=-6) for c in base.connections]
    assert_same(small(connections=finer), random_input(base), executor, ["a", "b"])


@EXECUTORS
def test_wrapping_and_saturating_states(executor):
    narrow = [dataclasses.replace(p, state_bits=9, threshold=150, reset_amount=0, du=300) for p in small().populations]
    network = small(populations=narrow)
    x = random_input(network)
    events = reference(network, x)
    assert sum(events.wraps.values()) > 0
    assert sum(events.saturations.values()) > 0
    assert_same(network, x, executor, ["a", "b"])


@EXECUTORS
def test_dense_sums_beyond_int32_are_exact(executor):
    n = 140_000
    weight = np.full((2, n), -128)
    weight[1, ::2] = 127
    wide = Connection(source="input", target="out", synapse=Dense(weight))
    assert not fits_accumulator(wide.synapse)
    network = Network(
        name="wide",
        steps=2,
        input=Input(shape=(n,), high=127),
        populations=[Population(name="out", shape=(2,), reset="none", state_bits=32)],
        connections=[wide],
    )
    assert_same(network, np.full((1, n), 127), executor, ["out"])


def test_a_convolution_beyond_int32_is_refused_by_name():
    weight = np.full((1, 140_000, 1, 1), -128, np.int8)
    network = Network(
        name="wide",
        steps=1,
        input=Input(shape=(140_000, 1, 1)),
        populations=[Population(name="out", shape=(1, 1, 1), reset="none")],
        connections=[Connection(source="input", target="out", synapse=Conv2d(weight))],
    )
    with pytest.raises(UnsupportedError, match="input->out"):
        build_model(network)


def test_an_empty_batch_gives_empty_spikes():
    network = small()  # onnx's evaluator cannot convolve an empty batch
    assert onnxruntime_executor(network, random_input(network, batch=0)).spikes["a"].shape == (6, 0, 3, 4, 5)


def test_any_connection_name_and_confusing_population_names_are_kept_apart():
    names = ["scores", "readout", "const", "step", "network", "x", "batch"]
    base = Population(name="x", shape=(3,), threshold=64, reset_amount=64)
    populations = [dataclasses.replace(base, name=n) for n in names]
    labels = ["input", "scores", "scores/spikes", "a b/ü 'quoted' \"x\"", "x", "readout", "input->"]
    sources = ["input", *names[:-1]]
    connections = [
        Connection(source=s, target=t, name=label, synapse=Dense(np.full((3, 3), 2)))
        for s, t, label in zip(sources, names, labels, strict=True)
    ]
    network = Network(
        name="names \ud800\n",
        steps=3,
        input=Input(shape=(3,), low=-300, high=300),
        populations=populations,
        connections=connections,
        readout=Readout(population="readout", kind="weighted_count", decay=9),
    )
    onnx.checker.check_model(build_model(network), full_check=True)
    assert_same(network, random_input(network), onnxruntime_executor, names)
    looped = dataclasses.replace(
        network, connections=[*connections, Connection(source="batch", target="scores", synapse=Scale([1]), delay=2)]
    )
    onnx.checker.check_model(build_model(looped), full_check=True)
    assert_same(looped, random_input(looped), onnxruntime_executor, names)


def test_the_function_in_the_model_is_what_runs():
    """Were the functions ignored, every other test could still pass."""
    network = small()
    quiet = dataclasses.replace(network.populations[0], threshold=0, bias=[0])  # never above 0 without input
    network = small(populations=[quiet, network.populations[1]])
    model = build_model(network)
    (function,) = (f for f in model.functions if f.name == "LifZero")
    (body,) = (a.g for n in function.node for a in n.attribute if n.op_type == "Scan" and a.name == "body")
    (fire,) = (n for n in body.node if n.op_type == "Greater")
    x = np.zeros((1, 1, 2, 4, 5), np.int32)
    for op, fires in (("Greater", False), ("Equal", True)):
        fire.op_type = op
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        assert set(session.run(["a/spikes"], {"input": x})[0].flat) == {int(fires)}


def test_functions_carry_their_equations():
    assert "s = v > threshold" in neuron_function(Kind("zero")).doc_string
    assert {f.name for f in build_model(small()).functions} == {"LifSubtract", "LifZero"}


def test_bad_calls_are_refused_by_name():
    network = small()
    with pytest.raises(DescriptionError, match="no population 'nobody'"):
        onnxruntime_executor(network, random_input(network), ["nobody"])
    with pytest.raises(DescriptionError, match="6 steps"):
        onnxruntime_executor(network, random_input(network, frames=True)[:4])
    with pytest.raises(ExecutionError, match="small"):
        onnxruntime_executor(network, np.zeros((2, 9, 9, 9), np.int64))


def test_sessions_are_kept_but_not_too_many():
    from lapilli.export.onnx import executors as onnx_executors

    network = small()
    onnxruntime_executor(network, random_input(network))
    kept = onnx_executors._session(network, ())
    assert onnx_executors._session(small(), ()) is kept
    for i in range(onnx_executors.SESSIONS_KEPT + 1):
        onnx_executors._session(small(name=str(i)), ())
    assert len(onnx_executors._sessions) == onnx_executors.SESSIONS_KEPT
