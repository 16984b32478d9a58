"""Networks of snnTorch and SpikingJelly from memory: every spike of the framework's own step loop, or a clear error.

The group ``frameworks`` installs both (uv: by default).
"""

from __future__ import annotations

from functools import partial
from importlib import import_module

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import lapilli
from lapilli.errors import UnsupportedError
from lapilli.export.folding import Folded
from lapilli.export.nir.real_network import RealNetwork
from lapilli.export.quantization import QuantizeConfig, quantize

snn = pytest.importorskip("snntorch")
STEPS, BATCH = 20, 6
EXECUTORS = ("fast", "onnxruntime", "torch")


def double(membrane):
    """snnTorch's spikes are float32 whatever the membrane is; in float64 its own modules could not take them."""
    return (membrane > 0).to(membrane)


Leaky, Lapicque, Synaptic, RLeaky, RSynaptic = (
    partial(getattr(snn, kind), spike_grad=double) for kind in ("Leaky", "Lapicque", "Synaptic", "RLeaky", "RSynaptic")
)


def images(*shape, seed=0):
    return torch.rand(BATCH, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def frames(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(STEPS, BATCH, *shape, dtype=torch.float64, generator=generator) < 0.3).double()


def randomized(model, seed=0, spread=3.0):
    """In float64 and eval mode, with random weights and statistics, so that no membrane meets its threshold."""
    torch.manual_seed(seed)
    model.double().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.1, 1.0)
                module.weight.uniform_(0.5, 2.0)
                module.bias.normal_(0.1, 0.3)
            elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
                module.weight.normal_(0.02, spread / module.weight[0].numel() ** 0.5)
                if module.bias is not None:
                    module.bias.normal_(0.05, 0.1)
    return model


def at_rest(model):
    for module in model.modules():
        if type(module).__module__.startswith("snntorch"):
            for state in ("mem", "syn", "spk"):
                if hasattr(module, state):
                    setattr(module, state, torch.zeros(0))
        elif hasattr(module, "reset"):
            module.reset()
    return model


def every_population(model, x):
    """Spikes of each neuron module by path, from the framework's own loop over single steps: ``[T, B, ...]``."""
    from snntorch import SpikingNeuron

    seen: dict[str, list[torch.Tensor]] = {}
    hooks = []
    for path, module in model.named_modules():
        if isinstance(module, SpikingNeuron) or type(module).__module__.startswith(
            "spikingjelly.activation_based.neuron"
        ):

            def record(module, args, result, path=path):
                spikes = result[0] if isinstance(result, tuple) else result
                seen.setdefault(path, []).append(spikes.detach().clone())

            hooks.append(module.register_forward_hook(record))
    at_rest(model)
    with torch.no_grad():
        for step in range(STEPS):
            model(x[step] if x.ndim > 2 and len(x) == STEPS else x)
    for hook in hooks:
        hook.remove()
    return {path: torch.stack(spikes).numpy() for path, spikes in seen.items()}


def assert_same(model, x, shape, **how):
    """All spikes of all neuron modules, which are in the order of the populations."""
    made = lapilli.from_torch(model, input_shape=shape, steps=STEPS, **how)
    wanted = every_population(model, x)
    got = made.simulate(x.numpy().reshape(*x.shape[: x.ndim - len(shape)], *made.input_shape))
    spikes = got.spikes if isinstance(made, Folded) else got[0]
    pools = {p.name for p in made.layers if p.beta == 0 and p.threshold == 0.5} if isinstance(made, Folded) else set()
    ours = [name for name in spikes if name not in pools and not name.endswith(".bias")]
    assert len(ours) == len(wanted)
    for name, (path, theirs) in zip(ours, wanted.items(), strict=True):
        assert 0.01 < (theirs != 0).mean() < 0.95, path
        np.testing.assert_array_equal(spikes[name].reshape(theirs.shape), theirs != 0, path)
    return made


# snnTorch


@pytest.mark.parametrize(
    ("neuron", "kind"),
    [
        (partial(Leaky, beta=0.9, threshold=0.6), Folded),
        (partial(Leaky, beta=0.9, threshold=0.6, reset_mechanism="zero"), Folded),
        (partial(Leaky, beta=0.8, reset_mechanism="zero", reset_delay=False), Folded),
        (partial(Leaky, beta=1.0), Folded),
        (partial(Leaky, beta=0.5, graded_spikes_factor=2.5), Folded),
        (partial(Lapicque, R=2.0, C=3.0, time_step=0.5, threshold=0.4), Folded),
        (partial(Lapicque, beta=0.7, threshold=0.3), Folded),
        (partial(Synaptic, alpha=0.6, beta=0.9, threshold=2.0), RealNetwork),
        (partial(Synaptic, alpha=0.6, beta=0.9, threshold=2.0, reset_mechanism="zero", reset_delay=False), RealNetwork),
    ],
)
def test_snntorch_neurons(neuron, kind):
    layers = [nn.Linear(12, 16), neuron(init_hidden=True), nn.Linear(16, 5), neuron(init_hidden=True, output=True)]
    made = assert_same(randomized(nn.Sequential(*layers)), frames(12), (12,), read="spikes")
    assert isinstance(made, kind)


@pytest.mark.parametrize(
    "neuron",
    [
        partial(RLeaky, beta=0.8, threshold=0.9),
        partial(RLeaky, beta=0.8, reset_mechanism="zero", reset_delay=False),
        partial(RSynaptic, alpha=0.5, beta=0.8, threshold=0.9),
    ],
)
def test_snntorch_recurrence(neuron):
    x = frames(12)
    own = {"init_hidden": True}
    layers = [
        nn.Linear(12, 9),
        neuron(linear_features=9, **own),
        nn.Linear(9, 5),
        neuron(all_to_all=False, V=0.4, **own),
    ]
    assert_same(randomized(nn.Sequential(*layers), spread=1.0), x, (12,))
    image = [
        nn.Conv2d(1, 3, 3, padding=1), neuron(conv2d_channels=3, kernel_size=3, **own),
        nn.Flatten(), nn.Linear(108, 5), neuron(all_to_all=False, V=torch.rand(5) - 0.5, **own),
    ]  # fmt: skip
    assert_same(randomized(nn.Sequential(*image), spread=1.0), frames(1, 6, 6), (1, 6, 6))


def test_thresholds_for_each_neuron_or_channel():
    layers = [
        nn.Conv2d(2, 4, 3), Leaky(0.9, threshold=torch.rand(4, 1, 1) + 0.3, init_hidden=True),
        nn.Flatten(), nn.Linear(64, 7), Leaky(torch.full((7,), 0.8), threshold=torch.rand(7) + 0.3, init_hidden=True),
        nn.Linear(7, 6, bias=False), RLeaky(0.9, threshold=torch.rand(6) + 0.3, linear_features=6, init_hidden=True),
    ]  # fmt: skip
    torch.manual_seed(0)
    assert_same(randomized(nn.Sequential(*layers)), frames(2, 6, 6), (2, 6, 6))


class Residual(nn.Module):
    """Batch norm, both poolings, a shortcut, a sum of spikes, and functions instead of modules."""

    def __init__(self, neuron):
        super().__init__()
        self.stem, self.stem_norm, self.stem_fire = nn.Conv2d(1, 4, 3, padding="same"), nn.BatchNorm2d(4), neuron()
        self.a, self.a_norm, self.a_fire = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), neuron()
        self.pool, self.fc, self.drop, self.fire = nn.MaxPool2d(2), nn.Linear(36, 5), nn.Dropout(0.5), neuron()

    def forward(self, x):
        first = self.stem_fire(self.stem_norm(self.stem(x)))
        second = self.a_fire(self.a_norm(self.a(first)) + first)
        x = nn.functional.avg_pool2d(self.pool(second), 2, stride=1)
        x = nn.functional.dropout(x, 0.3, self.training)
        return self.fire(self.drop(self.fc(x.view(x.size(0), -1))))


@pytest.mark.parametrize("x", [images(1, 8, 8), frames(1, 8, 8)], ids=["one image", "frames"])
def test_residual_networks_and_poolings(x):
    neuron = partial(Leaky, beta=0.8, threshold=0.5, init_hidden=True)
    made = assert_same(randomized(Residual(neuron)), x, (1, 8, 8))
    assert [layer.name for layer in made.layers] == ["stem_fire", "a_fire", "pool", "fire"]


def test_sequences():
    neuron = partial(Leaky, beta=0.8, threshold=0.5, init_hidden=True)
    layers = [
        nn.Conv1d(2, 4, 3, padding=1), nn.BatchNorm1d(4), neuron(), nn.MaxPool1d(2),
        nn.Conv1d(4, 4, 2, stride=2), neuron(),
        nn.AvgPool1d(2), nn.Flatten(), nn.Linear(8, 5), nn.BatchNorm1d(5), neuron(),
    ]  # fmt: skip
    made = assert_same(randomized(nn.Sequential(*layers)), frames(2, 16), (2, 16))
    assert made.input_shape == (2, 1, 16)


class Loop(nn.Module):
    """As in snnTorch's tutorials: the forward pass has the loop and hands the states on."""

    def __init__(self, steps=STEPS, by_frames=False, spoil=lambda step, spikes, membrane: (spikes, membrane)):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(12, 16), Leaky(0.9, threshold=0.6)
        self.fc2, self.lif2 = nn.Linear(16, 5), Leaky(0.8, threshold=0.6)
        self.steps, self.by_frames, self.spoil = steps, by_frames, spoil

    def forward(self, x, mask=None):
        assert mask is None
        first, second = self.lif1.init_leaky(), self.lif2.init_leaky()
        spikes, membranes = [], []
        for step in range(self.steps):
            fired, first = self.lif1(self.fc1(x[step] if self.by_frames else x), first)
            fired, first = self.spoil(step, fired, first)
            fired, second = self.lif2(self.fc2(fired), mem=second)
            spikes.append(fired)
            membranes.append(second)
        return torch.stack(spikes, dim=0), torch.stack(membranes, dim=0)


@pytest.mark.parametrize("by_frames", [False, True])
def test_a_loop_over_the_steps_is_one_network(by_frames):
    model = randomized(Loop(by_frames=by_frames))
    x = frames(12) if by_frames else images(12)
    made = lapilli.from_torch(model, input_shape=(12,), read="spikes", labels=list("abcde"))
    with torch.no_grad():
        expected = model(x)[0].numpy()
    assert (made.steps, made.labels) == (STEPS, tuple("abcde"))
    run = made.simulate(x.numpy())
    assert 0.01 < expected.mean() < 0.9
    np.testing.assert_array_equal(run.spikes["lif2"], expected)
    np.testing.assert_array_equal(run.scores, expected.sum(0))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (Loop(spoil=lambda step, s, m: (s, m * 1.0)), "operation 'mul'"),
        (Loop(spoil=lambda step, s, m: (s, torch.zeros(0) if step == 3 else m)), "'lif1'.*gets as mem in step 4"),
        (Loop(spoil=lambda step, s, m: (s if step else s + s, m)), "'lif2'.*something else in step 1"),
        (Loop(spoil=lambda step, s, m: (m, m)), "'fc2'.*gets the mem of 'lif1'"),
    ],
)
def test_steps_that_differ_are_refused(model, says):
    with pytest.raises(UnsupportedError, match=says):
        lapilli.from_torch(model, input_shape=(12,), read="spikes")


def test_a_membrane_is_read_where_it_is_not_reset():
    layers = [nn.Linear(12, 16), Leaky(0.9, init_hidden=True), nn.Linear(16, 5)]
    model = nn.Sequential(*layers, Leaky(0.8, init_hidden=True, output=True, reset_mechanism="none"))
    randomized(model)
    made = lapilli.from_torch(model, input_shape=(12,), steps=STEPS, read="membrane")
    x = images(12)
    at_rest(model)
    with torch.no_grad():
        for _ in range(STEPS):
            _, membrane = model(x)
    np.testing.assert_allclose(made.simulate(x.numpy()).scores, membrane.numpy(), rtol=1e-12)
    network = quantize(made, QuantizeConfig(input_range=(0, 1)))
    assert (network.readout.kind, network.population("leaky3").dv) == ("membrane", round(4096 * 0.2))


def test_currents_of_a_last_layer_without_neurons_are_added_up():
    model = randomized(nn.Sequential(nn.Linear(12, 16), Leaky(0.9, init_hidden=True), nn.Linear(16, 5)))
    with pytest.raises(UnsupportedError, match="read='current'"):
        lapilli.from_torch(model, input_shape=(12,), steps=STEPS)
    made = lapilli.from_torch(model, input_shape=(12,), steps=STEPS, read="current")
    x = images(12)
    at_rest(model)
    with torch.no_grad():
        total = sum(model(x) for _ in range(STEPS))
    np.testing.assert_allclose(made.simulate(x.numpy()).scores, total.numpy(), rtol=1e-12)


@pytest.mark.parametrize("reach", [1.0, 6.0])
def test_why_reset_delay_false_is_refused_with_subtract(reach):
    """A membrane above twice the threshold is still above it after its reset, and is then compared with twice it."""
    neuron = Leaky(0.9, reset_delay=False)
    current = reach * torch.rand(200, 50, dtype=torch.float64) - 0.3
    theirs, membrane = [], torch.zeros(50, dtype=torch.float64)
    ours, formula = [], []
    v = w = np.zeros(50)
    for x in current:
        spike, membrane = neuron(x, membrane)
        theirs.append(spike.detach().numpy())
        still = w > 1
        w = 0.9 * w + x.numpy()
        formula.append(w - still > 1)
        w = w - formula[-1]
        v = 0.9 * v + x.numpy()
        ours.append(v > 1)
        v = v - ours[-1]
    assert np.array_equal(theirs, formula)
    assert np.array_equal(theirs, ours) == (reach == 1.0)


@pytest.mark.parametrize(
    ("neuron", "says"),
    [
        (partial(Leaky, 0.9, reset_delay=False), "module '1' .Leaky.: reset_delay=False"),
        (partial(Leaky, 0.9, inhibition=True), "inhibition"),
        (partial(Leaky, 0.9, state_quant=lambda x: x.round()), "state_quant"),
        (partial(Leaky, 0.0), "beta=0"),
        (partial(Leaky, 0.9, threshold=-0.5), "threshold is -0.5"),
        (partial(Leaky, torch.tensor([0.9, 0.8, 0.7])), "beta differs"),
        (partial(Leaky, 0.9, threshold=torch.rand(4) + 0.1), "thresholds of shape .4,. do not fit .3,."),
        (partial(snn.Leaky, 0.9, spike_grad=torch.sigmoid), "surrogate"),
        (partial(Leaky, 0.9, reset_mechanism="none"), "never reset"),
        (partial(Lapicque, 0.9, reset_mechanism="zero"), "drops the input of the step after"),
        (partial(Synaptic, 0.5, 0.9, reset_mechanism="zero"), "drops the input of the step after"),
        (partial(snn.Alpha, 0.5, 0.4), "module '1' .Alpha.: has no counterpart"),
        (lambda **_: nn.ReLU(), "module '1' .ReLU.: has no exact counterpart"),
        (lambda **_: snn.Leaky(0.9), "what the model returns: has spikes and membranes"),
    ],
)
def test_what_no_description_does_is_named(neuron, says):
    with pytest.raises(UnsupportedError, match=says):
        lapilli.from_torch(nn.Sequential(nn.Linear(4, 3), neuron(init_hidden=True)), input_shape=(4,), steps=5)


class Changed(snn.Leaky):
    """Its own forward pass: more than its attributes say."""

    def forward(self, x, mem=None):
        return super().forward(2 * x, mem)


class Bigger(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked():
    layer = nn.Linear(4, 3)
    layer.register_forward_hook(lambda module, args, result: -result)
    return layer


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ([Bigger(4, 3), Leaky(0.9, init_hidden=True)], "'0' .Bigger.: has no exact counterpart"),
        ([hooked(), Leaky(0.9, init_hidden=True)], "hooks"),
        ([nn.Linear(4, 3), snn.Leaky(0.9), nn.Linear(3, 3)], "'2' .Linear.: gets spikes and a state"),
        ([nn.Linear(4, 3), lapilli.train.IFNeuron(4)], "lapilli's own"),
        ([nn.Linear(4, 3), nn.Linear(3, 3), Leaky(0.9, init_hidden=True)], "'1'.*weights follow weights"),
        ([nn.MaxPool1d(2), nn.Linear(2, 3), Leaky(0.9, init_hidden=True)], "takes the largest of the input"),
    ],
)
def test_layers_that_change_values_unseen_are_refused(layers, says):
    with pytest.raises(UnsupportedError, match=says):
        lapilli.from_torch(nn.Sequential(*layers), input_shape=(4,), steps=5)


def test_neurons_with_another_forward_pass_are_found_out(monkeypatch):
    model = nn.Sequential(nn.Linear(4, 3), Changed(0.9, init_hidden=True))
    with pytest.raises(UnsupportedError, match=r"module '1' \(Changed\): has no counterpart"):
        lapilli.from_torch(model, input_shape=(4,), steps=5)
    model = nn.Sequential(nn.Linear(4, 3), Leaky(0.9, init_hidden=True))
    lapilli.from_torch(model, input_shape=(4,), steps=5)
    forward = snn.Leaky.forward
    monkeypatch.setattr(snn.Leaky, "forward", lambda self, x, mem=None: forward(self, 2 * x, mem))
    with pytest.raises(UnsupportedError, match=r"module '1' \(Leaky\): does not spike as lapilli expects of snntorch"):
        lapilli.from_torch(model, input_shape=(4,), steps=5)


# SpikingJelly


@pytest.fixture(scope="module")
def jelly():
    pytest.importorskip("spikingjelly")  # Python 3.11 and later
    from spikingjelly import activation_based

    for name in ("functional", "layer", "neuron", "surrogate"):
        import_module(f"spikingjelly.activation_based.{name}")
    return activation_based


JELLY_NEURONS = {
    "IF": lambda n: n.IFNode(0.7),
    "IF, soft": lambda n: n.IFNode(0.7, v_reset=None),
    "IF, reset below zero": lambda n: n.IFNode(0.7, v_reset=-0.3),
    "LIF": lambda n: n.LIFNode(3.0, v_threshold=0.3),
    "LIF, soft": lambda n: n.LIFNode(3.0, v_threshold=0.3, v_reset=None),
    "LIF, input not decayed": lambda n: n.LIFNode(3.0, decay_input=False, v_threshold=0.6, v_reset=-0.2),
    "LIF, soft, input not decayed": lambda n: n.LIFNode(3.0, decay_input=False, v_reset=None),
    "parametric LIF": lambda n: n.ParametricLIFNode(2.5, v_threshold=0.3),
    "parametric LIF, soft": lambda n: n.ParametricLIFNode(2.5, decay_input=False, v_reset=None),
    "simple": lambda n: n.SimpleLIFNode(2.0, decay_input=True, v_threshold=0.4),
}


@pytest.mark.parametrize("neuron", JELLY_NEURONS.values(), ids=JELLY_NEURONS.keys())
def test_spikingjelly_neurons(jelly, neuron):
    layers = [nn.Linear(12, 16), neuron(jelly.neuron), nn.Linear(16, 5), neuron(jelly.neuron)]
    assert_same(randomized(nn.Sequential(*layers)), frames(12), (12,))


class Classifier(nn.Module):
    """As in SpikingJelly's tutorials: all steps at once, the image repeated inside, mean rates returned."""

    def __init__(self, jelly, steps, width=4):
        super().__init__()
        layer, neuron = jelly.layer, jelly.neuron
        self.steps = steps
        self.features = nn.Sequential(
            layer.Conv2d(1, width, 3, padding=1, bias=False), layer.BatchNorm2d(width), neuron.IFNode(v_reset=None),
            layer.MaxPool2d(2, 2), layer.Conv2d(width, width, 3, padding=1),
            layer.ThresholdDependentBatchNorm2d(1.0, 1.0, width), neuron.LIFNode(2.0, v_threshold=0.5),
            layer.AvgPool2d(2), layer.Dropout(0.1), layer.Flatten(),
        )  # fmt: skip
        self.classes = nn.Sequential(layer.Linear(4 * width, 10), neuron.ParametricLIFNode(2.0, v_threshold=0.3))
        jelly.functional.set_step_mode(self, "m")

    def forward(self, x):
        return self.classes(self.features(x.unsqueeze(0).repeat(self.steps, 1, 1, 1, 1))).mean(0)


def test_spikingjelly_with_all_steps_at_once(jelly):
    model = randomized(Classifier(jelly, STEPS))
    made = lapilli.from_torch(model, input_shape=(1, 8, 8))
    x = images(1, 8, 8)
    with torch.no_grad():
        rates = model(x).numpy()
    assert made.steps == STEPS
    assert 0.01 < rates.mean() < 0.9
    np.testing.assert_array_equal(made.simulate(x.numpy()).scores, np.rint(rates * STEPS))


def test_spikingjelly_containers(jelly):
    layer, neuron = jelly.layer, jelly.neuron
    model = nn.Sequential(
        layer.SeqToANNContainer(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)),
        layer.MultiStepContainer(nn.Identity(), neuron.IFNode(0.6)),
        layer.StepModeContainer(False, "m", nn.Flatten()),
        nn.Linear(64, 6),
        neuron.LIFNode(2.0, v_threshold=0.4, step_mode="m"),
    )
    x = frames(2, 6, 6)
    made = lapilli.from_torch(randomized(model), input_shape=(2, 6, 6), steps=STEPS)
    with torch.no_grad():
        expected = model(x).numpy()
    assert 0.01 < expected.mean() < 0.9
    np.testing.assert_array_equal(made.simulate(x.numpy()).spikes["lifnode4"], expected)


class Accumulating(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        total = 0
        for _ in range(STEPS):
            total += self.net(x)
        return total / STEPS


def test_rates_added_up_in_a_loop(jelly):
    first, last = jelly.neuron.LIFNode(2.0, v_threshold=0.3), jelly.neuron.LIFNode(3.0, v_threshold=0.2)
    model = randomized(Accumulating(nn.Sequential(nn.Flatten(), nn.Linear(16, 12), first, nn.Linear(12, 5), last)))
    made = lapilli.from_torch(model, input_shape=(1, 4, 4))
    x = images(1, 4, 4)
    with torch.no_grad():
        rates = model(x).numpy()
    assert 0.01 < rates.mean() < 0.9
    np.testing.assert_array_equal(made.simulate(x.numpy()).scores, np.rint(rates * STEPS))


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        (lambda j: [nn.Linear(4, 3), j.neuron.KLIFNode()], "'1' .KLIFNode.: has no counterpart"),
        (
            lambda j: [nn.Linear(4, 3), j.neuron.IFNode(surrogate_function=j.surrogate.ATan(spiking=False))],
            "spiking=Tr",
        ),
        (lambda j: [nn.Linear(4, 3), j.neuron.IFNode(step_mode="m"), j.neuron.IFNode()], "'2'.*step_mode 's' and gets"),
        (
            lambda j: [j.layer.Flatten(), nn.Linear(4, 3), j.neuron.IFNode(step_mode="m")],
            "'0' .Flatten.: flattens axes",
        ),
        (lambda j: [nn.BatchNorm1d(4), nn.Linear(4, 3), j.neuron.IFNode(step_mode="m")], "'0'.*axis of steps"),
        (
            lambda j: [j.layer.SeqToANNContainer(nn.Linear(4, 3), j.neuron.IFNode())],
            "'0.1' .IFNode.*MultiStepContainer",
        ),
        (lambda j: [nn.Linear(4, 20), j.neuron.IFNode(), j.layer.VotingLayer(10)], "'2' .VotingLayer.: has no exact"),
    ],
)
def test_what_of_spikingjelly_is_refused(jelly, layers, says):
    with pytest.raises(UnsupportedError, match=says):
        lapilli.from_torch(nn.Sequential(*layers(jelly)), input_shape=(4,), steps=5)


# Trained networks, from the framework to the integers


def digits():
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    x, y = torch.tensor(images[order] / 16.0, dtype=torch.float32), torch.tensor(labels[order])
    return x[:1400], y[:1400], x[1400:], y[1400:]


def trained(model, scores, *, epochs, shape, reset=lambda: None):
    x, y, *_ = digits()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for epoch in range(epochs):
        for rows in torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch)).split(100):
            loss = nn.functional.cross_entropy(scores(model(x[rows].reshape(-1, *shape))), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            reset()
    return model.eval()


def assert_deploys(made, expected, shape, x, y):
    """Equal spikes in float64; integers of every executor are equal, and classify about as well."""
    x = x.numpy().reshape(-1, *shape)
    run = made.simulate(x.astype(np.float64))
    np.testing.assert_array_equal(run.scores, expected)
    right = (expected.argmax(1) == y.numpy()).mean()
    assert right > 0.75
    network = quantize(made, QuantizeConfig(input_levels=16, input_range=(0, 1)))
    integers = lapilli.simulate(network, np.rint(16 * x).astype(np.int64))
    assert abs((integers.scores.argmax(1) == y.numpy()).mean() - right) < 0.03
    assert lapilli.verify(network, np.rint(16 * x[:8]).astype(np.int64), against=EXECUTORS).equal
    return network


def test_a_trained_network_of_snntorch(tmp_path):
    torch.manual_seed(0)

    class Net(Loop):
        def __init__(self):
            super().__init__(steps=10)
            self.fc1, self.fc2 = nn.Linear(64, 48), nn.Linear(48, 10)
            self.lif1, self.lif2 = snn.Leaky(0.9, learn_beta=True), snn.Leaky(0.9, learn_threshold=True)

    model = trained(Net(), lambda out: out[0].sum(0), epochs=4, shape=(64,))
    _, _, x, y = digits()
    made = lapilli.from_torch(model, input_shape=(64,), read="spikes", name="digits")
    for neurons in (model.lif1, model.lif2):
        neurons.spike_grad = double
    with torch.no_grad():
        spikes, _ = model.double()(x.double())
    network = assert_deploys(made, spikes.sum(0).numpy(), (64,), x, y)
    path = tmp_path / "digits.onnx"
    lapilli.save(network, path)
    assert lapilli.load(path) == network


def test_a_trained_network_of_spikingjelly(jelly):
    torch.manual_seed(0)
    model = Classifier(jelly, 6, width=12)
    reset = partial(jelly.functional.reset_net, model)
    trained(model, lambda rates: 5 * rates, epochs=5, shape=(1, 8, 8), reset=reset)
    _, _, x, y = digits()
    made = lapilli.from_torch(model, input_shape=(1, 8, 8))
    reset()
    with torch.no_grad():
        rates = model.double()(x.double().reshape(-1, 1, 8, 8)).numpy()
    assert_deploys(made, np.rint(6 * rates), (1, 8, 8), x, y)


def test_currents_and_recurrence_in_integers():
    hidden = {"init_hidden": True}
    layers = [
        nn.Linear(12, 16),
        Synaptic(0.5, 0.9, **hidden),
        nn.Linear(16, 6),
        RLeaky(0.9, linear_features=6, **hidden),
    ]
    made = lapilli.from_torch(randomized(nn.Sequential(*layers)), input_shape=(12,), steps=STEPS, labels=list("abcdef"))
    network = quantize(made, QuantizeConfig())
    x = frames(12).numpy().astype(np.int64)
    spikes, _ = made.simulate(x)
    run = lapilli.simulate(network, x, record=dict.fromkeys(("synaptic1", "rleaky3"), ("spikes",)))
    assert lapilli.verify(network, x, against=EXECUTORS[:2]).equal  # torch runs networks without cycles only
    assert network.labels == tuple("abcdef")
    assert (run.spikes["synaptic1"] == spikes["synaptic1"]).mean() > 0.97
