"""NIR from other frameworks behaves as in its framework; the group ``frameworks`` installs them (uv: by default)."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

import lapilli
from lapilli.export.nir.reading import load_nir, nir_in_steps

STEPS, BATCH = 30, 4
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
NMNIST = {"steps": 300, "dt": 1.0, "reset": "zero", "discretization": "euler"}  # r = 1: the file counts in steps


def spikes_of(torch, shape, rate=0.4):
    torch.manual_seed(0)
    return (torch.rand(STEPS, BATCH, *shape) < rate).float()


def stronger(torch, net, factor=3.0):
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                parameter *= factor
    return net


def assert_same(graph, x, expected, **how):
    """Every spike of the last layer; the test says nothing if there are none."""
    real = nir_in_steps(graph, steps=STEPS, **how)
    spikes, _ = real.simulate(x.numpy().astype(np.int64))
    assert 0.01 < expected.mean() < 0.9
    assert np.array_equal(spikes[real.readout], expected)
    load_nir(graph, steps=STEPS, **how)


@pytest.mark.parametrize(
    ("kind", "mechanism", "delay", "reset"),
    [
        ("Leaky", "zero", True, "zero"),
        ("Leaky", "zero", False, "zero"),
        ("Leaky", "subtract", True, "subtract-next"),
        ("Synaptic", "zero", False, "zero"),
        ("Synaptic", "subtract", True, "subtract-next"),
        ("RLeaky", "subtract", True, "subtract-next"),
        ("RSynaptic", "subtract", True, "subtract-next"),
    ],
)
def test_snntorch(kind, mechanism, delay, reset):
    torch, snn = pytest.importorskip("torch"), pytest.importorskip("snntorch")
    from snntorch.export_nir import export_to_nir

    def neuron(n):
        values = {"beta": torch.full((n,), 0.9), "threshold": torch.full((n,), 0.7)}
        if "Synaptic" in kind:
            values["alpha"] = torch.full((n,), 0.8)
        if kind[0] == "R":
            values["linear_features"] = n
        return getattr(snn, kind)(init_hidden=True, reset_mechanism=mechanism, reset_delay=delay, **values)

    x = spikes_of(torch, (12,))
    net = stronger(torch, torch.nn.Sequential(torch.nn.Linear(12, 9), neuron(9), torch.nn.Linear(9, 5), neuron(5)), 2.0)
    graph = export_to_nir(net, x[0], ignore_dims=[0])
    for module in net:
        for state in ("mem", "syn", "spk"):
            if hasattr(module, state):
                setattr(module, state, torch.zeros_like(getattr(module, state)))
    with torch.no_grad():
        expected = torch.stack([net(frame) for frame in x]).numpy()
    assert_same(graph, x, expected, dt=1e-4, reset=reset, discretization="euler")


@pytest.mark.parametrize(("kind", "dt"), [("LIFBoxCell", 1e-6), ("IAFCell", 1.0)])
def test_norse(kind, dt):
    torch, norse = pytest.importorskip("torch"), pytest.importorskip("norse.torch")
    from norse.torch.utils.export_nir import to_nir

    def neuron(n):
        if kind == "IAFCell":
            return norse.IAFCell(norse.IAFParameters(v_th=torch.full((n,), 0.7)))
        values = {"tau_mem_inv": torch.full((n,), 200.0), "v_th": torch.full((n,), 0.2), "v_leak": torch.zeros(n)}
        return norse.LIFBoxCell(norse.LIFBoxParameters(**values))

    x = spikes_of(torch, (12,))
    net = norse.SequentialState(torch.nn.Linear(12, 9), neuron(9), torch.nn.Linear(9, 5), neuron(5))
    stronger(torch, net)
    graph = to_nir(net, x[0, 0], dt=1e-3)  # Norse 1.1 writes dt / tau_inv for tau: dt squared where 1e-3 is meant
    state, out = None, []
    with torch.no_grad():
        for frame in x:
            spikes, state = net(frame, state)
            out.append(spikes)
    assert_same(graph, x, torch.stack(out).numpy(), dt=dt, reset="zero", discretization="euler")


@pytest.mark.parametrize("kind", ["IAFSqueeze", "LIFSqueeze", "convolutions"])
def test_sinabs(kind):
    torch, layers = pytest.importorskip("torch"), pytest.importorskip("sinabs.layers")
    from sinabs.activation import SingleSpike
    from sinabs.nir import to_nir

    def neuron(n):
        common = {"batch_size": BATCH, "spike_fn": SingleSpike, "min_v_mem": None}
        if kind == "LIFSqueeze":
            return layers.LIFSqueeze(tau_mem=torch.full((n,), 5.0), spike_threshold=torch.full((n,), 0.3), **common)
        return layers.IAFSqueeze(spike_threshold=torch.tensor(0.7), **common)

    nn = torch.nn
    if kind == "convolutions":
        shape, net = (
            (2, 8, 8),
            nn.Sequential(
                nn.Conv2d(2, 3, 3, padding=1),
                neuron(0),
                layers.SumPool2d(2),
                nn.Conv2d(3, 4, 3),
                neuron(0),
                nn.Flatten(),
                nn.Linear(16, 5),
                neuron(0),
            ),
        )
    else:
        shape, net = (12,), nn.Sequential(nn.Linear(12, 9), neuron(9), nn.Linear(9, 5), neuron(5))
    x = spikes_of(torch, shape)
    if kind != "convolutions":
        stronger(torch, net)
    flat = x.transpose(0, 1).reshape(-1, *shape)  # Sinabs folds time into the batch, samples outermost
    with torch.no_grad():
        expected = net(flat).reshape(BATCH, STEPS, -1).transpose(0, 1).numpy()
    assert_same(to_nir(net, flat), x, expected, dt=1.0, reset="subtract", discretization="exponential")


@pytest.mark.parametrize("kind", ["IFNode", "LIFNode", "convolutions"])
def test_spikingjelly(kind):
    torch = pytest.importorskip("torch")
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import layer, neuron
    from spikingjelly.activation_based.nir_exchange import export_to_nir

    many = {"step_mode": "m"}

    def fire():
        return neuron.LIFNode(tau=5.0, v_threshold=0.3, **many) if kind == "LIFNode" else neuron.IFNode(0.7, **many)

    if kind == "convolutions":
        shape, parts = (
            (2, 8, 8),
            [layer.Conv2d(2, 3, 3, padding=1, **many), fire(), layer.AvgPool2d(2, 2, **many)],
        )
        parts += [layer.Conv2d(3, 4, 3, **many), fire(), layer.Flatten(**many), layer.Linear(16, 5, **many), fire()]
    else:
        shape, parts = (12,), [layer.Linear(12, 9, **many), fire(), layer.Linear(9, 5, **many), fire()]
    x = spikes_of(torch, shape)
    net = stronger(torch, torch.nn.Sequential(*parts))
    graph = export_to_nir(net, x, dt=1e-4)
    with torch.no_grad():
        expected = net(x).numpy()
    assert_same(graph, x, expected, dt=1e-4, reset="zero", discretization="euler")


def nmnist_test_recordings(per_digit):
    """Frames of 1 ms, 0 or 1: int64 [300, n, 2, 34, 34], and the digits."""
    archive = SHARED / "nmnist-small.tar.xz"
    if not archive.exists():
        pytest.skip(f"needs the N-MNIST recordings in {archive.name}, which the repository does not carry")
    recordings: list[tuple[int, np.ndarray]] = []
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = Path(member.name).parts
            if member.isfile() and parts[-3:-2] == ("Test",):
                file = tar.extractfile(member)
                assert file is not None
                recordings.append(
                    (int(parts[-2]), np.frombuffer(file.read(), np.uint8).reshape(-1, 5).astype(np.int64))
                )
    taken = [r for digit in range(10) for r in [r for r in recordings if r[0] == digit][:per_digit]]
    frames = np.zeros((300, len(taken), 2, 34, 34), np.int64)
    for i, (_, event) in enumerate(taken):
        x, y, polarity = event[:, 0], event[:, 1], event[:, 2] >> 7
        millisecond = (((event[:, 2] & 127) << 16) | (event[:, 3] << 8) | event[:, 4]) // 1000
        kept = millisecond < 300
        frames[millisecond[kept], i, polarity[kept], y[kept], x[kept]] = 1
    return frames, np.array([digit for digit, _ in taken])


@pytest.mark.parametrize("per_digit", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_the_nir_papers_network_keeps_its_accuracy_in_8_bits(per_digit):
    x, y = nmnist_test_recordings(per_digit)
    path = SHARED / "reference" / "nmnist-cnn.nir"
    network = load_nir(path, **NMNIST)
    run = lapilli.simulate(network, x, engine="fast")
    _, real = nir_in_steps(path, **NMNIST).simulate(x)
    correct = int((real.argmax(1) == y).sum())
    assert correct >= 0.95 * len(y)
    assert abs(int((run.scores.argmax(1) == y).sum()) - correct) <= 1
    assert not run.overflows
