"""Steps/s of brian2-loihi on 784-512-512-10 with 5 % input for 200 steps, one sample (it takes no batch).

It needs older packages than lapilli, so this runs in an environment of its own, without lapilli:

    python3.10 -m venv peers && peers/bin/pip install brian2-loihi 'numpy<1.24'
    peers/bin/python benchmarks/brian2_loihi_steps.py

Construction and compilation are left out. Weights are random, and the threshold is such that rates are those of the
network in sim.py, nearly.
"""

from __future__ import annotations

import time
from importlib.metadata import version

import numpy as np

STEPS, SIZES, DENSITY = 200, (784, 512, 512, 10), 0.05


def spikes() -> np.ndarray:
    return np.random.default_rng(1).random((STEPS, SIZES[0])) < DENSITY


def brian2_loihi() -> tuple[float, list[float]]:
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


if __name__ == "__main__":
    taken, rates = brian2_loihi()
    shown = " ".join(f"{rate:.3f}" for rate in rates)
    print(f"brian2-loihi {version('brian2-loihi')}: {STEPS / taken:,.0f} steps/s, spike rates {shown}")
