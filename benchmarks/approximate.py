"""Accuracy with ``train.backward = "approximate"`` beside the exact gradient: the same recipe, data and seeds.

    python benchmarks/approximate.py RECIPE [--samples 10000] [--seeds 3] [--set section.key=value ...]

Float training only, with batch normalization in training mode in every epoch. ``--samples``: so many training samples,
drawn once. Printed for each seed and way: test accuracy after the last epoch, its training loss, and processor time of
all epochs (of this process, so that other work on the machine counts little); then mean and standard deviation
(n - 1) over the seeds, and of the differences of the two ways with the same seed.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from lapilli.recipe import load_recipe
from lapilli.train import build, evaluate, fit, load_data
from lapilli.train.data import augmentation

WAYS = ("representation", "approximate")


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{statistics.mean(values):7.2f} ± {statistics.stdev(values) if len(values) > 1 else 0:.2f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--samples", type=int, default=None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value")
    given = parser.parse_args()
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for seed in range(given.seeds):
        for way in WAYS:
            fixed = ["train.rate_epochs=0", "train.freeze_norm=false", f"train.backward={way}", f"train.seed={seed}"]
            recipe = load_recipe(given.recipe, [*given.set, *fixed])
            data = load_data(recipe.data, recipe.network.steps)
            train = data.train
            if given.samples is not None:
                train = train.take(np.sort(np.random.default_rng(0).permutation(len(train))[: given.samples]))
            model = build(recipe.network, data.shape, data.n_classes, seed=seed)
            start = time.process_time()
            history = fit(model, train, recipe.train, augment=augmentation(recipe.data), progress=False)
            seconds = time.process_time() - start
            accuracy = 100 * evaluate(model, data.test)
            found[way].append(accuracy)
            loss = history.epochs[-1].loss
            print(f"seed {seed}  {way:15}{accuracy:7.2f} %  loss {loss:.4f}  {seconds:7.1f} s", flush=True)
    print(f"{len(train)} training samples, {recipe.train.epochs} epochs, {recipe.network.steps} steps")
    for way, accuracies in found.items():
        print(f"{way:15}{spread(accuracies)} %")
    print(f"{'difference':15}{spread([b - a for a, b in zip(*found.values(), strict=True)])} points")


if __name__ == "__main__":
    main()
