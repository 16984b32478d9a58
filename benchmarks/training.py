"""Time and memory of one training step: gradients at the level of the representation against autograd over all steps.

    python benchmarks/training.py [--architecture preact-resnet18] [--steps 20] [--batch 32] [--repeats 3] [--threads 2]

Each way runs in a process of its own, for its peak memory, in turns. Frozen: batch normalization in eval mode.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from functools import partial

import torch

from lapilli.train.config import NetworkConfig
from lapilli.train.model import build
from lapilli.train.representation import scores

WAYS = ("all steps", "representation", "without covariance")


def measure(way: str, frozen: bool, given: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step, and the peak memory above that of a process that did nothing but import, in GiB."""
    torch.set_num_threads(given.threads)
    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = build(NetworkConfig(architecture=given.architecture, steps=given.steps, threshold=1.0), (3, 32, 32), 10)
    if frozen:
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval().requires_grad_(requires_grad=False)
    forward = {
        "all steps": model,
        "representation": partial(scores, model),
        "without covariance": partial(scores, model, covariance=False),
    }[way]
    x, y = torch.randn(given.batch, 3, 32, 32), torch.randint(0, 10, (given.batch,))
    seconds = []
    for _ in range(given.repeats + 1):
        start = time.perf_counter()
        model.zero_grad()
        torch.nn.functional.cross_entropy(forward(x), y).backward()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": statistics.median(seconds[1:]), "gib": (peak - idle) / 2**20}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="preact-resnet18")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure[0], given.measure[1] == "frozen", given)))
        return
    print(f"{given.architecture}, {given.steps} steps, batch {given.batch}, {given.threads} threads")
    for norm in ("training", "frozen"):
        found = {}
        for way in WAYS if norm == "training" else WAYS[:2]:
            again = [sys.executable, __file__, *sys.argv[1:], "--measure", way, norm]
            found[way] = json.loads(subprocess.run(again, check=True, capture_output=True, text=True).stdout)
            time_ratio = found[WAYS[0]]["seconds"] / found[way]["seconds"]
            memory_ratio = found[WAYS[0]]["gib"] / found[way]["gib"]
            print(
                f"batch norm {norm:9}{way:20}{found[way]['seconds']:7.2f} s {time_ratio:5.2f}x"
                f"{found[way]['gib']:7.2f} GiB {memory_ratio:5.2f}x"
            )


if __name__ == "__main__":
    main()
