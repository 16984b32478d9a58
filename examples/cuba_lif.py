"""A dense network of current-based LIF neurons, built by hand and run on every executor.

This is the neuron of Loihi's registers: the current u decays by du/4096 a step, the membrane v by dv/4096, a neuron
spikes where v exceeds the threshold and returns to zero. No training, no torch: populations and connections.

Run it with:  python examples/cuba_lif.py
"""

import numpy as np

import lapilli

rng = np.random.default_rng(7)


def layer(name: str, neurons: int) -> lapilli.Population:
    # Thresholds and biases are in state units: 64 of them (2^6) make one weight unit, as on Loihi.
    return lapilli.Population(name=name, shape=(neurons,), threshold=64 * 500, reset="zero", du=1024, dv=256)


def dense(source: str, target: str, n_in: int, n_out: int) -> lapilli.Connection:
    weight = rng.integers(-60, 70, (n_out, n_in))
    return lapilli.Connection(source=source, target=target, synapse=lapilli.Dense(weight))


network = lapilli.Network(
    name="cuba-lif",
    steps=40,
    input=lapilli.Input(shape=(50,)),  # spikes: 0 or 1
    populations=[layer("hidden", 80), layer("output", 10)],
    connections=[dense("input", "hidden", 50, 80), dense("hidden", "output", 80, 10)],
    readout=lapilli.Readout(population="output"),
)

if __name__ == "__main__":
    x = (rng.random((network.steps, 16, 50)) < 0.05).astype(np.uint8)  # [steps, samples, neurons]
    run = lapilli.simulate(network, x, record={"hidden": ("spikes", "v")})
    print("spikes of each output neuron, sample 0:", run.counts["output"][0])
    print("synaptic operations per sample:", {name: float(ops.mean()) for name, ops in run.synops.items()})
    print("first membrane values of hidden neuron 0:", run.v["hidden"][:5, 0, 0])

    equal = lapilli.verify(network, x, against=("fast", "onnxruntime", "torch"))
    print(equal)

    lapilli.save(network, "cuba_lif.onnx")
    assert lapilli.load("cuba_lif.onnx") == network
