"""lava-dl's .net files: what lapilli writes and reads, and what it refuses by name."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies_netx import net_networks

from lapilli.errors import FileFormatError, UnsupportedError
from lapilli.export.netx.hdf5_values import MAX_UNSTORED_BYTES
from lapilli.export.netx.packing import run_weights, why_inexact
from lapilli.export.netx.reading import load_net
from lapilli.export.netx.writing import net_layers, round_to_net, save_net
from lapilli.network import INPUT, Connection, Conv2d, Dense, Input, Network, Population, Readout, Scale
from lapilli.sim.reference import reference
from strategies import inputs

h5py = pytest.importorskip("h5py")


def population(name, shape, **options):
    return Population(name=name, shape=shape, **{"threshold": 64 * 40, "reset": "zero", **options})


def network(populations, synapses, input_shape=(2, 4, 4), steps=5, **connection):
    sources = [INPUT, *[p.name for p in populations]]
    connections = [
        Connection(source=s, target=p.name, synapse=w, **connection)
        for s, p, w in zip(sources, populations, synapses, strict=False)
    ]
    return Network(
        name="n", steps=steps, input=Input(shape=input_shape), populations=populations, connections=connections
    )


def small(weight=None, **options):
    weight = np.array([[5, -3, 2], [-7, 4, 1]]) if weight is None else np.asarray(weight)
    return network([population("a", (weight.shape[0],), **options)], [Dense(weight)], (weight.shape[1],))


def assert_same_spikes(a, b, x):
    """Two networks of the same populations; shapes may differ, because a .net file flattens dense layers."""
    first, second = reference(a, x), reference(b, x)
    assert [p.name for p in a.populations] == [p.name for p in b.populations]
    for name, spikes in first.spikes.items():
        np.testing.assert_array_equal(spikes.reshape(second.spikes[name].shape), second.spikes[name])
    for p in a.populations:
        if not p.spikes:
            np.testing.assert_array_equal(
                first.v_final[p.name].reshape(-1), second.v_final[p.name].reshape(-1), err_msg=p.name
            )


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_back(tmp_path_factory, data):
    net = data.draw(net_networks())
    x = data.draw(inputs(net))
    path = save_net(net, tmp_path_factory.getbasetemp() / "round_trip.net")
    back = load_net(path)
    assert (back.steps, back.name, back.readout, back.labels) == (net.steps, net.name, net.readout, net.labels)
    assert back.input.shape == net.input.shape
    assert (back.input.low, back.input.high) == (net.input.low, net.input.high)
    np.testing.assert_array_equal(back.input.scale, net.input.scale)
    assert_same_spikes(net, back, x)
    again = save_net(back, tmp_path_factory.getbasetemp() / "again.net")
    assert load_net(again) == back


def test_datasets_have_the_types_that_the_loader_needs(tmp_path):
    net = network(
        [population("a", (3, 4, 4), bias=np.full((3, 1, 1), 128)), population("b", (2,))],
        [Conv2d(np.ones((3, 2, 3, 3)), padding=1), Dense(np.arange(96).reshape(2, 48))],
    )
    with h5py.File(save_net(net, tmp_path / "n.net")) as file:
        layers = file["layer"]
        assert [bytes(layers[str(i)]["type"][0]).decode() for i in range(4)] == ["input", "conv", "flatten", "dense"]
        for index in ("1", "3"):
            for key in ("iDecay", "vDecay", "vThMant", "refDelay"):
                assert layers[index]["neuron"][key].dtype == np.int64
                assert layers[index]["neuron"][key].shape == ()
            assert layers[index]["neuron/type"][()] == b"CUBA"
        assert layers["1/bias"][()].tolist() == [2, 2, 2]
        assert layers["1/groups"].shape == ()
        assert layers["3/weight"].shape == (2, 48)


def test_nothing_is_left_behind_when_writing_fails(tmp_path):
    with pytest.raises(FileFormatError, match="cannot write"):
        save_net(small(), tmp_path / "absent" / "n.net")
    (tmp_path / "n.net").mkdir()
    with pytest.raises(FileFormatError, match="cannot write"):
        save_net(small(), tmp_path / "n.net")
    assert [p.name for p in tmp_path.iterdir()] == ["n.net"]


def branched():
    a = population("a", (3,))
    b = population("b", (3,))
    connections = [
        Connection(source=INPUT, target="a", synapse=Dense(np.ones((3, 3)))),
        Connection(source="a", target="b", synapse=Dense(np.ones((3, 3)))),
        Connection(source=INPUT, target="b", synapse=Dense(np.ones((3, 3)))),
    ]
    return Network(name="n", steps=2, input=Input(shape=(3,)), populations=[a, b], connections=connections)


CONV = Conv2d(np.ones((1, 2, 3, 3)))
UNSAYABLE = {
    "soft": (lambda: small(reset="subtract", reset_amount=64), r"population 'a': soft reset .* train with reset"),
    "v_init": (lambda: small(v_init=5), "population 'a': v_init 5"),
    "threshold": (lambda: small(threshold=100), "population 'a': threshold 100 .* round it to 128"),
    "bias": (lambda: small(bias=np.array([64, 65])), "population 'a': bias 65 is not a multiple of 64"),
    "wide bias": (lambda: small(bias=np.array([64 * 4096])), r"population 'a': biases .* \(13 bits"),
    "width": (lambda: small(state_bits=16, du=0, bias=np.array([-(2**14)])), "population 'a': state_bits 16"),
    "fine weights": (lambda: small(fraction_bits=3), r"connection 'input->a': .* raise weight_exponent to 3"),
    "branch": (branched, "connection 'input->.': a branch"),
    "scale": (lambda: network([population("a", (3,))], [Scale(np.array([1]))], (3,)), "connection 'input->a': scale"),
    "conv delay": (lambda: network([population("a", (1, 2, 2))], [CONV], delay=1), "delay 1 on a convolution"),
    "strong conv": (lambda: network([population("a", (1, 2, 2))], [CONV], weight_exponent=9), "synapse holds"),
    "conv of dense": (
        lambda: network([population("a", (2, 4, 4)), population("b", (1, 2, 2))], [Dense(np.ones((32, 32))), CONV]),
        "connection 'a->b': a convolution after a dense layer",
    ),
    "zeros": (lambda: small(np.zeros((2, 2))), "connection 'input->a': all its weights are zero"),
    "minus 128": (lambda: small([[-128, -3]]), "connection 'input->a': .* weight -128 as -127"),
    "minus 64 twice": (lambda: small([[-64, -64]]), "connection 'input->a': .* weight -64 as 0"),
    "zero and minus 128": (lambda: small([[-128, 0]]), "connection 'input->a': .* weight -128 as -64"),
    "strong": (lambda: replace_exponent(small(), 6), r"weights are -448..320 in units of 64"),
    "drive": (lambda: replace_exponent(small(fraction_bits=20), 2), "wraps a current beyond 24 bits once"),
}


def replace_exponent(net, exponent):
    return replace(net, connections=[replace(c, weight_exponent=exponent) for c in net.connections])


@pytest.mark.parametrize("case", UNSAYABLE)
def test_what_the_format_cannot_say_is_refused_by_name(case, tmp_path):
    make, message = UNSAYABLE[case]
    with pytest.raises(UnsupportedError, match=message) as caught:
        save_net(make(), tmp_path / "n.net")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_remedies_work():
    net_layers(small([[-127, -3]]))
    net_layers(small([[-128, 1]]))
    rounded = round_to_net(small(threshold=100, bias=np.array([95, -33])))
    assert rounded.populations[0].threshold == 128
    assert rounded.populations[0].bias.tolist() == [64, -64]
    assert rounded.metadata["rounded_to"] == 64
    net_layers(rounded)


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        ([[-256, -2]], [[-254, -2]]),
        ([[-256, -3]], [[-255, -3]]),
        ([[-128, -6]], [[-126, -6]]),
        ([[-64, -64]], [[0, 0]]),
        ([[-128, 0]], [[-64, 0]]),
        ([[3, -128]], [[3, -128]]),
        ([[255, 1]], [[255, 1]]),
        ([[-255, -1]], [[-255, -1]]),
        ([[254, -256]], [[254, -256]]),
    ],
)
def test_packing_is_lava_dl_s(weight, expected):
    made = run_weights(np.array(weight))
    assert made is not None
    assert made[0].tolist() == expected
    assert (why_inexact([np.array(weight)]) is None) == (weight == expected)


def test_unpackable_matrices_are_none():
    assert run_weights(np.zeros((2, 2), np.int64)) is None
    assert run_weights(np.array([[256, 1]])) is None
    assert run_weights(np.array([[255, -1]])) is None
    assert run_weights(np.array([[255, 1]]), np.array([[-255, 1]])) is None


# Reading what slayer writes


def cuba(**changes):
    return {"type": "CUBA", "iDecay": 1024, "vDecay": 128, "vThMant": 80, "refDelay": 1, "gradedSpike": False} | changes


def dense(weight, /, **changes):
    weight = np.asarray(weight, np.float32)
    n_out, n_in = weight.shape
    return {
        "type": "dense",
        "shape": np.array([n_out]),
        "inFeatures": n_in,
        "outFeatures": n_out,
        "weight": weight,
        "neuron": cuba(),
    } | changes


def conv(weight, shape, /, **changes):
    weight = np.asarray(weight, np.float32)
    pairs = {key: np.array(value) for key, value in (("stride", [1, 1]), ("padding", [0, 0]), ("dilation", [1, 1]))}
    return {
        "type": "conv",
        "shape": np.array(shape),
        "inChannels": weight.shape[1],
        "outChannels": weight.shape[0],
        "kernelSize": np.array(weight.shape[2:4]),
        **pairs,
        "groups": 1,
        "weight": weight,
        "neuron": cuba(),
    } | changes


def slayer_file(path, *layers):
    """A file with slayer's layout and types."""
    with h5py.File(path, "w") as file:
        for index, layer in enumerate(layers):
            group = file.create_group(f"layer/{index}")
            for key, value in layer.items():
                if key == "type":
                    group["type"] = np.array([value.encode()], "S10")
                elif key == "neuron":
                    for name, parameter in value.items():
                        group[f"neuron/{name}"] = parameter
                elif value is not None:
                    group[key] = value
        file["simulation/Ts"], file["simulation/tSample"] = 1, 16
    return path


W = [[2, -4, 6], [8, 10, -12]]


def test_a_dense_layer_of_slayer(tmp_path):
    path = slayer_file(tmp_path / "n.net", dense(np.array(W), bias=np.array([2, -4], np.float32)))
    net = load_net(path, steps=7)
    (p,), (c,) = net.populations, net.connections
    assert (net.steps, net.input.shape, net.input.binary) == (7, (3,), True)
    assert (p.shape, p.threshold, p.du, p.dv, p.reset) == ((2,), 80 * 64, 1024, 128, "zero")
    assert p.bias.tolist() == [128, -256]
    assert c.synapse.weight.tolist() == W
    assert (c.weight_exponent, c.delay) == (0, 0)
    assert net.readout == Readout(population="dense0")


def test_eight_bit_weights_of_slayer_are_int8_with_exponent_one(tmp_path):
    net = load_net(slayer_file(tmp_path / "n.net", dense([[-256, 254, 2]])), steps=1)
    assert net.connections[0].weight_exponent == 1
    assert net.connections[0].synapse.weight.tolist() == [[-128, 127, 1]]


def test_convolutions_flatten_and_recurrent_layers(tmp_path):
    rng = np.random.default_rng(0)
    w = 2 * rng.integers(-30, 31, (3, 2, 3, 2, 1))
    path = slayer_file(
        tmp_path / "n.net",
        {"type": "input", "shape": np.array([2, 6, 5])},
        conv(w, (3, 3, 4), stride=np.array([2, 1]), padding=np.array([1, 0])),
        {"type": "flatten", "shape": np.array([36, 1, 1])},
        dense(2 * rng.integers(-30, 31, (4, 36)), type="dense_rec", weight_rec=np.eye(4, dtype=np.float32) * 8),
        dense(np.ones((2, 4)), neuron=cuba(vThMant=2**18 - 1)),
    )
    net = load_net(path, steps=3)
    assert [p.shape for p in net.populations] == [(3, 3, 4), (4,), (2,)]
    np.testing.assert_array_equal(net.connections[0].synapse.weight, w[..., 0])
    assert net.connections[0].synapse.stride == (2, 1)
    feedback = next(c for c in net.connections if c.source == c.target)
    assert feedback.delay == 1
    assert feedback.synapse.weight.tolist() == (8 * np.eye(4)).tolist()
    assert net.populations[-1].reset == "none"
    assert net.readout == Readout(population=net.populations[-1].name, kind="membrane")


def test_layers_are_in_the_order_of_numbers(tmp_path):
    layers = [dense(np.full((1, 1), 2 * i + 2)) for i in range(12)]
    net = load_net(slayer_file(tmp_path / "n.net", *layers), steps=1)
    assert [int(c.synapse.weight[0, 0]) for c in net.connections] == [2 * i + 2 for i in range(12)]


@pytest.mark.parametrize(
    ("delay", "expected"),
    [
        (np.array([1.9, 3.0], np.float32), [[1, 1, 1], [3, 3, 3]]),
        (np.array([0, 1, 2]), [[0, 1, 2], [0, 1, 2]]),
        (np.array([[0, 1, 0], [62, 0, 1]]), [[0, 1, 0], [62, 0, 1]]),
        (np.array(4), [[4, 4, 4], [4, 4, 4]]),
    ],
)
def test_delays_become_one_connection_each(tmp_path, delay, expected):
    net = load_net(slayer_file(tmp_path / "n.net", dense(W, delay=delay)), steps=3)
    found = {c.delay: c.synapse.weight for c in net.connections}
    assert set(found) == set(np.unique(expected).tolist())
    for d, weight in found.items():
        np.testing.assert_array_equal(weight, np.where(np.array(expected) == d, W, 0))


def test_an_input_layer_with_neurons_is_driven_through_its_bias(tmp_path):
    block = {"type": "input", "shape": np.array([3]), "weight": np.array([40.0]), "bias": np.array([36.0])}
    path = slayer_file(tmp_path / "n.net", block | {"neuron": cuba(iDecay=4096)}, dense(W))
    net = load_net(path, steps=4)
    first = net.populations[0]
    assert net.input.encode(np.array([[0.0, 0.5, 1.0]])).tolist() == [[36, 56, 76]]
    out = reference(net, np.array([[36, 56, 76]]), [first.name])
    v = np.zeros(3, np.int64)
    for n in range(4):  # v = trunc(v (4096 - 128) / 4096) + (bias << 6)
        v = v * (4096 - 128) // 4096 + (np.array([36, 56, 76]) << 6)
        spikes = v > 80 * 64
        np.testing.assert_array_equal(out.spikes[first.name][n, 0], spikes)
        v[spikes] = 0
    assert net.input.low == -4096
    assert load_net(path, steps=4, low=0, high=255).input.high == 255


def test_without_neurons_a_dense_layer_sums_all_input(tmp_path):
    layer = dense(W)
    del layer["neuron"]
    net = load_net(slayer_file(tmp_path / "n.net", layer), steps=3)
    out = reference(net, np.ones((1, 3), np.int64))
    assert out.v_final["dense0"].tolist() == [[3 * 4 * 64, 3 * 6 * 64]]


UNREADABLE = {
    "steps": ((dense(W),), {"steps": None}, "does not say how many steps"),
    "pool": (({"type": "pool", "shape": np.array([1])}, dense(W)), {}, "layer/0: a layer of type 'pool'"),
    "average": ((dense(W), {"type": "average", "shape": np.array([1])}), {}, "lava-dl's own loader cannot run"),
    "unknown": ((dense(W), {"type": "residual", "shape": np.array([1])}), {}, "leave out without a word"),
    "sdnn": ((dense(W, neuron={"type": "SDNN", "vThMant": 1}),), {}, "layer/0/neuron: type 'SDNN': sigma-delta"),
    "rf": ((dense(W, neuron={"type": "RF_PHASE", "vThMant": 1}),), {}, "resonate-and-fire"),
    "weight_exp": ((dense(W, neuron=cuba(weight_exp=1)),), {}, "unknown dataset 'weight_exp'"),
    "messageBits": ((dense(W, neuron=cuba(messageBits=8)),), {}, "unknown dataset 'messageBits'"),
    "graded": ((dense(W, neuron=cuba(gradedSpike=True)),), {}, "gradedSpike"),
    "refractory": ((dense(W, neuron=cuba(refDelay=3)),), {}, "refDelay"),
    "wgtExp": ((dense(W, neuron={**cuba(type="LOIHI"), "wgtExp": 1}),), {}, "wgtExp"),
    "nine bits": ((dense([[200, -3]]),), {}, "layer/0/weight: weights -3..200 .* 9 bits"),
    "delayed bias": ((dense(W, bias=np.array([1, 2]), delay=np.array([1, 1])),), {}, "delays and biases in one layer"),
    "delayed rec": (
        (dense(np.ones((2, 2)), type="dense_rec", weight_rec=np.eye(2), delay=np.array([1, 0])),),
        {},
        "delays in a recurrent layer",
    ),
    "delayed conv": ((conv(np.ones((1, 1, 2, 2)), (1, 2, 2), delay=np.array([1])),), {"input_shape": (1, 3, 3)},
                     "delays of a convolution"),
    "no shape": ((conv(np.ones((1, 1, 2, 2)), (1, 2, 2)),), {}, "give input_shape"),
    "silent": ((dense(W, neuron=cuba(vThMant=2**18 - 1)), dense([[2, 2]])), {}, "'dense0' never spikes"),
    "extra": ((dense(W, scale=1.0),), {}, "unknown dataset 'scale' in a dense layer"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_a_description_cannot_say_is_refused_by_name(case, tmp_path):
    layers, options, message = UNREADABLE[case]
    with pytest.raises(UnsupportedError, match=message) as caught:
        load_net(slayer_file(tmp_path / "n.net", *layers), **{"steps": 3, **options})
    assert "n.net" in str(caught.value)
    assert "\n" not in str(caught.value)


MALFORMED = {
    "fraction": ((dense([[2, 2.5]]),), "layer/0/weight: has the value 2.5, .* cut it to 2"),
    "too strong": ((dense([[-300, 2]]),), "layer/0/weight: has values -300.0..2.0"),
    "nan": ((dense([[np.nan, 2]]),), "layer/0/weight"),
    "float decay": ((dense(W, neuron=cuba(iDecay=0.5)),), "layer/0/neuron/iDecay: has the value 0.5"),
    "decay": ((dense(W, neuron=cuba(vDecay=5000)),), "layer/0/neuron/vDecay: has values 5000..5000"),
    "no decay": ((dense(W, neuron={"type": "CUBA", "vThMant": 1, "vDecay": 1}),), "has no 'iDecay'"),
    "no weight": ((dense(W, weight=None),), "has no 'weight'"),
    "inputs": ((dense(W), dense(W)), "layer/1/weight: takes 3 inputs and gets 2"),
    "long delay": ((dense(W, delay=np.array([63, 0])),), "outside 0..62"),
    "odd delay": ((dense(W, delay=np.array([1, 2, 3, 4])),), "layer/0/delay: has shape"),
    "bias": ((dense(W, bias=np.ones(5)),), r"layer/0/bias: has shape \(5,\)"),
    "shape": (
        ({"type": "input", "shape": np.array([1, 4, 4])}, conv(np.ones((1, 1, 2, 2)), (1, 2, 2))),
        r"layer/1/shape: is \(1, 2, 2\), but the convolution of \(1, 4, 4\) gives \(1, 3, 3\)",
    ),
    "flat conv": (
        ({"type": "input", "shape": np.array([16])}, conv(np.ones((1, 1, 2, 2)), (1, 2, 2))),
        "a convolution of an input of shape",
    ),
    "text": ((dense(W, weight="hello"),), "layer/0/weight: has type object"),
    "negative shape": ((dense(W, shape=np.array([-2])),), "layer/0/shape"),
    "huge shape": ((dense(W, shape=np.array([2**31 - 1, 2**31 - 1])),), "layer/0/shape"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_layers_are_refused_by_name(case, tmp_path):
    layers, message = MALFORMED[case]
    with pytest.raises(FileFormatError, match=message) as caught:
        load_net(slayer_file(tmp_path / "n.net", *layers), steps=3)
    assert "\n" not in str(caught.value)


def test_weights_that_lava_dl_would_change_are_read_as_they_are_with_a_warning(tmp_path):
    path = slayer_file(tmp_path / "n.net", dense([[-128, -2]]))
    with pytest.warns(UserWarning, match="weight -128 as -126"):
        net = load_net(path, steps=1)
    assert net.connections[0].synapse.weight.tolist() == [[-128, -2]]


# Hostile files


def change(path, what):
    with h5py.File(path, "r+") as file:
        what(file)
    return path


def external_link(file):
    del file["layer/0/weight"]
    file["layer/0/weight"] = h5py.ExternalLink("/etc/passwd", "/x")


def soft_link(file):
    del file["layer/0/weight"]
    file["layer/0/weight"] = h5py.SoftLink("/layer/0/bias")


def external_data(file):
    del file["layer/0/weight"]
    file["layer/0"].create_dataset("weight", (2, 3), "f4", external=[("/etc/passwd", 0, 24)])


def virtual(file):
    del file["layer/0/weight"]
    layout = h5py.VirtualLayout((2, 3), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", shape=(2, 3))
    file["layer/0"].create_virtual_dataset("weight", layout)


def huge(file):
    del file["layer/0/weight"]
    file["layer/0"].create_dataset("weight", (2, 2**40), "f4", chunks=(1, 1024))


def many_huge(file):
    del file["layer/0/weight"]
    file["layer/0"].create_dataset("weight", (2, MAX_UNSTORED_BYTES // 8), "f4", chunks=(1, 1024))
    file["layer/0/neuron/vThMant"][()]
    del file["layer/0/shape"]
    file["layer/0"].create_dataset("shape", (MAX_UNSTORED_BYTES // 8,), "i8", chunks=(1024,), fillvalue=1)


def references(file):
    del file["layer/0/weight"]
    file["layer/0"]["weight"] = file["layer"].ref


def compound(file):
    del file["layer/0/weight"]
    file["layer/0"]["weight"] = np.zeros((2, 3), [("a", "f4"), ("b", "i4")])


def group_for_dataset(file):
    del file["layer/0/weight"]
    file.create_group("layer/0/weight")


def dataset_for_group(file):
    del file["layer"]
    file["layer"] = 3


def cycle(file):
    del file["layer/0"]
    file["layer/0"] = file["layer"]


def gap(file):
    file.move("layer/0", "layer/7")


def null_type(file):
    del file["layer/0/type"]
    file["layer/0"]["type"] = h5py.Empty("S10")


def not_text(file):
    file["layer/0/type"][0] = b"\xff\xfe"


HOSTILE = (
    external_link,
    soft_link,
    external_data,
    virtual,
    huge,
    many_huge,
    references,
    compound,
    group_for_dataset,
    dataset_for_group,
    cycle,
    gap,
    null_type,
    not_text,
)


@pytest.mark.parametrize("what", HOSTILE, ids=lambda f: f.__name__)
def test_hostile_files_are_refused_in_one_line(what, tmp_path):
    path = change(slayer_file(tmp_path / "n.net", dense(W)), what)
    with pytest.raises(FileFormatError) as caught:
        load_net(path, steps=3)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def told(**changes):
    said = {"format": 1, "name": "n", "steps": 3, "input": {}, "populations": [], "labels": []}
    return json.dumps(said | changes)


@pytest.mark.parametrize(
    "said",
    [
        "",
        "[1]",
        "{",
        "[" * 100_000,
        '{"format": 2}',
        told(steps=0),
        told(input={"low": "x"}),
        told(input={"scale": [[1], 2]}),
        told(populations=["input"]),
        told(labels=["one", 2]),
        told(readout={"x": 1}),
        told(readout=[1]),
    ],
)
def test_hostile_metadata_is_refused_in_one_line(said, tmp_path):
    def tamper(file):
        file["lapilli"] = said

    path = change(slayer_file(tmp_path / "n.net", dense(W)), tamper)
    with pytest.raises(FileFormatError):
        load_net(path)


def test_files_that_are_none(tmp_path):
    for name, content in (("empty", b""), ("text", b"layer"), ("magic", b"\x89HDF\r\n\x1a\n" + b"\0" * 100)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FileFormatError, match=name):
            load_net(tmp_path / name, steps=1)
    with pytest.raises(FileFormatError, match="no such file"):
        load_net(tmp_path / "absent.net", steps=1)
    with pytest.raises(FileFormatError, match="not a regular file"):
        load_net(tmp_path, steps=1)


def test_damaged_files_give_an_error_or_a_network(tmp_path):
    whole = slayer_file(tmp_path / "n.net", dense(W), dense([[2, 4]])).read_bytes()
    rng = np.random.default_rng(0)
    refused = []
    for trial in range(150):
        data = bytearray(whole[: int(rng.integers(len(whole)))] if trial % 3 == 0 else whole)
        for _ in range(int(rng.integers(1, 9))):
            if data:
                data[int(rng.integers(len(data)))] = int(rng.integers(256))
        path = tmp_path / "damaged.net"
        path.write_bytes(data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                load_net(path, steps=1)
        except (FileFormatError, UnsupportedError) as error:
            refused.append(str(error))
    assert len(refused) > 40
    assert not any("\n" in message for message in refused)
