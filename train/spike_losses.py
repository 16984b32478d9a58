"""Losses on the spike trains of output neurons (Zhang & Li, NeurIPS 2020; stonezwr/TSSL-BP ``functions/loss_f.py``).

With ``a`` the spikes of the output neurons after a first-order synapse of unit area,
``a[t] = (1 - 1/tau_s) a[t-1] + s[t]/tau_s``, summed over samples, classes ``c`` and steps (not averaged)::

    kernel     1/2 sum (a[t] - d[t])^2,  d a wanted train filtered in the same way for the right class, 0 for others:
               a van Rossum distance
    count      1/2 sum delta^2,  delta = (sum_t a[t] - wanted)/T; 0 where the right class has at least `desired`, or
               another at most `undesired`
    softmax    mean over samples of the cross-entropy of sum_t a[t]

The largest ``sum_t a[t]`` is the class.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import TrainConfig


def synapse_matrix(steps: int, keep: float, like: Tensor) -> Tensor:
    """``M`` of ``a[t] = sum_k M[t, k] s[k]``: ``[T, T]``."""
    t = torch.arange(steps, dtype=torch.float64)
    age = t[:, None] - t[None, :]
    return torch.where(age >= 0, (1 - keep) * keep ** age.clamp(min=0), torch.zeros_like(age)).to(like)


def wanted_train(config: TrainConfig, steps: int) -> list[int]:
    """Spikes that the right class should give: the configured pattern, or the official code's, over and over."""
    pattern = config.target or ((0, 1) if steps >= 10 else (0, 1, 1, 1, 1))
    return [pattern[t % len(pattern)] for t in range(steps)]


def spike_loss(config: TrainConfig, spikes: Tensor, y: Tensor, keep: float) -> tuple[Tensor, Tensor]:
    """Loss of a batch, and the scores of its classes.

    Parameters
    ----------
    config : TrainConfig
        ``loss`` is "kernel", "count" or "softmax".
    spikes : float [T, B, classes]
        Of the output neurons.
    y : int64 [B]
    keep : float
        ``1 - 1/tau_s`` of the synapses that filter them.

    Returns
    -------
    loss : scalar
    scores : float [B, classes]
        ``sum_t a[t]``.
    """
    steps = len(spikes)
    matrix = synapse_matrix(steps, keep, spikes)
    a = torch.tensordot(matrix, spikes, 1)
    scores = a.sum(0)
    if config.loss == "softmax":
        return F.cross_entropy(scores, y), scores
    right = F.one_hot(y, spikes.shape[2]).to(spikes.dtype)
    if config.loss == "kernel":
        train = torch.tensor(wanted_train(config, steps)).to(spikes)
        for _ in range(config.target_filters):
            train = matrix @ train
        return 0.5 * (a - train[:, None, None] * right).square().sum(), scores
    delta = (scores - torch.where(right > 0, config.desired, config.undesired)) / steps
    delta = torch.where(right > 0, delta.clamp(max=0), delta.clamp(min=0))
    return 0.5 * steps * delta.square().sum(), scores
