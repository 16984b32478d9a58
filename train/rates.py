"""A network at the level of its rates: one pass of mean currents stands for all time steps.

In this pass every neuron layer gets a mean current and gives what it would send on average if that current were the
same at every step (:meth:`.neurons.Neuron.mean_sent`); for IF neurons with the soft reset that is

    th/N clamp(floor(N I/th + 1 - alpha), 0, N)

and its gradient is DSR's own, that of the clamp. What is missing is only that real spikes arrive unevenly. So this is
a cheap first part of training, about N times faster, for the same weights and thresholds: ``train.rate_epochs``. The
DSR paper starts its ImageNet networks from a conventional network as well (its "hybrid" training); there the
thresholds come from percentiles of activations, here they are trained from the start.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from .model import SpikingSequential
from .neurons import Neuron, mean_over_steps


@contextmanager
def at_rate_level(model: SpikingSequential) -> Iterator[None]:
    """Run the network at the level of its rates inside; give it inputs through :func:`rate_scores`."""
    steps, neurons = model.steps, list(model.neurons.values())
    model.steps = 1
    for neuron in neurons:
        neuron.steps = 1
        if isinstance(neuron, Neuron):
            neuron.levels = steps
    try:
        yield
    finally:
        model.steps = steps
        for neuron in neurons:
            neuron.steps = steps
            if isinstance(neuron, Neuron):
                neuron.levels = None


def rate_scores(model: SpikingSequential, x: Tensor) -> Tensor:
    """Class scores of a network at the level of its rates, with the graph of its backward pass.

    Parameters
    ----------
    model : SpikingSequential
    x : float [B, *input_shape] or [T, B, *input_shape]
        Frames count with their mean.

    Returns
    -------
    float [B, classes]
    """
    if x.ndim == len(model.input_shape) + 2:
        x = mean_over_steps(x.flatten(0, 1), len(x))
    with at_rate_level(model):
        return model(x)
