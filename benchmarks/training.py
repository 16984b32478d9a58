"""Time and memory of one training step: gradients at the level of the representation against autograd over all steps.

    python benchmarks/training.py [--architecture preact-resnet18] [--steps 5 10 20] [--batch 32] [--repeats 3]
                                  [--threads 2] [--clock wall] [--channels-last] [--stem imagenet --size 112]

Ways to the same gradients: autograd over all steps, with our neurons and, where it is installed, with SpikingJelly's
DSR neuron (which keeps the currents of all steps, as the official code does); and the representation. Two more are not
exact: with the gradients' convolutions in bfloat16 (``train.mixed_precision``), and without the covariance. Each way
runs in a process of its own, and in every turn each does one step.
Ratios are medians over the turns, against all steps with our neurons. Memory: the largest resident size of the process
(``ru_maxrss``) less that of a process that did nothing but import; the weights and their gradients are in it.
"Off by": norm of the difference from the gradient of all steps, relative to that gradient's norm (float32).
Frozen: batch normalization in eval mode and not trained. ``--clock cpu``: processor time, for a machine that is not
free; with one thread only.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lapilli.train.config import NetworkConfig
from lapilli.train.model import SpikingSequential, build
from lapilli.train.neurons import IFNeuron
from lapilli.train.representation import scores

WAYS = ("all steps", "spikingjelly", "representation", "bfloat16 products", "without covariance")


def with_spikingjelly(model: SpikingSequential) -> SpikingSequential:
    """The same network with SpikingJelly's neurons."""
    from spikingjelly.activation_based.neuron import DSRIFNode  # pyright: ignore[reportMissingImports]

    class Neuron(IFNeuron):
        def __init__(self, ours: IFNeuron) -> None:
            super().__init__(ours.steps)
            self.node = DSRIFNode(ours.steps, ours.threshold.item(), ours.alpha, True, 1.0, ours.bound)
            self.node.v_threshold = self.threshold = ours.threshold

        def forward(self, current: Tensor) -> Tensor:
            return self.node(current.unflatten(0, (self.steps, -1))).flatten(0, 1)

    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, IFNeuron):
                setattr(module, name, Neuron(child))
    return model


def work(way: str, frozen: bool, steps: int, given: argparse.Namespace) -> None:
    """Answer every line on standard input with a training step: its seconds, and the peak memory so far in GiB."""
    torch.set_num_threads(given.threads)
    if way == "spikingjelly":
        import spikingjelly.activation_based.neuron as _  # noqa: F401  # pyright: ignore[reportMissingImports]
    clock = time.process_time if given.clock == "cpu" else time.perf_counter
    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    config = NetworkConfig(
        architecture=given.architecture, width=given.width, stem=given.stem, steps=steps, threshold=1.0
    )
    model = build(config, (3, given.size, given.size), 10)
    if given.channels_last:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if frozen:
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval().requires_grad_(requires_grad=False)
    forward: Any = {
        "all steps": model,
        "spikingjelly": model,
        "representation": partial(scores, model),
        "bfloat16 products": partial(scores, model, products=torch.bfloat16),
        "without covariance": partial(scores, model, covariance=False),
    }[way]
    if way == "spikingjelly":
        with_spikingjelly(model)
    torch.manual_seed(0)
    x, y = torch.randn(given.batch, 3, given.size, given.size), torch.randint(0, 10, (given.batch,))
    for line in sys.stdin:
        start = clock()
        model.zero_grad()
        torch.nn.functional.cross_entropy(forward(x), y).backward()
        seconds = clock() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if line.strip():
            gradients = {name: p.grad.contiguous() for name, p in model.named_parameters() if p.grad is not None}
            save_file(gradients, line.strip())
        print(json.dumps({"seconds": seconds, "gib": (peak - idle) / 2**20}), flush=True)


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Norm of the difference of two gradients of all parameters, relative to the norm of the first."""
    pairs = [(a[name].double(), b[name].double()) for name in a]
    return (sum(((x - y) ** 2).sum() for x, y in pairs) / sum((x**2).sum() for x, _ in pairs)).item() ** 0.5


def compare(steps: int, frozen: bool, given: argparse.Namespace) -> None:
    """Print the rows of one number of steps and one kind of batch normalization."""
    ways = [w for w in WAYS if (w != WAYS[-1] or not frozen) and (w != WAYS[1] or find_spec("spikingjelly"))]
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        processes = {}
        for way in ways:
            call = [sys.executable, __file__, *sys.argv[1:], "--work", way, "frozen" if frozen else "", str(steps)]
            process = subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            processes[way] = stack.enter_context(process)
        for turn in range(given.repeats + 1):
            for way, process in processes.items():
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(f"{folder / way}\n" if turn == 0 else "\n")
                process.stdin.flush()
                found[way].append(json.loads(process.stdout.readline()))
        off = {way: difference(load_file(folder / WAYS[0]), load_file(folder / way)) for way in ways}
        for process in processes.values():
            assert process.stdin is not None
            process.stdin.close()
    first = found[WAYS[0]]
    for way, turns in found.items():
        # The first turn warms up.
        time_ratio = statistics.median(a["seconds"] / b["seconds"] for a, b in zip(first[1:], turns[1:], strict=True))
        print(
            f"{steps:5} {'frozen' if frozen else 'training':10}{way:20}"
            f"{statistics.median(t['seconds'] for t in turns[1:]):8.2f} s {time_ratio:5.2f}x"
            f"{turns[-1]['gib']:8.2f} GiB {first[-1]['gib'] / turns[-1]['gib']:5.2f}x   {off[way]:.1e}",
            flush=True,
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="preact-resnet18")
    parser.add_argument("--width", type=int, default=None)
    parser.add_argument("--stem", choices=("cifar", "imagenet"), default="cifar")
    parser.add_argument("--size", type=int, default=32, help="of the square images")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--channels-last", action="store_true", help="memory format of images, instead of first")
    parser.add_argument("--norm", nargs="+", choices=("training", "frozen"), default=["training", "frozen"])
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.work[0], bool(given.work[1]), int(given.work[2]), given)
        return
    images = f"{given.size}x{given.size} pixels, batch {given.batch}"
    print(f"{given.architecture}, {images}, {given.threads} threads, {given.clock} time")
    print(f"{'steps':5} {'batch norm':10}{'way':20}{'time':>10}{'':7}{'memory':>12}{'':7}  off by", flush=True)
    for steps in given.steps:
        for norm in given.norm:
            compare(steps, norm == "frozen", given)


if __name__ == "__main__":
    main()
