"""Time of one update of bit-true training: forward pass in torch, or in the fast engine.

    python benchmarks/bit_true.py [--recipe cifar10] [--batch 128] [--repeats 3] [--threads 1] [--clock wall]

The recipe's network with random weights and normalized activations, on random images (CIFAR's shape unless the recipe
says else). In every turn each way takes one update's forward and backward pass; medians of the turns, and of their
ratios. Gradients are compared: the first two ways must agree to the last bit. ``--clock cpu``: processor time, for a
machine that is not free; with one thread only.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import torch
from torch import Tensor

from lapilli.export.lowering import lower
from lapilli.export.quantization import quantize_with_latent
from lapilli.recipe import Recipe, load_recipe
from lapilli.sim.executors import find
from lapilli.train.bit_true import BitTrueNetwork
from lapilli.train.model import build
from lapilli.train.rates import rate_scores

SHAPE = (3, 32, 32)


def ways(recipe: Recipe, x: Tensor) -> dict[str, BitTrueNetwork]:
    """Modules with the same weights."""
    torch.manual_seed(0)
    model = build(recipe.network, SHAPE, 10, seed=0).train()
    for _ in range(6):  # running statistics of batch normalization
        rate_scores(model, x)
    made = quantize_with_latent(lower(model.eval().double(), name=recipe.name), recipe.quantize, x.numpy())
    fast = find("fast")
    return {
        "torch": BitTrueNetwork(made.network, made.latent),
        "fast engine": BitTrueNetwork(made.network, made.latent, executor=fast),
        "fast engine, bfloat16": BitTrueNetwork(made.network, made.latent, executor=fast, mixed_precision=True),
    }


def update(module: BitTrueNetwork, x: Tensor, y: Tensor) -> None:
    """Forward and backward."""
    module.zero_grad(set_to_none=True)
    torch.nn.functional.cross_entropy(module(x), y).backward()


def main() -> None:
    """Measure, and print a table."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--recipe", default="cifar10")
    ask.add_argument("--batch", type=int, default=128)
    ask.add_argument("--repeats", type=int, default=3)
    ask.add_argument("--threads", type=int, default=1)
    ask.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    given = ask.parse_args()
    clock = time.perf_counter if given.clock == "wall" else time.process_time
    torch.set_num_threads(given.threads)
    os.environ["LAPILLI_THREADS"] = str(given.threads)
    x, y = torch.randn(given.batch, *SHAPE), torch.randint(10, (given.batch,))
    modules = ways(load_recipe(given.recipe), x)
    seconds: dict[str, list[float]] = {name: [] for name in modules}
    for turn in range(given.repeats + 1):  # the first one warms up
        for name, module in modules.items():
            start = clock()
            update(module, x, y)
            if turn:
                seconds[name].append(clock() - start)
    torch_ones, engine_ones, _ = ([p.grad for p in m.parameters()] for m in modules.values())
    equal = all(
        (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(torch_ones, engine_ones, strict=True)
    )
    print(
        f"{given.recipe}, batch {given.batch}, {given.threads} thread(s), {given.clock} clock; gradients equal: {equal}"
    )
    for name, each in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(seconds["torch"], each, strict=True))
        print(f"{name:24s} {statistics.median(each):8.3f} s/update {ratio:6.1f}x")


if __name__ == "__main__":
    main()
