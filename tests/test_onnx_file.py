"""Files: lossless, the same bytes every time, and never more than one clear line for a bad one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time

import numpy as np
import onnx
import onnx.checker
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lapilli
from lapilli.errors import FileFormatError, UnsupportedError
from lapilli.export import (
    Connection,
    Conv2d,
    Dense,
    Input,
    Network,
    Population,
    Readout,
    Scale,
    build_model,
    execute_file,
    load,
    load_onnx,
    save,
    save_onnx,
)
from lapilli.export.onnx import file as onnx_file
from lapilli.sim.reference import reference
from strategies import networks, networks_with_input


def some(examples):
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))


def example():
    rng = np.random.default_rng(1)
    return Network(
        name="example",
        steps=5,
        input=Input(shape=(2, 4, 5), low=-7, high=300, scale=[[[0.1]], [[1 / 3]]], zero=[0.25]),
        populations=[
            Population(name="a", shape=(3, 4, 5), threshold=3000, reset="zero", dv=300, du=2000, bias=[64], scale=1.5),
            Population(name="b", shape=(4,), threshold=500, reset_amount=700, dv=100, v_init=-80),
        ],
        connections=[
            Connection(source="input", target="a", synapse=Conv2d(rng.integers(-90, 90, (3, 2, 3, 3)), padding=1)),
            Connection(source="a", target="b", synapse=Dense(rng.integers(-9, 12, (4, 60))), delay=2),
        ],
        readout=Readout(population="b"),
        labels=["zero", "one", "zwei", "drei\n\ud800"],
        metadata={"test_accuracy": 0.975, "trained": {"by": "DSR", "epochs": 3}, "ü": None},
    )


@pytest.fixture
def saved(tmp_path):
    return save_onnx(example(), tmp_path / "example.onnx")


def refusal(path):
    """The one line with which a file is refused."""
    with pytest.raises(FileFormatError) as caught:
        load_onnx(path)
    line = str(caught.value)
    assert "\n" not in line
    assert str(path) in line
    assert len(line) < 600
    return line


def edit(path, change):
    """Let another program change the model in a file."""
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def edit_description(path, change):
    def change_metadata(model):
        described = json.loads(model.metadata_props[0].value)
        described = change(described) or described
        model.metadata_props[0].value = json.dumps(described, sort_keys=True, separators=(",", ":"))

    return edit(path, change_metadata)


@some(60)
@given(networks(delays=True, acyclic=False, wild=True))
def test_round_trip_is_the_identity_and_bytes_are_deterministic(tmp_path_factory, network):
    folder = tmp_path_factory.mktemp("round")
    first, second = save(network, folder / "a.onnx"), folder / "b.onnx"
    again = load(first)
    assert again == network
    save(again, second)
    assert first.read_bytes() == second.read_bytes()


def test_everything_that_equality_leaves_out_survives_too(saved):
    again = load_onnx(saved)
    assert again == example()
    assert again.labels == example().labels
    assert again.metadata == example().metadata
    np.testing.assert_array_equal(again.input.scale, example().input.scale)
    assert again.input.scale.shape == (2, 1, 1)


@some(20)
@given(networks_with_input(delays=True, acyclic=False))
def test_the_file_itself_runs(tmp_path_factory, case):
    network, x = case
    path = save(network, tmp_path_factory.mktemp("run") / "net.onnx")
    onnx.checker.check_model(path, full_check=True)
    found, expected = execute_file(path, x), reference(network, x)
    for name, spikes in expected.spikes.items():
        np.testing.assert_array_equal(found.spikes[name], spikes)
    name = network.populations[0].name
    np.testing.assert_array_equal(execute_file(path, x, [name]).v[name], reference(network, x, [name]).v[name])


def test_a_plain_onnx_user_can_run_it(saved):
    import onnxruntime

    session = onnxruntime.InferenceSession(saved, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["input"]
    assert [o.name for o in session.get_outputs()] == ["a/spikes", "b/spikes", "scores"]
    scores = session.run(["scores"], {"input": np.zeros((1, 2, 2, 4, 5), np.int32)})[0]
    assert scores.shape == (2, 4)


def test_the_format_is_frozen():
    """Files of versions 1 and 2 hold these graphs; who changes them must keep reading old files (docs/format.md)."""
    base = example()
    recurrent = Connection(source="b", target="b", synapse=Scale([3]), delay=2)
    looped = dataclasses.replace(
        base,
        connections=[*base.connections, recurrent, Connection(source="b", target="c", synapse=Scale([-1]))],
        populations=[*base.populations, Population(name="c", shape=(4,), reset="none")],
        readout=Readout(population="c", kind="membrane"),
    )
    weighted = dataclasses.replace(base, readout=Readout(population="b", kind="weighted_count", decay=100))
    graded, graded_loop = (
        dataclasses.replace(
            n,
            populations=[
                dataclasses.replace(p, payload_max=999, payload_shift=6) if p.spikes else p for p in n.populations
            ],
        )
        for n in (base, looped)
    )
    assert [n.format_version for n in (looped, graded)] == [1, 2]
    for network, expected in (
        (base, "af6aaf19bbd1"),
        (looped, "92251c8235de"),
        (weighted, "73ea795f135f"),
        (graded, "01e41a492ba0"),
        (graded_loop, "cda09f4848fa"),
    ):
        model = build_model(network, producer_version="0").SerializeToString(deterministic=True)
        assert hashlib.sha256(model).hexdigest()[:12] == expected


def test_initializers_are_exactly_the_weights_and_biases(saved):
    names = [i.name for i in onnx.load(saved).graph.initializer]
    assert names == ["a/bias", "b/bias", "input->a/weight", "a->b/weight"]


def test_writing_is_atomic(saved, monkeypatch):
    before = saved.read_bytes()

    def killed(fd):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        save_onnx(dataclasses.replace(example(), name="other"), saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_paths_that_cannot_be_written_or_read(tmp_path, saved):
    with pytest.raises(FileFormatError, match="cannot write"):
        save_onnx(example(), tmp_path / "absent" / "net.onnx")
    assert "no such file" in refusal(tmp_path / "absent.onnx")
    assert "is a folder" in refusal(tmp_path)
    empty = tmp_path / "empty.onnx"
    empty.touch()
    assert "is empty" in refusal(empty)
    pipe = tmp_path / "pipe.onnx"
    os.mkfifo(pipe)
    assert "not a regular file" in refusal(pipe)
    with pytest.raises(FileFormatError):
        load_onnx("null\0character.onnx")


@pytest.mark.parametrize("suffix", [".h5", ".pt", ""])
def test_other_suffixes_are_refused(tmp_path, suffix):
    with pytest.raises(UnsupportedError, match=r"use \.onnx"):
        save(example(), tmp_path / f"net{suffix}")
    with pytest.raises(UnsupportedError, match=r"use \.onnx"):
        load(tmp_path / f"net{suffix}")


def test_a_file_that_is_too_large_is_refused(saved, monkeypatch):
    monkeypatch.setattr(onnx_file, "MAX_FILE_BYTES", 100)
    assert "more than 100 bytes" in refusal(saved)


def test_networks_too_large_for_a_file_are_refused_when_saved(tmp_path, monkeypatch):
    path = tmp_path / "net.onnx"
    for limit, value, what in (
        ("MAX_PARTS", 3, "4 populations and connections"),
        ("MAX_FILE_BYTES", onnx_file.MAX_BYTES_BESIDE_TENSORS + 100, "external data"),
        ("MAX_BYTES_BESIDE_TENSORS", 2000, "shorten the metadata"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(onnx_file, limit, value)
            with pytest.raises(UnsupportedError, match=what):
                save_onnx(example(), path)
    assert not path.exists()


def test_other_onnx_files_are_not_lapilli_files(tmp_path):
    graph = onnx.parser.parse_graph("g (float[2] x) => (float[2] y) { y = Abs(x) }")
    path = tmp_path / "other.onnx"
    onnx.save(onnx.helper.make_model(graph), path)
    assert "not a lapilli file" in refusal(path)


def change_weight(model):
    raw = bytearray(model.graph.initializer[2].raw_data)
    raw[3] ^= 1
    model.graph.initializer[2].raw_data = bytes(raw)


def float_weight(model):
    tensor = model.graph.initializer[2]
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) + 0.5, tensor.name))


def external_weight(model):
    tensor = model.graph.initializer[2]
    onnx.external_data_helper.set_external_data(tensor, "../../etc/passwd")
    tensor.ClearField("raw_data")


def cyclic_nodes(model):
    """The first node with an input reads what the last one gives."""
    next(node for node in model.graph.node if node.input).input[0] = model.graph.node[-1].output[0]


def function_of(model, name):
    return next(f for f in model.functions if f.name == name)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda m: m.metadata_props.pop(), "not a lapilli file"),
        (lambda m: m.metadata_props.append(m.metadata_props[0]), "2 metadata entries"),
        (lambda m: setattr(m.metadata_props[0], "value", "{"), "not JSON"),
        (lambda m: setattr(m.metadata_props[0], "value", "[" * 100_000), "not JSON"),
        (lambda m: setattr(m.metadata_props[0], "value", "[]"), "a list, not an object"),
        (change_weight, "digest is"),
        (float_weight, "initializer 'input->a/weight': has type"),
        (external_weight, "initializer 'input->a/weight': its external data need one location"),
        (lambda m: m.graph.initializer.pop(), "'a->b/weight' is missing"),
        (lambda m: m.graph.initializer.append(m.graph.initializer[0]), "occurs twice"),
        (lambda m: m.graph.initializer[2].dims.append(3), "do not make the shape"),
        (lambda m: m.graph.initializer[2].dims.__setitem__(0, -3), "do not make the shape"),
        (lambda m: m.graph.initializer[2].dims.__setitem__(0, 2**62), "do not make the shape"),
        (lambda m: m.graph.initializer[2].dims.__setitem__(slice(0, 2), [6, 1]), "connection 'input->a'"),
        (lambda m: m.graph.initializer.add(name="x", data_type=3, dims=[1], raw_data=b"1"), "unknown arrays x"),
        (lambda m: m.graph.initializer.add(data_type=99), "has type ?"),
        (lambda m: m.graph.node.pop(), "the number of nodes"),
        (lambda m: setattr(m.graph.node[-2], "op_type", "Identity"), "is not what the description says"),
        (cyclic_nodes, "is not what the description says"),
        (lambda m: m.functions.pop(), "the number of functions"),
        (lambda m: setattr(function_of(m, "LifZero").node[0], "op_type", "Neg"), "function 'LifZero'"),
        (lambda m: setattr(m.graph.input[0], "name", "x"), "input 'input'"),
        (lambda m: m.graph.output.pop(), "the number of outputs"),
        (lambda m: setattr(m, "ir_version", 99), "the model's header"),
        (lambda m: m.opset_import.add(domain="com.example", version=1), "the model's header"),
        (lambda m: setattr(m, "producer_version", "x\ny"), "producer version"),
        (lambda m: m.metadata_props.add(key="more", value="than that"), "the model's header"),
    ],
)
def test_a_changed_model_is_refused_by_name(saved, change, line):
    assert line in refusal(edit(saved, change))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda d: d.update(format_version=3), "format version 3; lapilli"),
        (lambda d: d.update(format_version=2), "metadata 'lapilli' is not what the description says"),
        (lambda d: d["structure"].update(format_version=2), "graded spikes came with version 2"),
        (lambda d: d["structure"]["populations"][0].update(payload_max=9), "what it holds is of version 2"),
        (lambda d: d["structure"]["populations"][0].update(payload_max=1), "metadata 'lapilli' is not what"),
        (lambda d: d.pop("format_version"), "format version None"),
        (lambda d: d["structure"].update(format_version=7), "format version 7"),
        (lambda d: d.pop("structure"), "malformed (KeyError: 'structure')"),
        (lambda d: d.update(structure=[]), "malformed"),
        (lambda d: d["structure"].update(steps=0), "steps 0 is outside"),
        (lambda d: d["structure"].update(steps="many"), "'many' is not an integer"),
        (lambda d: d["structure"]["populations"][0].update(shape=[2**40, 2**40]), "elements"),
        (lambda d: d["structure"]["populations"][0].update(colour="red"), "colour"),
        (lambda d: d["structure"]["populations"][0].update(state_bits=64), "state_bits 64"),
        (lambda d: d["structure"]["connections"][0].update(source="b"), "connection 'input->a': conv2d: the source"),
        (lambda d: d["structure"]["connections"][1].update(source=["b"]), "malformed"),
        (lambda d: d["structure"]["connections"][0]["synapse"].update(kind="magic"), "unknown synapse kind 'magic'"),
        (lambda d: d["structure"]["connections"][0]["synapse"].update(padding=[2**60, 1]), "padding"),
        (lambda d: d["structure"]["populations"].extend([d["structure"]["populations"][0]] * 5000), "more than 4096"),
        (lambda d: d.update(input_scale=[[1, 2], [3]]), "malformed"),
        (lambda d: d.update(input_scale=[0.5]), "digest is"),
        (lambda d: d.update(metadata=[]), "metadata_sha256 is"),
        (lambda d: d.update(metadata=3), "metadata is not JSON"),
        (lambda d: d["metadata"].update(test_accuracy=0.999), "metadata_sha256 is"),
        (lambda d: d.update(digest="0" * 64), "digest is 000000000000..."),
        (lambda d: d.update(more=1), "metadata 'lapilli' is not what the description says"),
        (lambda d: d.update(format_version=True), "metadata 'lapilli' is not what the description says"),
    ],
)
def test_a_changed_description_is_refused_by_name(saved, change, line):
    def returning_nothing(described):
        change(described)

    assert line in refusal(edit_description(saved, returning_nothing))


def test_every_truncation_is_refused(saved):
    data = saved.read_bytes()
    for length in {*range(1, 60), *range(60, len(data), len(data) // 60), len(data) - 1}:
        saved.write_bytes(data[:length])
        refusal(saved)


@some(150)
@given(data=st.data())
def test_damaged_bytes_never_give_another_network(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "net.onnx"
    save_onnx(example(), path)
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    started = time.monotonic()
    try:
        found = load_onnx(path)
    except FileFormatError:
        found = None
    assert found is None or found == example()
    assert time.monotonic() - started < 10


@some(100)
@given(st.binary(min_size=1, max_size=300))
def test_random_bytes_are_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("random") / "net.onnx"
    path.write_bytes(data)
    refusal(path)


@pytest.mark.parametrize(
    "hostile",
    [
        b"\x3a\x00" * 200_000,  # 200,000 empty graphs
        b"\x3a\x80\x89\x7a" + b"\x0a\x00" * 1_000_000,  # a graph of a million empty nodes
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # a graph of 2^64 - 1 bytes
        b"\x08" + b"\xff" * 20,  # a number without end
        b"\x42" + b"\xc0\x84\x3d" + b"\x0a\x00" * 500_000,  # an opset entry full of nothing
    ],
)
def test_messages_made_to_exhaust_a_parser_are_refused_at_once(tmp_path, hostile):
    path = tmp_path / "bomb.onnx"
    path.write_bytes(hostile)
    started = time.monotonic()
    refusal(path)
    assert time.monotonic() - started < 10


def test_importing_the_room_imports_neither_onnx_nor_torch():
    import subprocess
    import sys

    code = (
        "import sys, lapilli.export; sys.exit(any(m in sys.modules for m in ('onnx', 'onnxruntime', 'torch', 'rich')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert {"Network", "load", "save_onnx", "summarize", "quantize"} <= set(dir(lapilli.export))
    with pytest.raises(AttributeError):
        _ = lapilli.export.nothing
