"""lava-dl's own loader runs our .net files with our spikes, and we read lava-dl's files with its own spikes."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from strategies_netx import net_networks

from lapilli.deploy.lava import available
from lapilli.deploy.lava.executor import Job
from lapilli.deploy.lava.netx import carries_over, netx_executor, run_netx
from lapilli.errors import MissingDependencyError, UnsupportedError
from lapilli.export.netx.reading import load_net
from lapilli.export.netx.writing import save_net
from lapilli.network import INPUT, Connection, Conv2d, Dense, Input, Network, Population
from lapilli.recording import decide, scores
from lapilli.sim.engine.batched import fast
from lapilli.sim.reference import reference
from strategies import inputs


def lava_dl_file(name):
    """A file of lava-dl's own tests, which its wheel installs; None without lava-dl."""
    try:
        path = Path(str(importlib.metadata.distribution("lava-dl").locate_file(f"tests/lava/lib/dl/netx/{name}")))
    except importlib.metadata.PackageNotFoundError:
        return None
    return path if path.exists() else None


pytest.importorskip("h5py")
lava = pytest.mark.lava
needs_lava_dl = pytest.mark.skipif(
    not available() or lava_dl_file("mnist.net") is None, reason="lava-nc or lava-dl is not installed"
)


def golden(name):
    return np.load(lava_dl_file(f"gts/{name}"), allow_pickle=False)


def assert_equal(job, recording):
    expected = reference(job.network, job.x, job.trace)
    assert recording.spikes.keys() == expected.spikes.keys()
    for name, spikes in expected.spikes.items():
        np.testing.assert_array_equal(recording.spikes[name], spikes, err_msg=name)
    for p in job.network.populations:
        if not p.spikes:
            np.testing.assert_array_equal(recording.v_final[p.name], expected.v_final[p.name], err_msg=p.name)
    for name in job.trace:
        np.testing.assert_array_equal(recording.u[name], expected.u[name], err_msg=name)
        np.testing.assert_array_equal(recording.v[name], expected.v[name], err_msg=name)
    return sum(int(s.sum()) for s in expected.spikes.values())


def draw(count, **kind):
    cases = []

    @given(st.data())
    @settings(max_examples=4 * count, deadline=None, database=None, derandomize=True, phases=[Phase.generate])
    def collect(data):
        network = data.draw(net_networks(**kind))
        cases.append((network, data.draw(inputs(network, max_batch=3))))

    collect()
    return cases[-count:]


@lava
@needs_lava_dl
def test_random_networks_emit_the_reference_s_spikes():
    cases = draw(6, delays=False, recurrent=False)
    cases += [c for c in draw(20, delays=False, recurrent=False) if len(c[0].input.shape) == 3][-6:]
    cases += [c for c in draw(20) if carries_over(c[0])][-4:]
    jobs = [Job(network, x, (network.populations[-1].name,)) for network, x in cases]
    kinds = [c.synapse for job in jobs for c in job.network.connections]
    assert sum(isinstance(k, Conv2d) for k in kinds) >= 4
    assert sum(isinstance(k, Dense) for k in kinds) >= 8
    assert sum(carries_over(job.network) for job in jobs) == 4
    assert sum(assert_equal(job, run) for job, run in zip(jobs, run_netx(jobs, timeout=300), strict=True)) > 200


def biased():
    """Biases of every layer would fire before the window, and membranes of a sample would reach the next one."""
    rng = np.random.default_rng(3)

    def population(name, shape, **options):
        return Population(
            name=name, shape=shape, threshold=64 * 150, reset="zero", du=1200, dv=300, **options,
            bias=rng.integers(20, 90, shape) * 64,
        )  # fmt: skip

    return Network(
        name="biased",
        steps=6,
        input=Input(shape=(2, 6, 5), low=0, high=16),
        populations=[
            population("conv", (4, 6, 5)),
            population("strided", (6, 2, 3)),
            population("dense", (5,)),
            Population(name="readout", shape=(3,), reset="none", bias=np.array([64, -64, 0])),
        ],
        connections=[
            Connection(source=INPUT, target="conv", synapse=Conv2d(rng.integers(-9, 12, (4, 2, 3, 3)), padding=1)),
            Connection(
                source="conv",
                target="strided",
                synapse=Conv2d(rng.integers(-90, 100, (6, 2, 3, 2)), stride=(3, 2), padding=(0, 1), groups=2),
            ),
            Connection(
                source="strided", target="dense", synapse=Dense(rng.integers(-40, 50, (5, 36))), weight_exponent=1
            ),
            Connection(source="dense", target="readout", synapse=Dense(rng.integers(-128, 127, (3, 5)))),
        ],
    )  # fmt: skip


@lava
@needs_lava_dl
def test_samples_run_back_to_back_and_biases_wait_for_their_window():
    network = biased()
    x = np.random.default_rng(1).integers(0, 17, (5, 2, 6, 5))
    frames = np.random.default_rng(2).integers(0, 17, (6, 2, 2, 6, 5))
    jobs = [Job(network, x, ("conv", "dense", "readout")), Job(network, frames)]
    for job, run in zip(jobs, run_netx(jobs, timeout=200), strict=True):
        expected = reference(job.network, job.x)
        assert all(0.02 < s.mean() < 0.98 for s in expected.spikes.values())
        assert_equal(job, run)


@lava
@needs_lava_dl
@pytest.mark.slow
def test_a_trained_network_classifies_the_same_through_lava_dl(tmp_path):
    pytest.importorskip("torch")
    from lapilli.pipeline import Narrator, train_recipe
    from lapilli.recipe import load_recipe
    from lapilli.samples import read_samples

    recipe = load_recipe("digits", ["train.epochs=1", "bit_true.epochs=1", "network.steps=4", "network.reset=zero"])
    network = train_recipe(recipe, tmp_path, resume=False, narrator=Narrator()).network
    test = read_samples("digits", network)
    x = network.input.encode(test.x)
    expected = fast(network, x)
    accuracy = float((decide(scores(network, expected)) == test.y).mean())
    assert accuracy > 0.6
    back = load_net(save_net(network, tmp_path / "digits.net"))
    assert back.metadata == network.metadata
    assert float((decide(scores(back, fast(back, x))) == test.y).mean()) == accuracy
    assert_equal(Job(network, x[:20]), netx_executor(network, x[:20]))


@lava
@needs_lava_dl
def test_a_wrong_reset_offset_is_noticed(monkeypatch):
    code = """
        from lapilli.deploy.lava import netx_worker
        make = netx_worker.import_netx
        def shifted():
            hdf5 = make()
            make_network = hdf5.Network.__init__
            def early(self, **options):
                make_network(self, **{**options, "reset_offset": 0})
            hdf5.Network.__init__ = early
            return hdf5
        netx_worker.import_netx = shifted
        netx_worker.start()
    """
    monkeypatch.setattr("lapilli.deploy.lava.netx.WORKER", ["-c", textwrap.dedent(code)])
    job = Job(biased(), np.random.default_rng(1).integers(0, 17, (2, 2, 6, 5)))
    with pytest.raises(AssertionError):
        assert_equal(job, run_netx([job], timeout=100)[0])


@lava
@needs_lava_dl
def test_the_adapter_refuses_what_the_format_cannot_say():
    soft = Population(name="a", shape=(1,), threshold=64, reset="subtract", reset_amount=64)
    network = Network(
        name="soft", steps=1, input=Input(shape=(1,)), populations=[soft],
        connections=[Connection(source=INPUT, target="a", synapse=Dense([[1]]))],
    )  # fmt: skip
    with pytest.raises(UnsupportedError, match="population 'a': soft reset"):
        netx_executor(network, np.ones((1, 1), np.int64))


@lava
@needs_lava_dl
@pytest.mark.skipif(np.__version__.startswith("1."), reason="only NumPy 2 adds int8 without widening")
def test_images_too_large_for_lava_s_conv_are_refused_by_name():
    network = Network(
        name="large", steps=1, input=Input(shape=(1, 4, 126)),
        populations=[Population(name="a", shape=(1, 6, 128), threshold=64, reset="zero")],
        connections=[Connection(source=INPUT, target="a", synapse=Conv2d(np.ones((1, 1, 3, 3)), padding=2))],
    )  # fmt: skip
    with pytest.raises(UnsupportedError, match="connection 'input->a': 130 padded pixels"):
        netx_executor(network, np.ones((1, 1, 4, 126), np.int64))


def test_without_lava_dl_one_line_says_how_to_get_it(monkeypatch):
    find = importlib.util.find_spec

    def absent(name, *args):
        return None if name == "lava.lib.dl.netx" else find(name, *args)

    monkeypatch.setattr("importlib.util.find_spec", absent)
    if not available():
        pytest.skip("lava-nc is asked for first")
    with pytest.raises(MissingDependencyError, match=r"lava-dl 0\.6\.0, which is not installed; .*uv sync"):
        netx_executor(biased(), np.ones((1, 2, 6, 5), np.int64))


@lava
@needs_lava_dl
def test_our_packing_is_lava_dl_s(tmp_path):
    """Against optimize_weight_bits and the arithmetic of Lava's Dense, on random matrices and on every trap."""
    code = """
        import contextlib, io
        import numpy as np
        from lapilli.deploy.lava.netx_compatibility import import_netx
        from lapilli.export.netx.packing import run_weights
        import_netx()
        from lava.lib.dl.netx.utils import optimize_weight_bits
        from lava.utils.weightutils import clip_weights, determine_sign_mode, truncate_weights
        rng = np.random.default_rng(0)
        equal = lossy = 0
        for trial in range(3000):
            low, high = sorted(rng.choice([-256, -255, -128, -64, -5, -1, 0, 1, 7, 127, 128, 254, 255], 2, False))
            w = rng.integers(low, high + 1, (2, 3)) * int(rng.choice([1, 1, 2, 4]))
            made = run_weights(w)
            if made is None:
                continue
            packed, bits, exponent, _ = optimize_weight_bits(w)
            sign = determine_sign_mode(packed)
            stored = truncate_weights(clip_weights(packed, sign, num_bits=8), sign, bits)
            assert (stored * 2.0**exponent == made[0]).all(), (w, made, stored, exponent)
            equal += 1
            lossy += bool((made[0] != w).any())
        assert equal > 1500 and lossy > 20, (equal, lossy)
        print("same packing")
    """
    assert run_python(code, tmp_path) == "same packing"


def run_python(code, folder):
    """Run code in a process of its own, because stand-ins for torch and slayer stay in it."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=180,
        start_new_session=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


# Files that slayer wrote, with the spikes that were recorded with them. Recordings keep one step of delay per layer.


@needs_lava_dl
def test_tinynet_emits_its_recorded_spikes():
    network = load_net(lava_dl_file("tiny.net"), steps=16)
    x = golden("tinynet/input_bias.npy").transpose(2, 1, 0)[None].astype(np.int64)
    spikes = reference(network, x).spikes["conv2"][:, 0]
    recorded = np.moveaxis(golden("tinynet/output.npy")[0], -1, 0)
    assert recorded.sum() > 50
    np.testing.assert_array_equal(spikes[:-1], recorded[1:])


@needs_lava_dl
def test_ntidigits_with_its_axonal_delays_emits_its_recorded_spikes():
    steps = 600
    network = load_net(lava_dl_file("gts/ntidigits/ntidigits.net"), steps=steps, layers=5)
    assert len({c.delay for c in network.connections}) > 20
    x = golden("ntidigits/input.npy")[:, :steps].T.astype(np.int64).reshape(steps, 1, *network.input.shape)
    spikes = fast(network, x).spikes["dense4"][:, 0]
    recorded = golden("ntidigits/output.npy")[:, :steps].T
    assert recorded.sum() > 20_000
    np.testing.assert_array_equal(spikes[:-4], recorded[4:])


@needs_lava_dl
@pytest.mark.slow
def test_pilotnet_emits_its_recorded_spikes_in_every_layer():
    network = load_net(lava_dl_file("gts/pilotnet_lif/network.net"), steps=16)
    image = golden("pilotnet_lif/image.npy").transpose(2, 1, 0)[None].astype(np.int64)
    spikes = fast(network, image).spikes
    files = ["input", *[f"conv-{i}" for i in range(5)], *[f"fc-{i}" for i in range(3)]]
    for depth, (p, file) in enumerate(zip(network.populations, files, strict=False)):
        recorded = np.moveaxis(golden(f"pilotnet_lif/{file}.npy"), -1, 0)
        if recorded.ndim == 4:
            recorded = recorded.transpose(0, 3, 2, 1)  # (X, Y, C)
        assert recorded.any()
        np.testing.assert_array_equal(spikes[p.name][:, 0], recorded[depth : depth + 16].reshape(16, *p.shape))


@needs_lava_dl
def test_mnist_reads_whole():
    network = load_net(lava_dl_file("mnist.net"), steps=16)
    assert [p.shape for p in network.populations] == [(784,), (512,), (512,), (10,)]
    assert network.input.encode(np.array([[0.0, 1.0] * 392]))[0, :2].tolist() == [64, 140]
    assert network.populations[-1].reset == "none"


@needs_lava_dl
def test_lava_dl_s_loader_s_unsupported_layers_are_named():
    with pytest.raises(UnsupportedError, match="layer/5: a layer of type 'average'"):
        load_net(lava_dl_file("gts/ntidigits/ntidigits.net"), steps=10)
    with pytest.raises(UnsupportedError, match="layer/0/neuron: type 'SDNN': sigma-delta"):
        load_net(lava_dl_file("gts/pilotnet_sdnn/network.net"), steps=10)


@lava
@needs_lava_dl
def test_what_slayer_exports_now_emits_slayer_s_spikes(tmp_path):
    """Real slayer layers: convolution, flatten, dense, recurrent, and dense with axonal delays."""
    pytest.importorskip("torch")
    code = """
        import sys, types
        from lapilli.deploy.lava import import_lava
        import_lava()
        name = "lava.lib.dl.slayer.object_detection"  # the only part of slayer that needs torchvision and OpenCV
        sys.modules[name] = types.ModuleType(name)
        import h5py, numpy as np, torch
        from lava.lib.dl.slayer.block import cuba
        torch.manual_seed(0)
        p = dict(threshold=1.0, current_decay=0.3, voltage_decay=0.1, requires_grad=False)
        nets = {
            "conv": ((2, 5, 6), [cuba.Conv(p, 2, 4, 3, padding=1, weight_scale=3), cuba.Flatten(),
                                 cuba.Dense(p, 120, 7, weight_scale=1), cuba.Recurrent(p, 7, 5, weight_scale=3)]),
            "delay": ((9,), [cuba.Dense(p, 9, 7, weight_scale=4, delay=True), cuba.Dense(p, 7, 5, weight_scale=4)]),
        }
        kept = {}
        with torch.no_grad():
            for name, (shape, blocks) in nets.items():
                x = (torch.rand(2, *shape, 25) < 0.3).float()
                if name == "delay":
                    blocks[0].delay.delay.data = torch.tensor([0, 1, 2, 3, 4, 1.5, 2.5])
                    blocks[0].delay.init = True  # not drawn anew at the first pass
                y = x
                for i, block in enumerate(blocks):
                    y = block(y)
                    kept[f"{name}{i}"] = y.numpy()
                kept[name] = x.numpy()
                with h5py.File(name + ".net", "w") as file:
                    for i, block in enumerate(blocks):
                        block.export_hdf5(file.create_group(f"layer/{i}"))
        np.savez("spikes.npz", **kept)
        print("exported")
    """
    assert run_python(code, tmp_path) == "exported"
    kept = np.load(tmp_path / "spikes.npz")
    for name, layers in (("conv", (0, 2, 3)), ("delay", (0, 1))):
        network = load_net(tmp_path / f"{name}.net", steps=25, input_shape=kept[name].shape[1:-1])
        out = reference(network, np.moveaxis(kept[name], -1, 0).astype(np.int64))
        for depth, (p, layer) in enumerate(zip(network.populations, layers, strict=True), start=1):
            recorded = np.moveaxis(kept[f"{name}{layer}"], -1, 0)  # each layer adds one step
            assert recorded.sum() > 10
            np.testing.assert_array_equal(
                out.spikes[p.name][:-depth].reshape(25 - depth, *recorded.shape[1:]), recorded[depth:], err_msg=p.name
            )
    assert {c.delay for c in network.connections} == {0, 1, 2, 3, 4}
