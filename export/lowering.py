"""From a trained torch network to a :class:`~lapilli.export.folding.Folded` one.

The only module of this room that knows torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from ..errors import UnsupportedError
from ..train.model import NEURON_SUFFIX, SpikingSequential
from ..train.neurons import Accumulator, LIFNeuron, Neuron
from .folding import (
    Affine,
    FloatArray,
    Folded,
    FoldedLayer,
    Pair,
    Pool,
    after_batch_norm,
    cropped,
    pool_alone,
    pool_then_conv,
    pool_then_linear,
)


def _array(tensor: Tensor) -> FloatArray:
    return tensor.detach().cpu().numpy().astype(np.float64)


def _pair(value: int | tuple[int, ...]) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _convolution(where: str, conv: nn.Conv2d) -> Affine:
    if isinstance(conv.padding, str) or conv.padding_mode != "zeros":
        raise UnsupportedError(f"{where}: padding {conv.padding!r} ({conv.padding_mode}); give numbers, and zeros")
    return Affine(
        "conv2d",
        _array(conv.weight),
        np.zeros(conv.out_channels) if conv.bias is None else _array(conv.bias),
        stride=_pair(conv.stride),
        padding=_pair(conv.padding),
        dilation=_pair(conv.dilation),
        groups=conv.groups,
    )


def _linear(linear: nn.Linear) -> Affine:
    return Affine(
        "dense", _array(linear.weight), np.zeros(linear.out_features) if linear.bias is None else _array(linear.bias)
    )


def _pool(where: str, pool: nn.AvgPool2d, source: tuple[int, ...]) -> Pool:
    size = _pair(pool.kernel_size)
    stride = size if pool.stride is None else _pair(pool.stride)
    if _pair(pool.padding) != (0, 0):
        raise UnsupportedError(f"{where}: average pooling with padding {pool.padding}; use padding 0")
    left_over = any((n - p) % s for n, p, s in zip(source[1:], size, stride, strict=True))
    if pool.ceil_mode and left_over:
        raise UnsupportedError(f"{where}: ceil_mode gives windows of several sizes on {source}; use ceil_mode=False")
    return Pool(size, stride, pool.divisor_override)


def _batch_norm(where: str, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[FloatArray, FloatArray]:
    """``(g, h)`` of ``g I + h``, from the running statistics."""
    if norm.running_mean is None or norm.running_var is None:
        raise UnsupportedError(f"{where}: batch normalization without running statistics has no fixed map to fold")
    gain = 1.0 / np.sqrt(_array(norm.running_var) + norm.eps)
    offset = np.zeros_like(gain)
    if norm.affine:
        gain, offset = gain * _array(norm.weight), _array(norm.bias)
    return gain, offset - gain * _array(norm.running_mean)


@dataclass
class _Pending:
    """What was read since the last neurons."""

    name: str = ""
    affine: Affine | None = None
    pool: Pool | None = None

    def add_pool(self, where: str, module: nn.AvgPool2d, source: tuple[int, ...]) -> None:
        if self.affine is not None:
            raise UnsupportedError(f"{where}: pooling between weights and neurons; put it after the neurons")
        if self.pool is not None:
            source = self.pool.output_shape(source)
        pool = _pool(where, module, source)
        if self.pool is not None:
            first = self.pool
            if first.size != first.stride or pool.size != pool.stride or first.divisor or pool.divisor:
                raise UnsupportedError(f"{where}: two average poolings in a row; only plain ones (stride = size) merge")
            # floor(floor(n / p) / q) = floor(n / (p q)), so two plain poolings are one, left-over rows included.
            size = (first.size[0] * pool.size[0], first.size[1] * pool.size[1])
            pool = Pool(size, size)
        self.pool = pool

    def add_weights(self, where: str, name: str, affine: Affine) -> None:
        if self.affine is not None:
            raise UnsupportedError(f"{where}: weights follow weights without neurons between them")
        self.name, self.affine = name, affine


def lower(model: SpikingSequential, *, name: str = "network", labels: tuple[str, ...] = ()) -> Folded:
    """Fold a trained network: batch norm, thresholds, amplitudes, alpha and pooling go into weights and biases.

    In float64 the folded network emits exactly the spikes of ``model`` in eval mode (computed in float64, up to
    exact ties between a membrane and its threshold).

    Parameters
    ----------
    model : SpikingSequential
        In any mode; the running statistics of its batch normalization are used.
    name : str
        Of the network.
    labels : tuple of str
        Class names.

    Raises
    ------
    UnsupportedError
        If a layer has no counterpart; the message names it.
    """
    layers: list[FoldedLayer] = []
    shape = tuple(model.input_shape)
    amplitude, key = 1.0, ""
    pending = _Pending()
    for key, module in model.layers.named_children():
        where = f"layer {key!r} ({type(module).__name__})"
        match module:
            case nn.Dropout() | nn.Flatten() | nn.Identity():
                pass
            case nn.AvgPool2d():
                pending.add_pool(where, module, shape)
            case nn.Conv2d():
                pending.add_weights(where, key, _convolution(where, module))
            case nn.Linear():
                pending.add_weights(where, key, _linear(module))
            case nn.BatchNorm1d() | nn.BatchNorm2d():
                if pending.affine is None:
                    raise UnsupportedError(f"{where}: batch normalization must follow weights")
                pending.affine = after_batch_norm(pending.affine, *_batch_norm(where, module))
            case Neuron() | Accumulator():
                affine = pending.affine
                if affine is None and pending.pool is None:
                    raise UnsupportedError(f"{where}: neurons follow neurons without weights between them")
                if affine is None:
                    affine = pool_alone(pending.pool, shape[0])  # pyright: ignore[reportArgumentType]
                elif pending.pool is not None and affine.kind == "dense":
                    affine = pool_then_linear(pending.pool, affine, shape)
                elif pending.pool is not None:
                    affine, needed = pool_then_conv(pending.pool, affine, shape)
                    if needed != shape:
                        if not layers:
                            raise UnsupportedError(
                                f"{where}: pooling {pending.pool.size} drops rows or columns of the input {shape} "
                                f"before a padded convolution; crop the input to {needed}"
                            )
                        layers[-1] = cropped(layers[-1], needed)
                        shape = needed
                shape = affine.output_shape(shape)
                k = 1.0 if module.beta == 1.0 else 1.0 - module.beta
                affine = replace(affine, weight=affine.weight * (k * amplitude), bias=affine.bias * k)
                layer = _neurons(pending.name or key.removesuffix(NEURON_SUFFIX), affine, shape, module)
                layers.append(layer)
                amplitude = layer.amplitude
                pending = _Pending()
            case _:
                raise UnsupportedError(
                    f"{where}: cannot be folded; a network has Conv2d, Linear, BatchNorm1d/2d, AvgPool2d, "
                    "Dropout, Flatten and lapilli's neurons"
                )
    if pending.affine is not None or pending.pool is not None or not layers:
        raise UnsupportedError(f"the network does not end in neurons but in layer {key!r}; end it in an Accumulator")
    for layer in layers[:-1]:
        if layer.reset == "none":
            raise UnsupportedError(
                f"layer {layer.name!r}: an Accumulator does not spike and can only be the last layer"
            )
    return Folded(
        layers=tuple(layers), steps=model.steps, input_shape=tuple(model.input_shape), name=name, labels=labels
    )


def _neurons(name: str, affine: Affine, shape: tuple[int, ...], module: Neuron | Accumulator) -> FoldedLayer:
    if isinstance(module, Accumulator):
        return FoldedLayer(name=name, affine=affine, shape=shape, reset="none", beta=module.beta)
    # The module clamps its threshold before every forward pass; one that has not run yet may still be below.
    threshold = max(module.threshold.item(), module.bound)
    amplitude = threshold / module.dt if isinstance(module, LIFNeuron) else threshold
    return FoldedLayer(
        name=name,
        affine=affine,
        shape=shape,
        reset=module.reset,
        threshold=module.alpha * threshold,
        reset_amount=threshold if module.reset == "subtract" else 0.0,
        beta=module.beta,
        amplitude=amplitude,
    )
