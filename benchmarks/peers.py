"""784-512-512-10 in snnTorch, 5 % input, 200 steps: the peer that batches. Optional; needs ``pip install snntorch``.

    python benchmarks/peers.py [--repeats 3]

Its neurons are floating-point ``snn.Synaptic`` (current and membrane leak, reset to zero) without gradients, stepped
in Python as its tutorials do. Beside it the fast engine on the same input, in turns; medians. For Lava see sim.py.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from functools import partial

import numpy as np

from lapilli.sim.engine import threads
from lapilli.sim.executors import find
from sim import dense_cuba, in_turns, machine, ratio


def snntorch_steps(x: np.ndarray) -> object:
    """All steps of a batch, int64 [T, B, 784]."""
    import snntorch
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(threads.count())
    sizes = (784, 512, 512, 10)
    layers = [torch.nn.Linear(m, n, bias=False) for m, n in itertools.pairwise(sizes)]
    neurons = [snntorch.Synaptic(alpha=0.75, beta=0.94, reset_mechanism="zero") for _ in layers]
    states = [n.init_synaptic() if hasattr(n, "init_synaptic") else n.reset_mem() for n in neurons]
    spikes = torch.zeros(())
    with torch.inference_mode():
        for frame in torch.from_numpy(x.astype(np.float32)):
            spikes = frame
            for i, (layer, neuron) in enumerate(zip(layers, neurons, strict=True)):
                spikes, *states[i] = neuron(layer(spikes), *states[i])
    return spikes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    print(machine())
    network = dense_cuba()
    x = (np.random.default_rng(1).random((network.steps, 64, 784)) < 0.05).astype(np.int64)
    print(f"{'batch':>6}{'snnTorch, sample-steps/s':>28}{'fast':>14}{'fast is':>12}")
    for batch in (1, 64):
        part = np.ascontiguousarray(x[:, :batch])
        runs = {"fast": partial(find("fast"), network, part), "snntorch": partial(snntorch_steps, part)}
        times = in_turns(runs, repeats)
        speed = {name: network.steps * batch / statistics.median(seconds) for name, seconds in times.items()}
        gain = ratio(times["snntorch"], times["fast"])
        print(f"{batch:>6}{speed['snntorch']:>28,.0f}{speed['fast']:>14,.0f}{gain:>11.1f}x")


if __name__ == "__main__":
    main()
