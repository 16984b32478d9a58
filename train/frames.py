"""What passes between layers at all steps, computed only when and where it is asked for.

Spikes are kept as bits, and everything linear after them (weights, pooling, sums, frozen normalization) is a recipe:
:meth:`Frames.at` computes it for some samples or some channels. The layer that integrates, neurons or a batch
normalization in training mode, takes it in pieces, so no layer's currents of all steps, samples and channels have to be
in memory at once:

- Samples do not know of each other. Neurons take a few at a time (:data:`PIECE_BYTES`), with all their channels.
- Batch statistics are those of a channel over all samples and steps. Normalization takes a few channels at a time
  (:data:`BLOCK_BYTES`), and the neurons after it run on these.

How values are cut changes none of them. Each of these objects also has the mean of what it stands for, and a
:attr:`Frames.carrier` in the graph of the backward pass, which is explained in :mod:`.representation`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .convolution import convolution_backward
from .neurons import Neuron, mean_over_steps
from .spike_bits import ALL, Part, SpikeBits, empty, layout

Weights: TypeAlias = "nn.Conv2d | nn.Linear"
Norm: TypeAlias = "nn.BatchNorm1d | nn.BatchNorm2d"
Value: TypeAlias = Callable[[], Tensor]

PIECE_BYTES = 2**24
BLOCK_BYTES = 3 * 2**25
CHANNELS_TOGETHER = 16  # of float32 in a vector register of the convolutions


@dataclass
class Window:
    """The steps and samples of one forward pass.

    Attributes
    ----------
    steps, batch : int
    beta : float
        Of the neurons, for weighted means.
    covariance : bool
        Whether weights before a batch normalization get their exact gradient.
    products : torch.dtype, optional
        Of the gradients' convolutions; that of the values where it is left out.
    """

    steps: int
    batch: int
    beta: float
    covariance: bool
    products: torch.dtype | None = None
    _workspace: Tensor | None = field(default=None, repr=False)

    def by_step(self, x: Tensor) -> Tensor:
        """``[T*B, ...]`` to ``[T, B, ...]``."""
        return x.unflatten(0, (self.steps, -1))

    def workspace(self, channels: int, like: Tensor) -> Tensor:
        """Room for all samples at all steps ``[T*B, channels, ...]``; the same memory at every call."""
        shape = (self.steps * self.batch, channels, *like.shape[2:])
        size = math.prod(shape)
        if self._workspace is None or not size <= self._workspace.numel() <= 2 * size:
            self._workspace = None  # let go of it first
            self._workspace = like.new_empty(size)
        flat = self._workspace[:size]
        if layout(like, len(shape)) == torch.contiguous_format:
            return flat.view(shape)
        return flat.view(shape[0], *shape[2:], channels).movedim(-1, 1)


class Frames(ABC):
    """Values of a layer at all steps.

    Attributes
    ----------
    window : Window
    shape : tuple of int
        Of one sample at one step, ``(C, ...)``.
    widest : int
        Most values of one sample and step that exist at once while these are computed.
    sliceable : bool
        Some channels can be had without computing the others.
    takes_deviation : bool
        There is something behind whose gradient needs more than the carrier's where a batch normalization in training
        mode follows: weights, or another such normalization.
    uniform : bool
        The gradient arriving here must be the same at all steps.
    """

    def __init__(self, window: Window, shape: tuple[int, ...], *behind: Frames) -> None:
        self.window = window
        self.shape = shape
        self.widest = max([math.prod(shape), *(b.widest for b in behind)])
        self.sliceable = all(b.sliceable for b in behind)
        self.takes_deviation = any(b.takes_deviation for b in behind)
        self.uniform = any(b.uniform for b in behind)
        self._probes: dict[object, Tensor] = {}  # its own, by normalization

    def at(self, part: Part) -> Tensor:
        """Values at all steps of some samples and channels ``[T*b, c, ...]``; not to be changed."""
        return self._at(part)

    def mean(self) -> Value:
        """What gives the mean over the steps ``[B, C, ...]``, without keeping the steps."""
        return self._mean()

    @cached_property
    def carrier(self) -> Tensor:
        """Zeros ``[B, C, ...]`` without memory of their own; their gradient is ``N sum_n w_n g[n]``.

        To be asked for only when the values have been computed: the backward pass needs their statistics.
        """
        return self._make_carrier()

    def correlate(self, part: Part, deviation: Tensor, norm: object) -> None:
        """Note what the gradients behind need of ``norm``, a batch normalization in training mode after this.

        It sends a gradient that is the same at all steps, and one number for each channel times the deviation
        ``x[n] - xw`` of what it normalizes; ``deviation`` is that of some samples and channels, when they are computed.
        """
        if self.takes_deviation:
            self._correlate(part, deviation, norm)

    def probes(self, norm: object) -> list[Tensor]:
        """Zeros ``[C]`` of what noted something of ``norm``; their gradient is the number for each channel."""
        _ = self.carrier
        return self._find_probes(norm)

    @abstractmethod
    def _at(self, part: Part) -> Tensor: ...

    @abstractmethod
    def _mean(self) -> Value: ...

    @abstractmethod
    def _make_carrier(self) -> Tensor: ...

    def _correlate(self, part: Part, deviation: Tensor, norm: object) -> None:
        raise NotImplementedError  # where the gradient must be uniform

    def _find_probes(self, norm: object) -> list[Tensor]:
        return [self._probes[norm]] if norm in self._probes else []

    def samples(self) -> Iterator[slice]:
        """All samples, in pieces of about :data:`PIECE_BYTES`."""
        size = max(1, PIECE_BYTES // (4 * self.widest * self.window.steps))
        pieces = -(-self.window.batch // size)
        size = -(-self.window.batch // pieces)  # of nearly one size
        for start in range(0, self.window.batch, size):
            yield slice(start, start + size)

    def blocks(self) -> Iterator[tuple[Part, Tensor]]:
        """All values, each once; a tensor is valid until the next one is asked for."""
        for samples in self.samples():
            yield (samples, ALL), self.at((samples, ALL))


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    return like.new_zeros(()).expand(shape)


class Constant(Frames):
    """The same at every step: ``[B, ...]``, with a graph."""

    def __init__(self, window: Window, x: Tensor) -> None:
        super().__init__(window, tuple(x.shape[1:]))
        self._x = x
        self.sliceable = True

    def _at(self, part: Part) -> Tensor:
        x = self._x.detach()[part]
        return x.repeat(self.window.steps, *[1] * (x.ndim - 1))

    def _mean(self) -> Value:
        x = self._x.detach()
        return lambda: x

    def _make_carrier(self) -> Tensor:
        return self._x


class Given(Frames):
    """Tensors of all steps ``[T*B, ...]``, without a graph, or with that of their mean."""

    def __init__(self, window: Window, x: Tensor, carrier: Tensor | None = None) -> None:
        super().__init__(window, tuple(x.shape[1:]))
        self._x = x.detach()
        self._carrier = _zeros((window.batch, *self.shape), x) if carrier is None else carrier
        self.sliceable = True

    def _at(self, part: Part) -> Tensor:
        return self.window.by_step(self._x)[(ALL, *part)].flatten(0, 1)

    def _mean(self) -> Value:
        mean = mean_over_steps(self._x, self.window.steps)
        return lambda: mean

    def _make_carrier(self) -> Tensor:
        return self._carrier


class Spikes(Frames):
    """What neurons send: ``amplitude`` times spikes."""

    def __init__(self, window: Window, bits: SpikeBits, amplitude: Tensor, carrier: Tensor) -> None:
        super().__init__(window, tuple(bits.counts.shape[1:]))
        self._bits, self._amplitude, self._carrier = bits, amplitude, carrier
        self.sliceable = True

    def _at(self, part: Part) -> Tensor:
        return self._bits.read(self._amplitude, part)

    def _mean(self) -> Value:
        counts, each = self._bits.counts, self._amplitude / self.window.steps
        return lambda: counts * each

    def _make_carrier(self) -> Tensor:
        return self._carrier


class Dropped(Frames):
    """After dropout with another mask at every step: 0 or ``1/(1-p)``, also kept as bits."""

    @torch.no_grad()
    def __init__(self, window: Window, source: Frames, dropout: nn.Dropout) -> None:
        super().__init__(window, source.shape, source)
        self.uniform = True
        self._source = source
        # Drawn for all steps at once, as without pieces.
        like = source.at((slice(0, 1), ALL))
        kept = dropout(torch.ones((window.steps * window.batch, *source.shape), dtype=like.dtype, device=like.device))
        self._factor = kept.max()
        self._kept = SpikeBits(window.steps, (window.batch, *source.shape), kept)
        for n, frame in enumerate(window.by_step(kept)):
            self._kept.write(n, (ALL, ALL), frame > 0)
        self._kept_mean = mean_over_steps(kept, window.steps, window.beta)
        del kept
        self._mean_sent = torch.cat(
            [mean_over_steps(self.at(p), window.steps) for p in ((s, ALL) for s in self.samples())]
        )

    def _at(self, part: Part) -> Tensor:
        return self._source.at(part) * self._kept.read(self._factor, part)

    def _mean(self) -> Value:
        mean = self._mean_sent
        return lambda: mean

    def _make_carrier(self) -> Tensor:
        return cast("Tensor", _Dropped.apply(self._source.carrier, self._kept_mean))


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, carrier: Tensor, kept: Tensor) -> Tensor:
        ctx.save_for_backward(kept)
        return _zeros(tuple(carrier.shape), carrier)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad * ctx.saved_tensors[0], None


class Mapped(Frames):
    """Identity, flattening or pooling."""

    def __init__(self, window: Window, source: Frames, module: nn.Module) -> None:
        shape = tuple(module(torch.empty((1, *source.shape), device="meta")).shape[1:])
        super().__init__(window, shape, source)
        self._source, self._module = source, module
        if isinstance(module, nn.Flatten):  # its channels are others than those behind it
            self.uniform = self.uniform or self.takes_deviation
            self.sliceable = False

    def _at(self, part: Part) -> Tensor:
        return self._module(self._source.at(part))

    def _mean(self) -> Value:
        module, mean = self._module, self._source.mean()
        return lambda: module(mean())

    def _correlate(self, part: Part, deviation: Tensor, norm: object) -> None:
        with torch.enable_grad():  # through the transposed map
            x = deviation.new_zeros((*deviation.shape[:2], *self._source.shape[1:])).requires_grad_()
            (back,) = torch.autograd.grad(self._module(x), x, deviation)
        self._source.correlate(part, back, norm)

    def _find_probes(self, norm: object) -> list[Tensor]:
        return self._source.probes(norm)

    def _make_carrier(self) -> Tensor:
        carrier = self._source.carrier
        return cast("Tensor", _Again.apply(carrier, self._module, lambda: _zeros(tuple(carrier.shape), carrier)))


class Sum(Frames):
    """Two branches, added."""

    def __init__(self, window: Window, a: Frames, b: Frames) -> None:
        super().__init__(window, a.shape, a, b)
        self._a, self._b = a, b

    def _at(self, part: Part) -> Tensor:
        return self._a.at(part) + self._b.at(part)

    def _mean(self) -> Value:
        a, b = self._a.mean(), self._b.mean()
        return lambda: a() + b()

    def _correlate(self, part: Part, deviation: Tensor, norm: object) -> None:
        self._a.correlate(part, deviation, norm)
        self._b.correlate(part, deviation, norm)

    def _find_probes(self, norm: object) -> list[Tensor]:
        return self._a.probes(norm) + self._b.probes(norm)

    def _make_carrier(self) -> Tensor:
        return cast("Tensor", _Add.apply(self._a.carrier, self._b.carrier))


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:  # noqa: ARG004
        return _zeros(tuple(a.shape), a)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG004  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad, grad


class FrozenNorm(Frames):
    """Batch normalization with its running statistics: the same affine map at every step."""

    def __init__(self, window: Window, source: Frames, norm: Norm) -> None:
        super().__init__(window, source.shape, source)
        self.uniform = True
        self._source, self._norm = source, norm

    def _at(self, part: Part) -> Tensor:
        return _frozen(self._norm, self._source.at(part), self._norm.weight, self._norm.bias, part[1])

    def _mean(self) -> Value:
        norm, mean = self._norm, self._source.mean()
        return lambda: _frozen(norm, mean(), norm.weight, norm.bias)

    def _make_carrier(self) -> Tensor:
        norm = self._norm
        trained = [p for p in (norm.weight, norm.bias) if p is not None]
        # Only a trained norm.weight asks for the mean of what is normalized.
        carrier = self._source.carrier
        needed = norm.weight is not None and norm.weight.requires_grad
        value = self._source.mean() if needed else lambda: _zeros(tuple(carrier.shape), carrier)

        def again(x: Tensor, *parameters: Tensor) -> Tensor:
            given = iter(parameters)
            weight, bias = (None if p is None else next(given) for p in (norm.weight, norm.bias))
            return _frozen(norm, x, weight, bias)

        return cast("Tensor", _Again.apply(carrier, again, value, *trained))


def _frozen(norm: Norm, x: Tensor, weight: Tensor | None, bias: Tensor | None, channels: slice = ALL) -> Tensor:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = norm.running_mean[channels], norm.running_var[channels]
    weight, bias = (None if p is None else p[channels] for p in (weight, bias))
    return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, norm.eps)


class _Again(torch.autograd.Function):
    """A map that is affine, the same at every step: differentiated at the mean, when the gradient arrives."""

    @staticmethod
    def forward(ctx: Any, carrier: Tensor, run: Callable[..., Tensor], value: Value, *parameters: Tensor) -> Tensor:
        ctx.run, ctx.value, ctx.parameters = run, value, parameters
        return _zeros(tuple(run(carrier, *parameters).shape), carrier)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        wanted = [ctx.needs_input_grad[0], *ctx.needs_input_grad[3:]]
        with torch.enable_grad():
            inputs = [t.detach().requires_grad_(w) for t, w in zip((ctx.value(), *ctx.parameters), wanted, strict=True)]
            out = ctx.run(*inputs)
        found = iter(torch.autograd.grad(out, [t for t in inputs if t.requires_grad], grad))
        to_carrier, *to_parameters = (next(found) if w else None for w in wanted)
        return to_carrier, None, None, *to_parameters


class Weighted(Frames):
    """Sums of a convolution or a dense layer."""

    def __init__(self, window: Window, source: Frames, weights: Weights) -> None:
        if isinstance(weights, nn.Linear):
            shape: tuple[int, ...] = (*source.shape[:-1], weights.out_features)
        else:
            like = torch.empty((1, *source.shape), dtype=weights.weight.dtype, device="meta")
            geometry: Any = (weights.stride, weights.padding, weights.dilation, weights.groups)
            shape = tuple(F.conv2d(like, weights.weight.detach().to("meta"), None, *geometry).shape[1:])
        super().__init__(window, shape, source)
        self.uniform = self.uniform or source.takes_deviation  # weights would mix its channels
        self.takes_deviation = True
        self.sliceable = not (isinstance(weights, nn.Conv2d) and weights.groups > 1) and len(shape) in (1, 3)
        self._source, self._weights = source, weights
        self._covariances: dict[object, tuple[Tensor, Tensor]] = {}  # of weight and bias, by normalization

    def _at(self, part: Part) -> Tensor:
        samples, channels = part
        return _weigh(self._weights, self._source.at((samples, ALL)), channels)

    def _mean(self) -> Value:
        weights, mean = self._weights, self._source.mean()
        return lambda: _weigh(weights, mean())

    def _correlate(self, part: Part, deviation: Tensor, norm: object) -> None:
        """Add some samples and channels to ``cov``."""
        samples, channels = part
        if norm not in self._covariances:
            self._covariances[norm] = torch.zeros_like(self._weights.weight), deviation.new_zeros(self.shape[0])
        covariance, bias_covariance = self._covariances[norm]
        inputs, products = self._source.at((samples, ALL)), self.window.products
        covariance[channels] += _to_weight(self._weights, inputs, deviation, products, channels)
        bias_covariance[channels] += over_channels(deviation)

    def _make_carrier(self) -> Tensor:
        weights, source = self._weights, self._source
        norms, covariances = list(self._covariances), list(self._covariances.values())
        self._covariances = {}  # the graph has them from now on
        parameters = (weights.weight, weights.bias, weights)
        inputs = (source.carrier, *parameters, source.mean(), self.shape, self.window.products, covariances)
        carrier, *probes = cast("Any", _Sums.apply(*inputs))
        self._probes = dict(zip(norms, probes, strict=True))
        return carrier


def _weigh(weights: Weights, x: Tensor, channels: slice = ALL) -> Tensor:
    weight = weights.weight.detach()[channels]
    bias = None if weights.bias is None else weights.bias.detach()[channels]
    if isinstance(weights, nn.Linear):
        return F.linear(x, weight, bias)
    return F.conv2d(x, weight, bias, weights.stride, weights.padding, weights.dilation, weights.groups)


def over_channels(x: Tensor) -> Tensor:
    """Sum of ``[B, C, ...]`` over all but the channels."""
    return x.sum([0, *range(2, x.ndim)])


def _to_weight(
    weights: Weights, inputs: Tensor, sums: Tensor, products: torch.dtype | None, channels: slice = ALL
) -> Tensor:
    """``sum_b sums[b] (x) inputs[b]``: the gradient of weights whose sums have the gradient ``sums``."""
    if isinstance(weights, nn.Linear):
        return sums.flatten(0, -2).T @ inputs.flatten(0, -2)
    return _convolution_backward(weights, inputs, sums, products, channels, to_input=False)


def _to_input(weights: Weights, weight: Tensor, inputs: Tensor, sums: Tensor, products: torch.dtype | None) -> Tensor:
    if isinstance(weights, nn.Linear):
        return sums @ weight
    return _convolution_backward(weights, inputs, sums, products, to_input=True)


def _convolution_backward(
    conv: nn.Conv2d,
    inputs: Tensor,
    sums: Tensor,
    products: torch.dtype | None,
    channels: slice = ALL,
    *,
    to_input: bool,
) -> Tensor:
    """The gradient of the input, or else of the weights."""
    grad, x, weight = (t.to(products or sums.dtype) for t in (sums, inputs, conv.weight.detach()[channels]))
    padding = cast("tuple[int, int]", conv.padding)
    wanted = (to_input, not to_input)
    found = convolution_backward(grad, x, weight, conv.stride, padding, conv.dilation, conv.groups, wanted)
    return cast("Tensor", found[wanted.index(True)]).to(sums.dtype)


class _Sums(torch.autograd.Function):
    """Weights: to the carrier of their sums, and a probe of zeros ``[C_out]`` for each covariance."""

    @staticmethod
    def forward(
        ctx: Any,
        carrier: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        weights: Weights,
        mean: Value,
        shape: tuple[int, ...],
        products: torch.dtype | None,
        covariances: list[tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(weight, *(t for pair in covariances for t in pair))
        ctx.weights, ctx.mean, ctx.products, ctx.has_bias = weights, mean, products, bias is not None
        return _zeros((len(carrier), *shape), carrier), *(weight.new_zeros(len(weight)) for _ in covariances)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *probes: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        weight, *covariances = ctx.saved_tensors
        mean = ctx.mean()
        to_weight = _to_weight(ctx.weights, mean, grad, ctx.products)
        to_bias = over_channels(grad) if ctx.has_bias else None
        for probe, covariance, bias_covariance in zip(probes, covariances[::2], covariances[1::2], strict=True):
            to_weight += covariance.mul_(probe.view(-1, *[1] * (weight.ndim - 1)))
            if to_bias is not None:
                to_bias += probe * bias_covariance
        to_input = _to_input(ctx.weights, weight, mean, grad, ctx.products) if ctx.needs_input_grad[0] else None
        return to_input, to_weight, to_bias, *[None] * 5


class TrainedNorm(Frames):
    """Batch normalization with the statistics of the batch."""

    def __init__(self, window: Window, source: Frames, norm: Norm) -> None:
        super().__init__(window, source.shape, source)
        self.takes_deviation = True
        self._source, self._norm = source, norm
        self._token = object()  # stands for this; a reference to it from behind would be a cycle, and keep the spikes
        self._dense: Tensor | None = None
        self._saved: tuple[Tensor, ...] = ()
        self._moments: dict[object, tuple[Tensor, Tensor]] = {}  # by the normalization that follows

    @torch.no_grad()
    def blocks(self) -> Iterator[tuple[Part, Tensor]]:
        """All values, some channels at a time; the statistics are taken on the way."""
        norm, window = self._norm, self.window
        momentum = norm.momentum
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            momentum = 1 / float(norm.num_batches_tracked) if momentum is None else momentum
        means: list[list[Tensor]] = []
        for channels in self._channels():
            x = self._gather(channels)
            mean = mean_over_steps(x, window.steps)
            weighted = mean if window.beta == 1.0 else mean_over_steps(x, window.steps, window.beta)
            found = _normalize(norm, x, channels, momentum or 0.0)
            means.append([mean, weighted, *found])
            yield (ALL, channels), x
        mean, weighted = (torch.cat([m[i] for m in means], 1) for i in (0, 1))
        mean = weighted if window.beta == 1.0 else mean
        centre, inverse = (torch.cat([m[i] for m in means]) for i in (2, 3))
        self._saved = (mean, weighted, centre, inverse)

    def _channels(self) -> Iterator[slice]:
        count = self.shape[0]
        size = 4 * self.window.steps * self.window.batch * math.prod(self.shape)
        blocks = max(1, math.ceil(size / BLOCK_BYTES)) if self._source.sliceable else 1
        together = -(-count // (blocks * CHANNELS_TOGETHER)) * CHANNELS_TOGETHER
        for start in range(0, count, together):
            yield slice(start, min(start + together, count))

    def _gather(self, channels: slice) -> Tensor:
        """What is to be normalized, of all samples."""
        window, source = self.window, self._source
        x: Tensor | None = None
        for samples in source.samples():
            piece = source.at((samples, channels))
            if x is None:
                x = window.workspace(channels.stop - channels.start, piece)
            window.by_step(x)[:, samples] = window.by_step(piece)
            if window.covariance and source.takes_deviation:
                deviation = window.by_step(piece) - mean_over_steps(piece, window.steps, window.beta)
                source.correlate((samples, channels), deviation.flatten(0, 1), self._token)
        assert x is not None
        return x

    def _settle(self) -> Tensor:
        if self._dense is None:
            for part, x in self.blocks():
                if self._dense is None:
                    self._dense = empty((len(x), *self.shape), x.dtype, x)
                self._dense[part] = x
        assert self._dense is not None
        return self._dense

    def _at(self, part: Part) -> Tensor:
        return self.window.by_step(self._settle())[(ALL, *part)].flatten(0, 1)

    def _mean(self) -> Value:
        mean = mean_over_steps(self._settle(), self.window.steps)
        return lambda: mean

    def _correlate(self, part: Part, deviation: Tensor, norm: object) -> None:
        """Add some samples and channels to the sums of ``deviation`` and ``deviation xhat[n]``."""
        channels, shape = part[1], [1, -1, *[1] * (deviation.ndim - 2)]
        centre, inverse = (t[channels] for t in self._saved[2:])
        if norm not in self._moments:
            self._moments[norm] = deviation.new_zeros(self.shape[0]), deviation.new_zeros(self.shape[0])
        xhat = (self._source.at(part) - centre.view(shape)) * inverse.view(shape)
        alone, with_xhat = self._moments[norm]
        alone[channels] += over_channels(deviation)
        with_xhat[channels] += over_channels(deviation * xhat)
        self._source.correlate(part, deviation, norm)

    def _make_carrier(self) -> Tensor:
        norm, source, norms = self._norm, self._source, list(self._moments)
        carrier = source.carrier
        probes = [source.probes(token) for token in (self._token, *norms)]
        inputs = (carrier, norm.weight, norm.bias, self.window.steps, *self._saved, list(self._moments.values()))
        carrier, *own = cast(
            "Any", _Normalized.apply(*inputs, [len(p) for p in probes], *(p for ps in probes for p in ps))
        )
        self._probes = dict(zip(norms, own, strict=True))
        return carrier


def _normalize(norm: Norm, x: Tensor, channels: slice, momentum: float) -> tuple[Tensor, Tensor]:
    """Normalize some channels ``[T*B, c, ...]`` in place; the mean and 1/deviation of each."""
    parameters = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    normalize: Any = torch.native_batch_norm
    given = (x, *(None if p is None else p[channels] for p in parameters), True, momentum, norm.eps)
    if x.is_cpu:  # the statistics are taken first, then every value is replaced
        _, centre, inverse = normalize(*given, out=(x, *(x.new_empty(x.shape[1]) for _ in range(2))))
    else:
        out, centre, inverse = normalize(*given)
        x.copy_(out)
    return centre, inverse


class _Normalized(torch.autograd.Function):
    """Batch normalization in training mode: to its carrier, and a probe ``[C]`` for each normalization that follows.

    From a probe arrives ``p``: besides what is the same at all steps, the gradient has ``p`` times the deviation of
    what that normalization takes. ``moments``: for each, sums of the deviation alone, and times ``xhat[n]``.
    ``counts``: how many probes behind get what this normalization adds, and what each following one has sent.
    """

    @staticmethod
    def forward(
        ctx: Any,
        carrier: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        steps: int,
        mean: Tensor,
        weighted: Tensor,
        centre: Tensor,
        inverse: Tensor,
        moments: list[tuple[Tensor, Tensor]],
        counts: list[int],
        *probes: Tensor,  # noqa: ARG004
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(mean, weighted, gamma, centre, inverse, *(t for pair in moments for t in pair))
        ctx.steps, ctx.counts, ctx.has_beta = steps, counts, beta is not None
        return _zeros(tuple(carrier.shape), carrier), *(torch.zeros_like(centre) for _ in moments)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *sent: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        mean, weighted, gamma, centre, inverse, *moments = ctx.saved_tensors
        shape = [1, -1, *[1] * (grad.ndim - 2)]
        xhat = (mean - centre.view(shape)) * inverse.view(shape)
        count = ctx.steps * grad.numel() / grad.shape[1]
        to_beta, to_gamma = over_channels(grad), over_channels(grad * xhat)
        for p, alone, with_xhat in zip(sent, moments[::2], moments[1::2], strict=True):
            to_beta += p * alone
            to_gamma += p * with_xhat
        scale = inverse if gamma is None else gamma * inverse
        # At each step dx[n] = scale (g[n] - mean g - xhat[n] mean(g xhat)); their sum needs a mean of xhat only.
        # The weighted sum of a deviation is 0, so what was sent by it goes on as it came.
        c = -scale * to_gamma / count
        uniform = scale.view(shape) * (grad - (ctx.steps / count) * to_beta.view(shape))
        to_carrier = uniform + (ctx.steps * c * inverse).view(shape) * (weighted - centre.view(shape))
        to_probes = [c * inverse, *(scale * p for p in sent)]
        return (
            to_carrier,
            None if gamma is None else to_gamma,
            to_beta if ctx.has_beta else None,
            *[None] * 7,
            *(p for p, count in zip(to_probes, ctx.counts, strict=True) for _ in range(count)),
        )


@torch.no_grad()
def fire(neuron: Neuron, source: Frames) -> tuple[SpikeBits, Tensor]:
    """Run neurons: their spikes, and the :class:`.neurons.Region` of their mean currents ``[B, C, ...]``."""
    window, shape = source.window, (source.window.batch, *source.shape)
    neuron.keep_bound()
    bits = regions = None
    for part, x in source.blocks():
        if bits is None or regions is None:
            bits, regions = SpikeBits(window.steps, shape, x), empty(shape, torch.uint8, x)
        regions[part] = neuron.region(mean_over_steps(x, window.steps, neuron.beta))
        currents = window.by_step(x)
        membrane = neuron.membrane(currents[0])
        for n, current in enumerate(currents):
            bits.write(n, part, membrane.step(current))
    assert bits is not None
    assert regions is not None
    return bits, regions
