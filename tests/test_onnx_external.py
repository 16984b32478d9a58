"""Large networks: weights in a file beside the model, read back equal, and nothing else is ever opened."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import onnx
import onnx.checker
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lapilli.cli import main
from lapilli.errors import FileFormatError, UnsupportedError
from lapilli.export import (
    Connection,
    Conv2d,
    Dense,
    Input,
    Network,
    Population,
    Readout,
    build_model,
    execute_file,
    load_onnx,
    onnxruntime_executor,
    save_onnx,
)
from lapilli.export.onnx import executors, external
from lapilli.export.onnx import file as onnx_file
from lapilli.sim.reference import reference
from strategies import networks_with_input

LARGE = ["a/bias", "input->a/weight", "b->c/weight"]  # 1 KiB and more, in the model's order


def some(examples):
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))


def example(seed=1):
    rng = np.random.default_rng(seed)
    return Network(
        name="large",
        steps=3,
        input=Input(shape=(3, 9, 9), high=7),
        populations=[
            Population(name="a", shape=(16, 9, 9), threshold=3000, reset="zero", bias=rng.integers(-9, 9, (16, 9, 9))),
            Population(name="b", shape=(8,), threshold=500, reset_amount=700, bias=[1]),
            Population(name="c", shape=(130,), threshold=50),
        ],
        connections=[
            Connection(source="input", target="a", synapse=Conv2d(rng.integers(-90, 90, (16, 3, 5, 5)), padding=2)),
            Connection(source="a", target="b", synapse=Dense(rng.integers(-9, 12, (8, 16)).repeat(81, 1)[:, :1296])),
            Connection(source="b", target="c", synapse=Dense(rng.integers(-9, 12, (130, 8)))),
        ],
        readout=Readout(population="c"),
    )


@pytest.fixture
def saved(tmp_path):
    return save_onnx(example(), tmp_path / "net.onnx", external_data=True)


def data_file(path):
    (found,) = path.parent.glob("*.data")
    return found


def refusal(path):
    started = time.monotonic()
    with pytest.raises(FileFormatError) as caught:
        load_onnx(path)
    assert time.monotonic() - started < 10
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(str(path))
    assert len(line) < 700
    return line


def edit(path, change):
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def entries(model, name="input->a/weight"):
    tensor = next(t for t in model.graph.initializer if t.name == name)
    return {entry.key: entry for entry in tensor.external_data}


# ------------------------------------------------------------------------------------------------- what is written


def test_it_is_the_network_and_has_its_digest(saved, tmp_path):
    inline = save_onnx(example(), tmp_path / "inline.onnx")
    assert load_onnx(saved) == load_onnx(inline) == example()
    assert load_onnx(saved).digest() == example().digest()
    assert data_file(saved).name == f"lapilli-{example().digest()[:32]}.data"
    assert saved.stat().st_size < inline.stat().st_size


@some(40)
@given(networks_with_input(delays=True, acyclic=False, wild=True))
def test_round_trip_is_the_identity_and_the_file_runs(tmp_path_factory, case):
    network, x = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(external, "INLINE_BYTES", 5)  # so that small networks have tensors outside, too
        path = save_onnx(network, tmp_path_factory.mktemp("round") / "net.onnx", external_data=True)
        onnx.checker.check_model(str(path), full_check=True)
        assert load_onnx(path) == network
        found, expected = execute_file(path, x), reference(network, x)
        for name, spikes in expected.spikes.items():
            np.testing.assert_array_equal(found.spikes[name], spikes)


def test_the_layout_is_that_of_the_specification(saved):
    model = onnx.load(saved, load_external_data=False)
    outside = [t.name for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    assert outside == ["a/bias", "input->a/weight", "a->b/weight", "b->c/weight"]
    content = data_file(saved).read_bytes()
    end = 0
    for name in outside:
        said = {key: entry.value for key, entry in entries(model, name).items()}
        offset, length = int(said["offset"]), int(said["length"])
        assert offset % 4096 == 0
        assert offset - end < 4096
        assert not any(content[end:offset])
        tensor = example().tensors()[name]
        assert content[offset : offset + length] == tensor.tobytes()
        end = offset + length
    assert end == len(content)


def test_onnx_own_tools_read_it(saved):
    import onnxruntime
    from onnx.reference import ReferenceEvaluator

    x = np.random.default_rng(0).integers(0, 8, (1, 2, 3, 9, 9), dtype=np.int32)
    expected = reference(example(), x[0].astype(np.int64))
    session = onnxruntime.InferenceSession(str(saved), providers=["CPUExecutionProvider"])
    loaded = onnx.load(saved)  # with its external data
    for spikes in (
        session.run(["c/spikes"], {"input": x})[0],
        ReferenceEvaluator(loaded).run(["c/spikes"], {"input": x})[0],
    ):
        np.testing.assert_array_equal(spikes, expected.spikes["c"])
    assert expected.spikes["c"].any()


def test_the_same_network_gives_the_same_bytes_wherever_it_is_written(saved, tmp_path):
    (tmp_path / "sub").mkdir()
    other = save_onnx(example(), tmp_path / "sub" / "other.onnx", external_data=True)
    assert other.read_bytes() == saved.read_bytes()
    assert data_file(other).read_bytes() == data_file(saved).read_bytes()


def test_it_moves_as_two_files(saved, tmp_path):
    folder = tmp_path / "moved"
    folder.mkdir()
    shutil.copy(saved, folder / "renamed.onnx")
    line = refusal(folder / "renamed.onnx")
    assert f"its data file {data_file(saved).name} is not beside it; copy it there" in line
    shutil.copy(data_file(saved), folder)
    assert load_onnx(folder / "renamed.onnx") == example()


def test_another_network_under_the_same_name_never_meets_old_weights(saved):
    save_onnx(example(2), saved, external_data=True)
    assert load_onnx(saved) == example(2)
    assert len(list(saved.parent.glob("*.data"))) == 2


@pytest.mark.parametrize("calls", [1, 2])
def test_a_kill_while_writing_leaves_what_was_there(saved, monkeypatch, calls):
    """In the data file, and between it and the model."""
    real, left = os.fsync, [calls]

    def killed(fd):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        real(fd)

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        save_onnx(example(2), saved, external_data=True)
    assert load_onnx(saved) == example()
    assert not list(saved.parent.glob(".*"))


def test_large_networks_get_a_data_file_by_default(tmp_path, monkeypatch):
    save_onnx(example(), tmp_path / "small.onnx")
    assert not list(tmp_path.glob("*.data"))
    monkeypatch.setattr(onnx_file, "EXTERNAL_FROM", 10_000)
    save_onnx(example(), tmp_path / "large.onnx")
    assert load_onnx(tmp_path / "large.onnx") == example()
    data_file(tmp_path / "large.onnx").unlink()
    save_onnx(example(), tmp_path / "inline.onnx", external_data=False)
    assert load_onnx(tmp_path / "inline.onnx") == example()


def test_onnxruntime_takes_large_networks_through_a_file(monkeypatch):
    x = np.random.default_rng(0).integers(0, 8, (2, 3, 9, 9))
    expected = onnxruntime_executor(example(), x, ["a"])
    monkeypatch.setattr(executors, "EXTERNAL_FROM", 10_000)
    executors._sessions.clear()
    found = onnxruntime_executor(example(), x, ["a"])
    np.testing.assert_array_equal(found.v["a"], expected.v["a"])


def test_a_network_beyond_the_limit_is_refused_when_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(external, "MAX_EXTERNAL_BYTES", 9000)
    with pytest.raises(UnsupportedError, match="more than 9000"):
        save_onnx(example(), tmp_path / "net.onnx", external_data=True)
    assert not list(tmp_path.iterdir())


def test_the_command_line_writes_and_inspects_it(saved, tmp_path):
    out = tmp_path / "out" / "again.onnx"
    out.parent.mkdir()
    done = CliRunner().invoke(main, ["export", str(saved), "--out", str(out), "--external-data"])
    assert done.exit_code == 0, done.output
    assert data_file(out).name == data_file(saved).name
    done = CliRunner().invoke(main, ["inspect", str(out), "--json"])
    assert json.loads(done.output)["digest"] == example().digest()
    data_file(out).unlink()
    done = subprocess.run(
        [sys.executable, "-m", "lapilli", "inspect", str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "is not beside it" in done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "lapilli", "export", str(saved), "--out", str(tmp_path / "a.net"), "--external-data"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "external_data" in done.stderr


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    "location",
    [
        "../{name}",
        "/etc/passwd",
        "sub/{name}",
        "{name}\0",
        "./{name}",
        "",
        "other.data",
        "..\\{name}",
        "{name} ",
        "C:{name}",
    ],
)
def test_no_other_file_is_opened(saved, location):
    name = data_file(saved).name
    (saved.parent / "other.data").write_bytes(data_file(saved).read_bytes())

    def change(model):
        for tensor in LARGE:
            entries(model, tensor)["location"].value = location.format(name=name)

    assert "beside the model is ever opened" in refusal(edit(saved, change))


def test_links_pipes_and_folders_are_not_followed(saved, tmp_path):
    path = data_file(saved)
    real = tmp_path / "elsewhere"
    path.rename(real)
    path.symlink_to(real)
    assert "is a link" in refusal(saved)
    path.unlink()
    os.mkfifo(path)
    assert "not a regular file" in refusal(saved)
    path.unlink()
    path.mkdir()
    assert "not a regular file" in refusal(saved)


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b"", lambda b: b[: len(b) // 2]])
def test_a_data_file_of_another_size_is_refused(saved, change):
    path = data_file(saved)
    path.write_bytes(change(path.read_bytes()))
    assert f"has {path.stat().st_size} bytes and should have" in refusal(saved)


def set_entry(key, value, tensor="input->a/weight"):
    return lambda model: setattr(entries(model, tensor)[key], "value", value)


def put_inside(model):
    tensor = model.graph.initializer[-1]
    tensor.ClearField("external_data")
    tensor.data_location = onnx.TensorProto.DEFAULT
    tensor.raw_data = example().tensors()[tensor.name].tobytes()


def both(model):
    model.graph.initializer[-1].raw_data = b"abc"


def twice(model):
    tensor = model.graph.initializer[-1]
    tensor.external_data.append(tensor.external_data[0])


def checksum(model):
    model.graph.initializer[-1].external_data.add(key="checksum", value="0" * 40)


def another_digest(model):
    described = json.loads(model.metadata_props[0].value)
    described["digest"] = "../../../etc/passwd"
    model.metadata_props[0].value = json.dumps(described, sort_keys=True, separators=(",", ":"))


def huge(model):
    tensor = model.graph.initializer[-1]
    tensor.dims[:] = [2**40, 2**10]
    entries(model, tensor.name)["length"].value = str(2**50)


def many_axes(model):
    model.graph.initializer[-1].dims.extend([2**62] * 7)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (set_entry("offset", "0"), "are not its place"),
        (set_entry("offset", "12289"), "are not its place"),
        (set_entry("offset", "-4096"), "not a number of bytes"),
        (set_entry("offset", "1e3"), "not a number of bytes"),
        (set_entry("offset", "9" * 5000), "not a number of bytes"),
        (set_entry("offset", "٣"), "not a number of bytes"),
        (set_entry("length", "1199"), "do not make the shape"),
        (set_entry("length", "0"), "are not its place"),
        (set_entry("length", "9" * 18), "more than"),
        (set_entry("length", "1200", "b->c/weight"), "do not make the shape"),
        (put_inside, "should be in the data file"),
        (both, "both here and in another file"),
        (twice, "one location, offset and length each"),
        (checksum, "one location, offset and length each"),
        (another_digest, "not 64 hexadecimal digits"),
        (huge, "more than"),
        (many_axes, "has 9 axes"),
        (lambda m: setattr(m.graph.initializer[-1], "data_location", 0), "both here and in another file"),
        (lambda m: setattr(m.graph.initializer[-1], "data_type", 7), "do not make the shape"),
        (lambda m: m.graph.initializer[-1].dims.__setitem__(0, -1), "do not make the shape"),
        (lambda m: m.graph.node.pop(), "the number of nodes"),
        (lambda m: m.functions.pop(), "the number of functions"),
    ],
)
def test_a_changed_model_is_refused_by_name(saved, change, line):
    assert line in refusal(edit(saved, change))


@some(60)
@given(data=st.data())
def test_damage_in_either_file_never_gives_another_network(tmp_path_factory, data):
    path = save_onnx(example(), tmp_path_factory.mktemp("fuzz") / "net.onnx", external_data=True)
    victim = data.draw(st.sampled_from([path, data_file(path)]))
    damaged = bytearray(victim.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    victim.write_bytes(damaged)
    started = time.monotonic()
    try:
        found = load_onnx(path)
    except FileFormatError:
        found = None
    assert found is None or found == example()
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("name", ["input->a/weight", "a/bias"])
def test_one_flipped_bit_is_found(saved, name):
    path = data_file(saved)
    content = bytearray(path.read_bytes())
    offset = int(entries(onnx.load(saved, load_external_data=False), name)["offset"].value)
    content[offset + 7] ^= 1
    path.write_bytes(content)
    line = refusal(saved)
    assert "digest is" in line or "values" in line


# ------------------------------------------------------------------------------------------------- bounded memory

MEASURE = """
import resource, sys
import numpy as np
import lapilli
from lapilli.export import Connection, Dense, Input, Network, Population, load_onnx, save_onnx
import lapilli.export.onnx.file

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

path = sys.argv[2]
if sys.argv[1] == "write":
    n = 5000
    weight = (np.arange(n * n, dtype=np.int64) % 251 - 125).astype(np.int8).reshape(n, n)
    names = ["a", "b", "c"]
    network = Network(
        name="wide", steps=1, input=Input(shape=(n,)),
        populations=[Population(name=name, shape=(n,), threshold=9) for name in names],
        connections=[
            Connection(source=s, target=t, synapse=Dense(weight))
            for s, t in zip(["input", *names], names, strict=False)
        ],
    )
    before = peak()
    save_onnx(network, path, external_data=True)
else:
    before = peak()
    load_onnx(path)
print(peak() - before)
"""


@pytest.mark.slow
def test_neither_writing_nor_reading_takes_more_than_the_network(tmp_path):
    """75 MB of weights; the limit leaves 40 MB for everything else."""
    pytest.importorskip("resource")
    path, grown = tmp_path / "wide.onnx", {}
    for what in ("write", "read"):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, what, str(path)], capture_output=True, text=True, check=True
        )
        grown[what] = int(done.stdout)
    assert data_file(path).stat().st_size >= 75_000_000
    assert grown["write"] < 40_000_000
    assert grown["read"] < 75_000_000 + 40_000_000


def test_the_graph_is_that_of_the_inline_file_but_for_the_tensors():
    inline = build_model(example())
    outside = build_model(example(), external=external.layout(example().digest(), []))
    assert inline.SerializeToString(deterministic=True) == outside.SerializeToString(deterministic=True)
    assert dataclasses.replace(example()) == example()
