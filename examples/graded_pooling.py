"""Graded spikes: sum pooling kept as neurons of its own, and the same network with the pooling merged.

A pooling neuron has no memory (du = dv = 4096). It gets up to four spikes of its window in a step and sends on how many
there were, 1 to 4, in the same step. So what follows it hears exactly what it would hear from the merged convolution of
4x4 taps, with fewer synaptic operations, and at the price of the pooling neurons.

Run it with:  python examples/graded_pooling.py
"""

import numpy as np

import lapilli

rng = np.random.default_rng(7)
kernel = rng.integers(-60, 71, (8, 3, 2, 2))

first = lapilli.Population(name="first", shape=(3, 12, 12), threshold=64 * 160, reset_amount=64 * 160)
pool = lapilli.Population(
    name="pool",
    shape=(3, 6, 6),
    threshold=0,  # sends where at least one spike arrived
    reset="zero",
    dv=4096,
    payload_max=4,
    payload_shift=6,  # floor(v / 2^6): one spike of weight 1 makes 2^6 state units
)
last = lapilli.Population(name="last", shape=(8, 3, 3), threshold=64 * 300, reset_amount=64 * 300)

into_first = lapilli.Connection(
    source="input", target="first", synapse=lapilli.Conv2d(np.array([3, 5, 9]).reshape(3, 1, 1, 1))
)
into_pool = lapilli.Connection(
    source="first", target="pool", synapse=lapilli.Conv2d(np.ones((3, 1, 2, 2)), stride=2, groups=3)
)
pooled = lapilli.Connection(source="pool", target="last", synapse=lapilli.Conv2d(kernel, stride=2))
merged = lapilli.Connection(
    source="first", target="last", synapse=lapilli.Conv2d(np.kron(kernel, np.ones((2, 2))), stride=4)
)


def network(name: str, populations: list, connections: list) -> lapilli.Network:
    return lapilli.Network(
        name=name,
        steps=20,
        input=lapilli.Input(shape=(1, 12, 12), high=15),
        populations=populations,
        connections=connections,
        readout=lapilli.Readout(population="last"),
    )


apart = network("pooling-apart", [first, pool, last], [into_first, into_pool, pooled])
together = network("pooling-merged", [first, last], [into_first, merged])

if __name__ == "__main__":
    x = rng.integers(0, 16, (64, 1, 12, 12))
    runs = [lapilli.simulate(net, x, record={"last": "spikes"}) for net in (apart, together)]
    assert np.array_equal(runs[0].spikes["last"], runs[1].spikes["last"])
    print("spikes of the last layer, equal in both:", runs[0].spike_totals["last"])
    for run in runs:
        print(f"{run.network.name}: {sum(run.synop_totals.values()):,} synaptic operations, spikes {run.spike_totals}")
    print(f"a graded spike carries {runs[0].mean_payloads['pool']:.2f} on average")

    print(lapilli.verify(apart, x[:8], against=("fast", "onnxruntime", "torch")))
