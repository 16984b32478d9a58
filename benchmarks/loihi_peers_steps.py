"""Steps/s of other simulators of Loihi on 784-512-512-10 with 5 % input for 200 steps, one sample (they take no batch).

They need older packages than lapilli, so this runs in an environment of its own, without lapilli:

    python3.10 -m venv peers && peers/bin/pip install brian2-loihi nengo-loihi sanafe 'numpy<1.24'
    peers/bin/python benchmarks/loihi_peers_steps.py [brian2-loihi] [nengo-loihi] [sanafe]

Construction and compilation are left out. Weights are random, and thresholds are such that rates are those of the
network in sim.py, nearly. nengo-loihi: blocks of at most 512 compartments on its emulator, as its builder makes them.
SANA-FE: its Loihi, 512 neurons a core, its "simple" timing model, which is its fastest.
"""

from __future__ import annotations

import sys
import time
from importlib.metadata import version
from typing import Any

import numpy as np

STEPS, SIZES, DENSITY = 200, (784, 512, 512, 10), 0.05


def spikes() -> np.ndarray:
    """The input, bool [steps, neurons]."""
    return np.random.default_rng(1).random((STEPS, SIZES[0])) < DENSITY


def brian2_loihi() -> tuple[float, list[float]]:
    """Seconds, and the spike rate of every layer."""
    from brian2_loihi import (  # pyright: ignore[reportMissingImports]
        LoihiNetwork,
        LoihiNeuronGroup,
        LoihiSpikeGeneratorGroup,
        LoihiSpikeMonitor,
        LoihiSynapses,
    )

    times, indices = np.nonzero(spikes())
    before = LoihiSpikeGeneratorGroup(SIZES[0], indices, times + 1)
    rng = np.random.default_rng(0)
    network, monitors = LoihiNetwork(before), []
    for size in SIZES[1:]:
        layer = LoihiNeuronGroup(size, refractory=1, threshold_v_mant=2200, decay_v=256, decay_I=1024)
        synapses = LoihiSynapses(before, layer, sign_mode=1)
        synapses.connect(True)
        synapses.w = rng.integers(-70, 70, len(synapses.i)) // 2 * 2
        monitors.append(LoihiSpikeMonitor(layer))
        network.add(layer, synapses, monitors[-1])
        before = layer
    network.run(1)
    started = time.perf_counter()
    network.run(STEPS)
    seconds = time.perf_counter() - started
    return seconds, [m.num_spikes / STEPS / n for m, n in zip(monitors, SIZES[1:], strict=True)]


def nengo_loihi() -> tuple[float, list[float]]:
    """Seconds, and the spike rate of every layer."""
    from nengo_loihi.block import Axon, LoihiBlock, Synapse  # pyright: ignore[reportMissingImports]
    from nengo_loihi.builder import Model  # pyright: ignore[reportMissingImports]
    from nengo_loihi.builder.discretize import discretize_model  # pyright: ignore[reportMissingImports]
    from nengo_loihi.emulator import EmulatorInterface  # pyright: ignore[reportMissingImports]
    from nengo_loihi.inputs import SpikeInput  # pyright: ignore[reportMissingImports]
    from nengo_loihi.probe import LoihiProbe  # pyright: ignore[reportMissingImports]

    model, before = Model(), SpikeInput(SIZES[0])
    for step, now in enumerate(spikes()):
        before.add_spikes(step + 1, np.flatnonzero(now), permanent=True)
    model.add_input(before)
    rng, probes, n_before = np.random.default_rng(0), [], SIZES[0]
    for size in SIZES[1:]:
        block = LoihiBlock(size)
        block.compartment.configure_lif(tau_rc=0.016, vth=1.0)
        block.compartment.configure_filter(0.0035)
        model.add_block(block)
        synapse = Synapse(n_before)
        synapse.set_weights(rng.normal(0, 1.8, (n_before, size)))
        block.add_synapse(synapse)
        axon = Axon(n_before)
        axon.target = synapse
        if probes:
            axon.set_compartment_axon_map(np.arange(n_before))
        before.add_axon(axon)
        probes.append(LoihiProbe(target=block, key="spiked"))
        model.add_probe(probes[-1])
        before, n_before = block, size
    discretize_model(model)
    EmulatorInterface.strict = False  # a current that overflows is reported, not refused
    with EmulatorInterface(model) as emulator:
        started = time.perf_counter()
        emulator.run_steps(STEPS)
        seconds = time.perf_counter() - started
        return seconds, [float(np.mean(np.asarray(emulator.collect_probe_output(p)) > 0)) for p in probes]


def sanafe() -> tuple[float, list[float]]:
    """Seconds, and the spike rate of every layer."""
    import sanafe as simulator  # pyright: ignore[reportMissingImports]

    def build() -> Any:
        chip, net = simulator.load_loihi(), simulator.Network()
        cores = [core for tile in chip.tiles for core in tile.cores]
        rng, groups = np.random.default_rng(0), []
        for layer, size in enumerate(SIZES):
            group = net.create_neuron_group(str(layer), size, log_spikes=True)
            for i, neuron in enumerate(group):
                if layer:
                    given = {"threshold": 420.0, "leak_decay": 0.9375}
                    neuron.set_attributes(soma_hw_name="loihi_lif", model_attributes=given)
                else:
                    given = {"spikes": [int(s) for s in spikes()[:, i]]}
                    neuron.set_attributes(soma_hw_name=f"loihi_inputs[{i}]", model_attributes=given)
                neuron.map_to_core(cores[layer])
            if groups:
                weights = [float(w) for w in rng.integers(-70, 70, SIZES[layer - 1] * size)]
                groups[-1].connect_neurons_dense(group, {"weight": weights})
            groups.append(group)
        run = simulator.SpikingChip(chip)
        run.load(net)
        return run

    run = build()
    started = time.perf_counter()
    run.sim(STEPS, timing_model="simple", processing_threads=1)
    seconds = time.perf_counter() - started
    fired = build().sim(STEPS, timing_model="simple", processing_threads=1, spike_trace=True)["spike_trace"]
    counts = [sum(address.group_name == str(layer) for step in fired for address in step) for layer in range(4)]
    return seconds, [count / STEPS / n for count, n in zip(counts[1:], SIZES[1:], strict=True)]


PEERS = {"brian2-loihi": brian2_loihi, "nengo-loihi": nengo_loihi, "sanafe": sanafe}

if __name__ == "__main__":
    for name in sys.argv[1:] or PEERS:
        taken, rates = PEERS[name]()
        shown = " ".join(f"{rate:.3f}" for rate in rates)
        print(f"{name} {version(name)}: {STEPS / taken:,.0f} steps/s, spike rates {shown}")
