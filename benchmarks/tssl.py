"""Time of a TSSL-BP training step: forward, backward, update. CPU time, so that other load counts for little.

python benchmarks/tssl.py                     # mnist-cnn and fashion-cnn, one thread
python benchmarks/tssl.py nmnist-cnn --gradient layer
"""

from __future__ import annotations

import argparse
import time

import torch

from lapilli.train.config import NetworkConfig, TrainConfig
from lapilli.train.model import build
from lapilli.train.spike_losses import spike_loss

SHAPES = {"mnist": (1, 28, 28), "fashion": (1, 28, 28), "nmnist": (2, 34, 34), "cifar10": (3, 32, 32)}
SAMPLES = {"mnist": 60_000, "fashion": 60_000, "nmnist": 60_000, "cifar10": 50_000}


def seconds(architecture: str, batch: int, gradient: str, repeats: int) -> float:
    """Of one step, without the first two."""
    data = architecture.partition("-")[0]
    steps = 30 if data == "nmnist" else 5
    config = NetworkConfig(method="tssl-bp", architecture=architecture, steps=steps, gradient=gradient)
    model = build(config, SHAPES[data], 10)
    optimizer = torch.optim.AdamW(model.parameters())
    x, y = torch.randn(batch, *SHAPES[data]), torch.randint(10, (batch,))
    if data == "nmnist":
        x = (torch.rand(steps, batch, *SHAPES[data]) < 0.05).float()
    keep = model.output_current_beta
    started = 0.0
    for i in range(repeats + 2):
        if i == 2:
            started = time.process_time()
        loss, _ = spike_loss(TrainConfig(loss="kernel"), model.output_spikes(x), y, keep)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (time.process_time() - started) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("architectures", nargs="*", default=["mnist-cnn", "fashion-cnn"])
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--gradient", choices=("element", "layer"), default="element")
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, batch {arguments.batch}, gradient by {arguments.gradient}")
    print(f"{'network':<14}{'step [ms]':>10}{'epoch [s]':>10}")
    for name in arguments.architectures:
        step = seconds(name, arguments.batch, arguments.gradient, arguments.repeats)
        epoch = step * SAMPLES[name.partition("-")[0]] / arguments.batch
        print(f"{name:<14}{1000 * step:>10.0f}{epoch:>10.0f}", flush=True)


if __name__ == "__main__":
    main()
