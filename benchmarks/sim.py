"""Speed of the simulator: the fast engine against the reference and ONNX Runtime, on two networks.

    python benchmarks/sim.py [--repeats 5] [--executors reference,fast,onnxruntime]

Prints sample-steps per second (samples x steps / wall-clock time; the median of the repeats, all executors in turn in
every repeat, so that a busy machine slows all of them), and the ratio to the reference.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from pathlib import Path

import numpy as np

from lapilli.network import INPUT, Connection, Conv2d, Dense, Input, Network, Population, Readout, Synapse
from lapilli.sim.executors import find


def network(name: str, steps: int, net_input: Input, layers: list[tuple[Population, Synapse]], readout: str) -> Network:
    """A chain of layers."""
    names = [INPUT, *(p.name for p, _ in layers)]
    return Network(
        name=name,
        steps=steps,
        input=net_input,
        populations=[p for p, _ in layers],
        connections=[Connection(source=a, target=p.name, synapse=s) for a, (p, s) in zip(names, layers, strict=False)],
        readout=Readout(population=names[-1], kind=readout),
    )


def dense_cuba(steps: int = 200) -> Network:
    """784-512-512-10, current-based leaky neurons, hard reset: the network that the peers were measured with."""
    rng = np.random.default_rng(0)
    layers = [
        (
            Population(name=f"layer{i}", shape=(n,), threshold=theta, reset="zero", du=1024, dv=256),
            Dense(rng.integers(-100, 101, (n, m))),
        )
        for i, (m, n, theta) in enumerate(((784, 512, 260_000), (512, 512, 260_000), (512, 10, 260_000)))
    ]
    return network("784-512-512-10", steps, Input(shape=(784,)), layers, "count")


def digits_cnn(steps: int = 10) -> Network:
    """1x8x8, two convolutions of 16 and 32 channels, pooling, a dense readout accumulator; soft-reset IF neurons."""
    rng = np.random.default_rng(0)

    def neurons(name: str, shape: tuple[int, ...], theta: int) -> Population:
        return Population(name=name, shape=shape, threshold=64 * theta, reset_amount=64 * theta)

    layers = [
        (neurons("conv1", (16, 8, 8), 4000), Conv2d(rng.integers(-70, 80, (16, 1, 3, 3)), padding=1)),
        (neurons("conv2", (32, 8, 8), 1500), Conv2d(rng.integers(-70, 80, (32, 16, 3, 3)), padding=1)),
        (neurons("pool", (32, 4, 4), 250), Conv2d(np.full((32, 1, 2, 2), 64), stride=2, groups=32)),
        (Population(name="out", shape=(10,), reset="none"), Dense(rng.integers(-100, 100, (10, 512)))),
    ]
    return network("digits CNN", steps, Input(shape=(1, 8, 8), high=16), layers, "membrane")


def cases() -> list[tuple[Network, str, np.ndarray]]:
    """Network, what runs, and its input."""
    rng = np.random.default_rng(1)
    dense, cnn = dense_cuba(), digits_cnn()
    spikes = (rng.random((dense.steps, 64, 784)) < 0.05).astype(np.int64)
    images = rng.integers(0, 17, (360, 1, 8, 8)) * (rng.random((360, 1, 8, 8)) < 0.5)
    return [
        (dense, "batch 1, 5 % input", spikes[:, :1]),
        (dense, "batch 64, 5 % input", spikes),
        (cnn, "batch 360", images),
    ]


def machine() -> str:
    """One line about where the numbers come from."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}"
    return f"{model}, {os.cpu_count()} cores, BLAS threads {threads}, {versions}"


def seconds(executor, network: Network, x: np.ndarray) -> float:
    started = time.perf_counter()
    executor(network, x)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--executors", default="reference,fast,onnxruntime")
    options = parser.parse_args()
    names = options.executors.split(",")
    executors = {name: find(name) for name in names}
    print(machine())
    print(f"{'network':<16}{'run':<22}{'executor':<14}{'sample-steps/s':>16}{'x ' + names[0]:>14}  spike rates")
    for network, what, x in cases():
        recording = executors["fast" if "fast" in executors else names[0]](network, x)  # and warm up
        rates = " ".join(f"{s.mean():.3f}" for s in recording.spikes.values())
        for executor in executors.values():
            executor(network, x[:, :1] if x.ndim == len(network.input.shape) + 2 else x[:1])
        times = {name: [] for name in names}
        for _ in range(options.repeats):
            for name, executor in executors.items():
                times[name].append(seconds(executor, network, x))
        samples = x.shape[-len(network.input.shape) - 1]
        for name in names:
            speed = samples * network.steps / statistics.median(times[name])
            ratio = statistics.median(a / b for a, b in zip(times[names[0]], times[name], strict=True))
            print(f"{network.name:<16}{what:<22}{name:<14}{speed:>16,.0f}{ratio:>14.1f}  {rates}")


if __name__ == "__main__":
    main()
