"""The networks that the benchmarks run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lapilli.network import INPUT, Connection, Conv2d, Dense, Input, Network, Population, Readout, Scale, Synapse
from lapilli.sim.engine.batched import fast


def preact_resnet18(steps: int = 20, width: int = 64, density: float = 0.09, seed: int = 0) -> Network:
    """PreAct-ResNet-18 for CIFAR as DSR trains it: soft-reset IF neurons, direct coding, random 8-bit weights.

    Every population's threshold is set so that its mean density on one image is ``density``, as in trained networks.
    """
    rng = np.random.default_rng(seed)
    net_input = Input(shape=(3, 32, 32), low=-127, high=127, scale=np.array([2 / 127]))
    populations: list[Population] = []
    connections: list[Connection] = []
    image = rng.integers(-127, 128, (1, 3, 32, 32))

    def conv(channels: int, source: tuple[int, ...], kernel: int = 3, stride: int = 1, groups: int = 1) -> Conv2d:
        weight = np.clip(np.rint(rng.normal(0, 30, (channels, source[0] // groups, kernel, kernel))), -127, 127)
        return Conv2d(weight, stride=stride, padding=kernel // 2, groups=groups)

    def add(name: str, shape: tuple[int, ...], *incoming: tuple[str, Synapse]) -> tuple[str, tuple[int, ...]]:
        """Join a population whose threshold suits the current that arrives."""
        connections.extend(Connection(source=source, target=name, synapse=synapse) for source, synapse in incoming)

        def whole(last: Population) -> Network:
            return Network(
                name="PreAct-ResNet-18",
                steps=steps,
                input=net_input,
                populations=(*populations, last),
                connections=connections,
            )

        unset = Population(name=name, shape=shape, reset="none", state_bits=30)
        current = fast(whole(unset), image, [name]).current[name][:, 0]
        theta = threshold_for(current, density)
        populations.append(Population(name=name, shape=shape, threshold=theta, reset_amount=theta, state_bits=30))
        return name, shape

    at, shape = add("block1_in", (width, 32, 32), (INPUT, conv(width, (3, 32, 32))))
    for block in range(8):
        stage = block // 2
        stride = 2 if stage and block % 2 == 0 else 1
        channels, size = width * 2**stage, 32 // 2**stage
        target = (channels, size, size)
        middle, _ = add(f"block{block + 1}_mid", target, (at, conv(channels, shape, stride=stride)))
        shortcut = conv(channels, shape, kernel=1, stride=2) if stride == 2 else Scale(np.full((1,), 120))
        name = f"block{block + 2}_in" if block < 7 else "neurons"
        at, shape = add(name, target, (middle, conv(channels, target)), (at, shortcut))
    pool = Conv2d(np.ones((shape[0], 1, *shape[1:])), stride=shape[1], groups=shape[0])
    at, shape = add("pool", (shape[0], 1, 1), (at, pool))
    populations.append(Population(name="readout", shape=(10,), reset="none", state_bits=30))
    connections.append(Connection(source=at, target="readout", synapse=Dense(rng.integers(-100, 101, (10, shape[0])))))
    return Network(
        name="PreAct-ResNet-18",
        steps=steps,
        input=net_input,
        populations=populations,
        connections=connections,
        readout=Readout(population="readout", kind="membrane"),
    )


def threshold_for(current: np.ndarray, density: float) -> int:
    """Threshold at which soft-reset IF neurons fire at ``density`` under a current [T, *shape]."""

    def fired(theta: int) -> float:
        v, spikes = np.zeros(current.shape[1:], np.int64), 0
        for drive in current:
            v += drive
            above = v > theta
            spikes += int(above.sum())
            v -= theta * above
        return spikes / current.size

    low, high = 1, max(2, int(np.abs(current).sum(axis=0).max()))
    while high - low > max(1, low // 200):
        middle = (low + high) // 2
        low, high = (middle, high) if fired(middle) > density else (low, middle)
    return high


def recurrent(steps: int = 200, size: int = 256) -> Network:
    """100 inputs, leaky neurons joined to each other with a delay of one step, ten readout neurons."""
    rng = np.random.default_rng(0)
    neurons = {"threshold": 260_000, "reset": "zero", "du": 1024, "dv": 256}
    return Network(
        name="recurrent",
        steps=steps,
        input=Input(shape=(100,)),
        populations=[
            Population(name="hidden", shape=(size,), **neurons),
            Population(name="out", shape=(10,), **neurons),
        ],
        connections=[
            Connection(source=INPUT, target="hidden", synapse=Dense(rng.integers(-100, 128, (size, 100)))),
            Connection(source="hidden", target="hidden", synapse=Dense(rng.integers(-60, 61, (size, size))), delay=1),
            Connection(source="hidden", target="out", synapse=Dense(rng.integers(-100, 128, (10, size)))),
        ],
        readout=Readout(population="out"),
    )


def torch_forward(network: Network, x: np.ndarray, channels_last: bool, threads: int) -> Callable[[], np.ndarray]:
    """The same spiking network as PyTorch users run it: float32, every layer over all steps at once, then its neurons.

    Soft-reset IF neurons, convolutions, dense and one-to-one connections; a constant input is convolved once. Returns
    what takes one forward pass and gives the final membranes of the last population; its numbers are exact integers.
    """
    import torch
    from torch.nn import functional

    torch.set_num_threads(threads)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    weights = {}
    for c in network.connections:
        weight = torch.from_numpy(c.synapse.weight.astype(np.float32)) * 2.0**c.weight_exponent
        weights[c.name] = weight.to(memory_format=layout) if weight.ndim == 4 else weight
    images = torch.from_numpy(x.astype(np.float32)).to(memory_format=layout)
    steps = network.steps

    def arriving(c: Connection, source: torch.Tensor) -> torch.Tensor:
        if isinstance(c.synapse, Conv2d):
            s = c.synapse
            return functional.conv2d(source, weights[c.name], None, s.stride, s.padding, s.dilation, s.groups)
        if isinstance(c.synapse, Scale):
            return source * weights[c.name].reshape(1, -1, 1, 1)
        return source.flatten(1) @ weights[c.name].T

    def run() -> np.ndarray:
        sent, v = {}, torch.zeros(())
        with torch.inference_mode():
            for p in network.flow:
                parts = [arriving(c, images if c.source == INPUT else sent[c.source]) for c in network.incoming(p.name)]
                total = parts[0]
                for part in parts[1:]:
                    total = total + part
                constant = len(total) == len(images)
                current = total if constant else total.unflatten(0, (steps, len(images)))
                v = torch.zeros_like(current if constant else current[0])
                spikes = []
                for n in range(steps):
                    v = v + (current if constant else current[n])
                    if p.spikes:
                        fired = (v > p.threshold / 2**p.fraction_bits).float()
                        v = v - p.reset_amount / 2**p.fraction_bits * fired
                        spikes.append(fired)
                if p.spikes:
                    sent[p.name] = torch.cat(spikes)
        return v.numpy()

    return run
