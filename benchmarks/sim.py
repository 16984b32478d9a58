"""Speed of the simulator, in ratios: every number is the median over repeats in which all contestants take turns.

    python benchmarks/sim.py [--repeats 5] [--batch 32] [--only resnet,networks,recurrent,sums,graded,products,neurons,
                             memory] [--without lava,onnxruntime,torch]

Whole networks are timed by the clock on the wall, on all threads. Kernels (sums, graded, products, neurons), and
PreAct-ResNet-18 with LAPILLI_THREADS=1, are timed by the processor time of one thread, which a busy machine disturbs
less. The load is printed beside the machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from networks import preact_resnet18, recurrent, torch_forward

from lapilli.network import INPUT, Connection, Conv2d, Dense, Input, Network, Population, Readout, Synapse
from lapilli.sim.engine import kernels, threads
from lapilli.sim.engine.neurons import State
from lapilli.sim.engine.packing import lay_out, pack, under_each_tap
from lapilli.sim.executors import find

PAUSE = 0.1  # seconds; thread pools of BLAS and ONNX Runtime spin on after their work
AT_LEAST = 0.2  # seconds of a measurement


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
    spikes = (rng.random((dense.steps, 64, 784)) < 0.05).astype(np.uint8)
    images = rng.integers(0, 17, (360, 1, 8, 8)) * (rng.random((360, 1, 8, 8)) < 0.5)
    return [
        (dense, "batch 1, 5 % input", spikes[:, :1]),
        (dense, "batch 64, 5 % input", spikes),
        (cnn, "batch 360", images),
    ]


def machine() -> str:
    """Where the numbers come from, in three lines."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []

    def value(key: str) -> str:
        return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")

    wanted = ("avx2", "avx512f", "avx512bw", "avx512_vnni", "asimd")
    flags = " ".join(f for f in wanted if f in (value("flags") or value("Features")).split())
    load = " ".join(f"{x:.1f}" for x in os.getloadavg()) if hasattr(os, "getloadavg") else "unknown"
    return (
        f"{value('model name') or platform.machine()}, {os.cpu_count()} cores, load {load}; flags: {flags}\n"
        f"Python {platform.python_version()}, NumPy {np.__version__}; kernels: {kernels.level_name()}, "
        f"{threads.count()} threads for networks, 1 for the rest\n"
    )


def in_turns(
    contestants: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each contestant in each repeat; one round to warm up. Short runs go on for a while: their mean."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repeats + 1):
        for name, run in contestants.items():
            time.sleep(PAUSE)
            started, runs = clock(), 0
            while not runs or clock() - started < AT_LEAST:
                run()
                runs += 1
            if turn:
                times[name].append((clock() - started) / runs)
    return times


def ratio(slow: list[float], quick: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(slow, quick, strict=True))


def on_numpy(network: Network, x: np.ndarray) -> object:
    """The fast engine as it is where there was no compiler."""
    level, kernels.level = kernels.level, -1
    try:
        return find("fast")(network, x)
    finally:
        kernels.level = level


def lava_steps_per_second(network: Network, x: np.ndarray) -> float:
    """What Lava's own runtime does, its compilation and start left out: a second and a third sample."""
    from lapilli.deploy.lava.executor import Job, run_jobs

    (run,) = run_jobs([Job(network, x[:, :3] if x.ndim > len(network.input.shape) + 1 else x[:3])])
    assert run.steps_per_second is not None
    return run.steps_per_second


def resnet(repeats: int, batch: int, without: list[str]) -> None:
    """PreAct-ResNet-18 against PyTorch's float32 forward pass of the same network, whose membranes must be the same."""
    net = preact_resnet18()
    x = np.random.default_rng(1).integers(-127, 128, (batch, 3, 32, 32))
    recording = find("fast")(net, x)
    mean = sum(int(s.sum()) for s in recording.spikes.values()) / sum(s.size for s in recording.spikes.values())
    runs: dict[str, Callable[[], object]] = {"fast": partial(find("fast"), net, x)}
    if "torch" not in without:
        for name, channels_last in (("torch, channels last", True), ("torch, channels first", False)):
            run = torch_forward(net, x, channels_last, threads.count())
            same = np.array_equal((run() * 2**6).astype(np.int64), recording.v_final["readout"])
            runs[name] = run
            print(f"{name}: {'same' if same else 'DIFFERENT'} final membranes")
    times = in_turns(runs, repeats, time.process_time if threads.count() == 1 else time.perf_counter)
    print(f"\n{net.name}, T = {net.steps}, batch {batch}, mean density {mean:.1%}, {threads.count()} threads")
    print(f"{'executor':<24}{'samples/s':>12}{'fast is':>12}")
    for name, seconds in times.items():
        print(f"{name:<24}{batch / statistics.median(seconds):>12.1f}{ratio(seconds, times['fast']):>11.1f}x")


def memory(batch: int) -> None:
    """Peak of a process that runs PreAct-ResNet-18 once, less what it has after imports and with network and input."""
    child = (
        "import resource, sys; sys.path.insert(0, sys.argv[1]); import numpy as np\n"
        "from networks import preact_resnet18\n"
        "from lapilli.sim.engine.batched import fast, plan_of\n"
        "net = preact_resnet18(); x = np.random.default_rng(1).integers(-127, 128, (int(sys.argv[2]), 3, 32, 32))\n"
        "plan_of(net); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "r = fast(net, x); print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", child, str(Path(__file__).parent), str(batch)],
        check=True,
        capture_output=True,
        text=True,
    )
    before, peak = (int(kib) / 2**20 for kib in done.stdout.split())
    print(f"\nmemory, PreAct-ResNet-18, T = 20, batch {batch}: {peak:.2f} GiB at most, {before:.2f} GiB before the run")


def recurrence(repeats: int, without: list[str]) -> None:
    """A recurrent network, step by step, one sample; by the clock on the wall, since Lava runs in several processes."""
    net = recurrent()
    x = (np.random.default_rng(1).random((net.steps, 3, 100)) < 0.1).astype(np.int64)
    runs: dict[str, Callable[[], float]] = {
        "fast": lambda: net.steps / timed(partial(find("fast"), net, x[:, :1])),
        "fast, processor time": lambda: net.steps / timed(partial(find("fast"), net, x[:, :1]), time.process_time),
        "NumPy": lambda: net.steps / timed(partial(on_numpy, net, x[:, :1])),
    }
    if "lava" not in without:
        runs["lava"] = partial(lava_steps_per_second, net, x)
    find("fast")(net, x)
    speeds = {name: [] for name in runs}
    for _ in range(repeats):
        for name, speed in runs.items():
            time.sleep(PAUSE)
            speeds[name].append(speed())
    rate = find("fast")(net, x).spikes["hidden"].mean()
    print(f"\n{'recurrent, 100-256-10, batch 1':<32}{'steps/s':>12}{'fast is':>12}  (hidden rate {rate:.3f})")
    for name, steps in speeds.items():
        print(f"{name:<32}{statistics.median(steps):>12,.0f}{ratio(speeds['fast'], steps):>11.1f}x")


def timed(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that one of ten runs takes, the first one, which fills the caches, left out."""
    run()
    started = clock()
    for _ in range(10):
        run()
    return (clock() - started) / 10


def networks(repeats: int, without: list[str]) -> None:
    print(f"{'network':<16}{'run':<22}{'executor':<14}{'sample-steps/s':>15}{'fast is':>12}  spike rates")
    for network, what, x in cases():
        runs = {"fast": partial(find("fast"), network, x), "NumPy": partial(on_numpy, network, x)}
        if "onnxruntime" not in without:
            runs["onnxruntime"] = partial(find("onnxruntime"), network, x)
        times = in_turns(runs, repeats)
        rates = " ".join(f"{s.mean():.3f}" for s in find("fast")(network, x).spikes.values())
        work = x.shape[-len(network.input.shape) - 1] * network.steps
        for name, seconds in times.items():
            speed, gain = work / statistics.median(seconds), ratio(seconds, times["fast"])
            print(f"{network.name:<16}{what:<22}{name:<14}{speed:>15,.0f}{gain:>11.1f}x  {rates}")
        if network.name == "784-512-512-10" and "lava" not in without:
            own = x if x.shape[1] >= 3 else np.repeat(x, 3, axis=1)
            lava = statistics.median(lava_steps_per_second(network, own) for _ in range(min(repeats, 3)))
            speed = work / statistics.median(times["fast"])
            print(f"{network.name:<16}{what:<22}{'lava':<14}{lava:>15,.0f}{speed / lava:>11.1f}x  {rates}")


def sums(repeats: int, without: list[str]) -> None:
    """3x3 convolutions, C to C channels, neurons included, against PyTorch's sums alone."""
    print(f"\n{'3x3 convolution':<22}{'density':>8}{'G additions/s':>15}{'ns per neuron':>15}{'PyTorch is beaten':>19}")
    rng = np.random.default_rng(2)
    for channels, size, images in ((64, 32, 40), (128, 16, 40), (256, 8, 80), (512, 4, 160)):
        synapse = Conv2d(rng.integers(-128, 128, (channels, channels, 3, 3)), padding=1)
        shape = (channels, size, size)
        under = under_each_tap(synapse, shape, shape)
        under = under[under < size**2]
        for density in (0.001, 0.005, 0.02, 0.05, 0.1):
            x = (rng.random((images, 1, *shape)) < density).astype(np.uint8)
            additions = int(x.sum(axis=(0, 1, 2)).ravel()[under].sum()) * channels
            runs = {"fast": layer(synapse, x)}
            if "torch" not in without:
                runs["torch"] = torch_convolution(x.reshape(-1, *shape), synapse)
            times = in_turns(runs, repeats, time.process_time)
            seconds = statistics.median(times["fast"])
            beaten = f"{ratio(times['torch'], times['fast']):.1f}x" if "torch" in times else "-"
            what = f"{channels} channels, {size}x{size}"
            rate, each = additions / seconds / 1e9, seconds / x.size * 1e9
            print(f"{what:<22}{density:>8.1%}{rate:>15.1f}{each:>15.2f}{beaten:>19}")


def graded(repeats: int, without: list[str]) -> None:
    """3x3 convolutions of graded frames, new at each step, neurons included, against PyTorch's sums alone."""
    print(f"\n{'graded 3x3 convolution':<28}{'G MAC/s':>10}{'us per image':>14}{'PyTorch is beaten':>19}")
    rng = np.random.default_rng(5)
    for c_in, c_out, size in ((1, 32, 28), (3, 64, 32), (64, 64, 16)):
        synapse = Conv2d(rng.integers(-100, 101, (c_out, c_in, 3, 3)), padding=1)
        p = Population(name="p", shape=(c_out, size, size), threshold=400_000, reset_amount=400_000, state_bits=30)
        net = network("graded", 20, Input(shape=(c_in, size, size), low=-127, high=127), [(p, synapse)], "count")
        x = rng.integers(-127, 128, (20, 8, c_in, size, size))
        runs: dict[str, Callable[[], object]] = {"fast": partial(find("fast"), net, x)}
        if "torch" not in without:
            runs["torch"] = torch_convolution(x.reshape(-1, c_in, size, size), synapse)
        times = in_turns(runs, repeats, time.process_time)
        each = statistics.median(times["fast"]) / 160
        beaten = f"{ratio(times['torch'], times['fast']):.1f}x" if "torch" in times else "-"
        what = f"{c_in} to {c_out} channels, {size}x{size}"
        print(f"{what:<28}{9 * c_in * c_out * size**2 / each / 1e9:>10.0f}{each * 1e6:>14.1f}{beaten:>19}")


def products(repeats: int) -> None:
    """The product path, neurons included, against ONNX Runtime's bare MatMulInteger on the unrolled images."""
    import onnxruntime
    from onnx import TensorProto, helper

    print(
        f"\n{'products, one thread':<22}{'density':>8}{'G MAC/s':>10}{'MatMulInteger':>15}{'share':>8}{'by events':>11}"
    )
    rng = np.random.default_rng(4)
    for channels, size, images in ((64, 32, 8), (128, 16, 16), (256, 8, 32), (512, 4, 64)):
        synapse = Conv2d(rng.integers(-128, 128, (channels, channels, 3, 3)), padding=1)
        shape, rows, inputs = (channels, size, size), images * size**2, 9 * channels
        x = (rng.random((images, 1, *shape)) < 0.5).astype(np.uint8)
        graph = helper.make_graph(
            [helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
            "product",
            [helper.make_tensor_value_info("a", TensorProto.UINT8, [rows, inputs])],
            [helper.make_tensor_value_info("y", TensorProto.INT32, [rows, channels])],
            [
                helper.make_tensor(
                    "b",
                    TensorProto.INT8,
                    [inputs, channels],
                    rng.integers(-128, 128, inputs * channels).astype(np.int8),
                )
            ],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        binding = session.io_binding()
        binding.bind_cpu_input("a", (rng.random((rows, inputs)) < 0.5).astype(np.uint8))
        binding.bind_ortvalue_output("y", onnxruntime.OrtValue.ortvalue_from_shape_and_type([rows, channels], np.int32))
        runs: dict[str, Callable[[], object]] = {
            "products": layer(synapse, x, forced="products"),
            "events": layer(synapse, x, forced="events"),
            "onnxruntime": partial(session.run_with_iobinding, binding),
        }
        times = in_turns(runs, repeats, time.process_time)
        rate = {name: rows * inputs * channels / statistics.median(seconds) / 1e9 for name, seconds in times.items()}
        share = ratio(times["onnxruntime"], times["products"])
        what = f"{channels} channels, {size}x{size}"
        print(
            f"{what:<22}{0.5:>8.0%}{rate['products']:>10.0f}{rate['onnxruntime']:>15.0f}{share:>8.0%}{rate['events']:>11.0f}"
        )


def layer(synapse: Conv2d, x: np.ndarray, forced: str | None = None) -> Callable[[], object]:
    """One population of integrate-and-fire neurons behind a convolution, on one thread."""
    shape = x.shape[2:]
    population = Population(name="p", shape=shape, threshold=400_000, reset_amount=400_000, state_bits=30)
    layout = lay_out(population, [synapse])
    packed = pack(synapse, shape, shape, layout)
    assert packed is not None
    state, spikes = State.at_rest(population, x.shape[1], layout), np.empty(x.shape, np.uint8)
    bias, arriving = layout.arrange(np.zeros((shape[0], 1))), [kernels.Arriving(packed, x, 0, 6)]
    ready = kernels.prepare(
        population, layout, x.shape[:2], arriving, None, None, state.v, bias, spikes, None, forced=forced
    )
    return partial(kernels.run, [ready])


def torch_convolution(x: np.ndarray, synapse: Conv2d) -> Callable[[], object]:
    """PyTorch's float32 convolution on one thread, in its faster memory format (channels last)."""
    import torch

    torch.set_num_threads(1)
    images = torch.from_numpy(x.astype(np.float32)).to(memory_format=torch.channels_last)
    weight = torch.from_numpy(synapse.weight.astype(np.float32)).to(memory_format=torch.channels_last)

    def run() -> object:
        with torch.inference_mode():
            return torch.nn.functional.conv2d(images, weight, padding=synapse.padding)

    return run


def neurons(repeats: int) -> None:
    print(f"\n{'neuron loop':<44}{'G updates/s':>12}")
    rng = np.random.default_rng(3)
    drive = rng.integers(-20_000, 30_000, (20, 4, 4096)).astype(np.int32)
    spikes = np.zeros(drive.shape, np.uint8)
    for what, du, dv in (
        ("integrate and fire", 4096, 0),
        ("leaky membrane", 4096, 256),
        ("leaky membrane, decaying current", 1024, 256),
    ):
        p = Population(name="p", shape=(4096,), threshold=100_000, reset_amount=90_000, du=du, dv=dv)
        layout = lay_out(p, [])
        state = State.at_rest(p, 4, layout)
        bias = layout.arrange(np.zeros((4096, 1)))
        arriving = layout.arrange(drive[..., None])
        ready = kernels.prepare(p, layout, (20, 4), [], arriving, state.u, state.v, bias, spikes, None)
        run = partial(kernels.run, [ready])
        seconds = statistics.median(in_turns({"fast": run}, repeats, time.process_time)["fast"])
        print(f"{what:<44}{drive.size / seconds / 1e9:>12.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32, help="samples of PreAct-ResNet-18")
    parser.add_argument(
        "--only", default="resnet,networks,recurrent,sums,graded,products,neurons,memory", help="what to run"
    )
    parser.add_argument("--without", default="", help="contestants to leave out: lava, onnxruntime, torch")
    options = parser.parse_args()
    wanted, without, repeats = options.only.split(","), options.without.split(","), options.repeats
    print(machine())
    tables: dict[str, Callable[[], None]] = {
        "resnet": lambda: resnet(repeats, options.batch, without),
        "networks": lambda: networks(repeats, without),
        "recurrent": lambda: recurrence(repeats, without),
        "memory": lambda: memory(options.batch),
    }
    if kernels.available():
        tables["sums"] = lambda: sums(repeats, without)
        tables["graded"] = lambda: graded(repeats, without)
        tables["neurons"] = lambda: neurons(repeats)
        if "onnxruntime" not in without:
            tables["products"] = lambda: products(repeats)
    for name, show in tables.items():
        if name in wanted:
            show()


if __name__ == "__main__":
    main()
