"""Bit-true training: the forward pass is the chip's integer arithmetic, the backward pass is DSR's clamp rule.

A :class:`BitTrueNetwork` holds real *latent* weights and biases. Its forward pass rounds them to the integers of a
description and runs that description exactly (:mod:`lapilli.train.integer_forward`), so its scores and spikes are
those of every other executor. DSR's backward pass never differentiates the spike dynamics: with ``a`` the (weighted)
mean of the spikes of a population and ``z`` the (weighted) mean of its input in units of ``rho``,

    z = sum over incoming connections of W a_source / rho + b / rho,         a ~ clamp(z, 0, 1)

so the gradient of ``a`` is that of the clamp, where forward ``a`` and the decision whether ``0 <= z <= 1`` come from
the spikes and currents that really occurred. That is a network of rates without a time axis: memory does not grow with
the number of steps. (The official code carries equal gradients through all steps, which gives the same sums; for LIF
it takes the plain instead of the weighted mean of the spikes for the weights' gradient, we take the weighted one.)
Rounding is passed straight through.

What a spike subtracts stands for the unit: ``rho`` for reset "subtract", the threshold for "zero". Latent weights and
biases are in this unit, as if every threshold and spike were 1, so that ordinary learning rates work. Thresholds
themselves stay: a threshold and the scale of the weights into its population say the same thing twice.

A description whose metadata names TSSL-BP as its gradient is trained with that one (:mod:`.bit_true_spikes`): the
forward pass is the same, the graph has a time axis.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..errors import DataError, DescriptionError, FileFormatError, UnsupportedError
from ..network import (
    DECAY_ONE,
    INPUT,
    Connection,
    Conv2d,
    Dense,
    IntArray,
    Network,
    Population,
    Scale,
    Shape,
    Synapse,
    from_structure,
)
from ..recording import Executor, Recording, count_weights
from .bit_true_spikes import spike_trains
from .convolution import convolution_backward
from .executor import outcome, recording, seen, tells_means
from .integer_forward import Outcome, run, step_weights
from .tssl import Version

BIAS_MANTISSA = 4095  # 13-bit signed mantissa of Loihi's bias, shifted left by 0..7 bits for a whole population
FRACTION_GRID = 64
DEFAULT_LOGIT_RANGE = 6.0  # scores of a network without scales: DSR's initial threshold, the largest score in training


class _WithValue(torch.autograd.Function):
    """``apply(carrier, value)``: ``value`` forward, the gradient goes to ``carrier`` unchanged."""

    @staticmethod
    def forward(ctx: Any, carrier: Tensor, value: Tensor) -> Tensor:
        ctx.like = carrier.dtype
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad.to(ctx.like), None


class _ClampRule(torch.autograd.Function):
    """``apply(z, mean_input, rate)``: ``rate`` forward; to ``z`` goes the gradient of ``clamp`` at ``mean_input``."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, mean_input: Tensor, rate: Tensor) -> Tensor:
        ctx.save_for_backward((mean_input >= 0) & (mean_input <= 1))
        return rate.to(z.dtype, copy=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (inside,) = ctx.saved_tensors
        return grad * inside, None, None


class _Product(torch.autograd.Function):
    """``W x`` of one connection, for its gradients alone: nobody asks for its value, which is zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, synapse: Synapse, target: Shape, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.synapse, ctx.dtype = synapse, dtype
        return weight.new_zeros(()).expand(len(x), *target)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        kept = (x.dtype, weight.dtype)
        x, weight, grad = (_for_products(t, ctx.dtype) for t in (x, weight, grad))
        wanted = ctx.needs_input_grad[:2]
        synapse: Synapse = ctx.synapse
        match synapse:
            case Dense():
                rows = grad.flatten(1)
                to_x = (rows @ weight).reshape(x.shape) if wanted[0] else None
                to_weight = rows.T @ x.flatten(1) if wanted[1] else None
            case Conv2d(stride=stride, padding=padding, dilation=dilation, groups=groups):
                to_x, to_weight = convolution_backward(grad, x, weight, stride, padding, dilation, groups, wanted)
            case Scale():
                to_x = grad * weight.reshape(-1, *[1] * (x.ndim - 2)) if wanted[0] else None
                to_weight = (grad * x).sum([0, *range(2, x.ndim)]) if wanted[1] else None
        found = (None if g is None else g.to(d) for g, d in zip((to_x, to_weight), kept, strict=True))
        return *found, None, None, None


def _for_products(t: Tensor, dtype: torch.dtype) -> Tensor:
    """In the type of the products, and images in the layout that is fastest on a CPU."""
    return t.to(dtype, memory_format=torch.channels_last) if t.ndim == 4 else t.to(dtype)


class BitTrueNetwork(nn.Module):
    """A description as a trainable torch module.

    Parameters
    ----------
    network : Network
        Without cycles, with a readout. Thresholds, decays, resets and geometry stay as they are.
    latent : mapping of float64 arrays, optional
        Weights (integer steps) and biases (state units) before rounding, by their names in ``network.tensors()``
        (``lapilli.export.quantize_with_latent``). Without them training starts from the integers.
    executor : Executor, optional
        Runs the forward pass on the CPU, where its recording tells what the gradient needs (:func:`.executor.outcome`).
        All executors give the same integers, so it changes nothing but the speed.
    mixed_precision : bool
        Take the products of the backward pass in bfloat16. The forward pass stays what it is.

    Attributes
    ----------
    weights : nn.ParameterList of float32
        Latent weights, one for each connection in the network's order.
    biases : nn.ParameterList of float64
        Latent biases, one for each population in the network's order.

    Raises
    ------
    UnsupportedError
        If the network is recurrent, or a population sends graded spikes.
    DescriptionError
        If it has no readout.
    """

    def __init__(
        self,
        network: Network,
        latent: Mapping[str, npt.NDArray[np.float64]] | None = None,
        *,
        executor: Executor | None = None,
        mixed_precision: bool = False,
    ) -> None:
        super().__init__()
        if network.readout is None:
            raise DescriptionError(f"network {network.name!r} has no readout; give it one to train it")
        self.network = network
        self.executor = executor
        self._products = torch.bfloat16 if mixed_precision else torch.float32
        if not network.acyclic:
            raise UnsupportedError(
                f"network {network.name!r} is recurrent; bit-true training takes networks without cycles"
            )
        if graded := [p.name for p in network.populations if p.graded]:
            raise UnsupportedError(
                f"population {graded[0]!r} sends graded spikes; bit-true training has gradients for plain spikes only"
            )
        self.gradient = _gradient(network)
        latent = latent or {}
        self._weight_grid = [_WeightGrid(network, c) for c in network.connections]
        self._bias_grid = [_BiasGrid(network, p) for p in network.populations]
        self.weights = nn.ParameterList(
            grid.latent(c.synapse.weight, latent.get(f"{c.name}/weight"), torch.float32)
            for grid, c in zip(self._weight_grid, network.connections, strict=True)
        )
        self.biases = nn.ParameterList(
            grid.latent(p.bias, latent.get(f"{p.name}/bias"), torch.float64)
            for grid, p in zip(self._bias_grid, network.populations, strict=True)
        )
        self._gain, self._carrier_gain = _logit_gains(network)
        for name, tensor in _description(network).items():
            self.register_buffer(name, tensor)

    @classmethod
    def from_state(cls, where: str, state: Mapping[str, Tensor]) -> BitTrueNetwork:
        """Rebuild a module from its ``state_dict()`` alone: the description it started from is part of it.

        Parameters
        ----------
        where : str
            What the state was read from, for messages.
        state : mapping of tensors

        Raises
        ------
        FileFormatError
            If the state is not that of a BitTrueNetwork.
        """
        try:
            head = json.loads(bytes(state["description"].cpu().numpy().astype(np.uint8)))
            arrays = [state[f"array_{i}"].cpu().numpy() for i in range(len(head["arrays"]))]
            tensors = {
                name: array.view(np.float64) if name.startswith(f"{INPUT}/") else array
                for name, array in zip(head["arrays"], arrays, strict=True)
            }
            model = cls(from_structure(head["structure"], tensors, head["metadata"]))
            model.load_state_dict(dict(state))
        except (KeyError, TypeError, ValueError, RuntimeError, DescriptionError) as error:
            reason = str(error).replace("\n", " ")
            raise FileFormatError(f"{where}: does not hold a bit-true network ({reason})") from None
        return model

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Tensor],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for name, mine in _description(self.network).items():
            theirs = state_dict.get(prefix + name)
            if theirs is not None and not torch.equal(theirs.cpu(), mine):
                raise FileFormatError(
                    "the bit-true training to continue started from another network; train without resuming"
                )
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def forward(self, x: Tensor) -> Tensor:
        """Class scores.

        Parameters
        ----------
        x : [B, *shape] (the same at every step) or [T, B, *shape]
            Floating point: real values, quantized as :meth:`lapilli.network.Input.encode` does. Integers: as they are.

        Returns
        -------
        float64 [B, N]
            ``lapilli.recording.scores`` times a positive constant, so that predictions are the deployed network's,
            ties included.

        Raises
        ------
        DataError
            If the shape or range does not fit.
        """
        readout = self.network.readout
        assert readout is not None
        weights, biases = self._integers()
        outcome = self._outcome(x, weights, biases)
        if readout.kind == "membrane":
            scores = outcome.v_final[readout.population].double()
        else:
            spikes = outcome.spikes[readout.population].double()
            scores = torch.tensordot(torch.tensor(count_weights(self.network)).to(spikes), spikes, 1)
        logits = scores.flatten(1) * self._gain
        if not torch.is_grad_enabled():
            return logits
        if self.gradient == "dsr":
            carrier = self._carrier(outcome, weights, biases).flatten(1)
        else:
            carrier = self._mean_of_trains(x, weights, biases).flatten(1)
        return cast("Tensor", _WithValue.apply(carrier * self._carrier_gain, logits))

    @property
    def output_current_beta(self) -> float | None:
        """Part of the current kept from step to step, where the readout sums the last spikes behind synapses."""
        readout = self.network.readout
        p = self.network.population(readout.population) if readout is not None else None
        summed = p is not None and not p.spikes and p.dv == 0 and p.du < DECAY_ONE
        return 1 - p.du / DECAY_ONE if p is not None and summed and self._output is not None else None

    @property
    def _output(self) -> str | None:
        """The population whose spikes are read: the readout itself, or the only one before it, neuron by neuron."""
        assert self.network.readout is not None
        p = self.network.population(self.network.readout.population)
        if p.spikes:
            return p.name
        incoming = list(self.network.incoming(p.name))
        alone = len(incoming) == 1 and isinstance(incoming[0].synapse, Scale) and incoming[0].source != INPUT
        return incoming[0].source if alone else None

    def output_spikes(self, x: Tensor) -> Tensor:
        """Spikes of the output population, with TSSL-BP's graph: float32 ``[T, B, classes]``.

        Raises
        ------
        UnsupportedError
            If the description does not come from a TSSL-BP network whose output neurons spike.
        """
        if self._output is None or self.gradient == "dsr":
            raise UnsupportedError("losses of spike trains need a network of method tssl-bp that reads output spikes")
        return self._trains(x, *self._integers())[0][self._output].flatten(2)

    def _trains(self, x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        w = {
            c.name: cast("Tensor", _WithValue.apply(latent * grid.step, value))
            for c, grid, latent, value in zip(
                self.network.connections, self._weight_grid, self.weights, weights, strict=True
            )
        }
        b = {
            p.name: cast("Tensor", _WithValue.apply(latent * grid.step, value))
            for p, grid, latent, value in zip(
                self.network.populations, self._bias_grid, self.biases, biases, strict=True
            )
        }
        return spike_trains(self.network, self.encode(x), w, b, VERSIONS[self.gradient])

    def _mean_of_trains(self, x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
        """The rate of the readout population, or its mean input where its membrane is read, with TSSL-BP's graph."""
        assert self.network.readout is not None
        p = self.network.population(self.network.readout.population)
        spikes, drive = self._trains(x, weights, biases)
        steps = self.network.steps
        keep, leak = (1 - d / DECAY_ONE for d in (p.du, p.dv))
        if p.spikes:
            return torch.tensordot(torch.tensor(step_weights(p, steps)).to(spikes[p.name]), spikes[p.name], 1)
        reached = [sum(keep**k * leak ** (n - k) for k in range(n + 1)) for n in range(steps)]
        weights_of_steps = torch.tensor(reached[::-1]) / (_unit(self.network, p) * sum(leak**n for n in range(steps)))
        return torch.tensordot(weights_of_steps.to(drive), drive, 1)

    def _carrier(self, outcome: Outcome, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
        """The graph of the network of rates: ``a`` of the readout population, or ``z`` where its membrane is read.

        Only its gradients mean anything; what it would be worth is known from the spikes.
        """
        network, readout = self.network, self.network.readout
        w = {
            c.name: cast("Tensor", _WithValue.apply(latent, (value / grid.step).to(latent.dtype)))
            for c, grid, latent, value in zip(
                network.connections, self._weight_grid, self.weights, weights, strict=True
            )
        }
        b = {
            p.name: cast("Tensor", _WithValue.apply(latent, value / grid.step)).to(torch.float32)
            for p, grid, latent, value in zip(network.populations, self._bias_grid, self.biases, biases, strict=True)
        }
        mean_sent = outcome.mean_sent[INPUT]
        rates = {INPUT: mean_sent}
        for p in self.network.flow:
            z = b[p.name].expand(len(mean_sent), *p.shape)
            for c in network.incoming(p.name):
                product = _Product.apply(rates[c.source], w[c.name], c.synapse, p.shape, self._products)
                z = z + _gain(network, p, c) * cast("Tensor", product)
            if readout is not None and readout.kind == "membrane" and readout.population == p.name:
                return z
            if p.spikes:
                mean_input = outcome.mean_input[p.name] / _unit(network, p)
                rates[p.name] = cast("Tensor", _ClampRule.apply(z, mean_input, outcome.mean_sent[p.name]))
        assert readout is not None
        return rates[readout.population]

    @torch.no_grad()
    def _integers(self) -> tuple[list[Tensor], list[Tensor]]:
        """Present integers; latent values are first brought back into their range, as DSR does with its thresholds."""
        weights = [grid.integers(p) for grid, p in zip(self._weight_grid, self.weights, strict=True)]
        biases = [grid.integers(p) for grid, p in zip(self._bias_grid, self.biases, strict=True)]
        return weights, biases

    def _outcome(self, x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Outcome:
        """Run the integers; with gradients, take the means that DSR's need."""
        assert self.network.readout is not None
        means = torch.is_grad_enabled() and self.gradient == "dsr"
        if self.executor is not None and x.device.type == "cpu" and (not means or tells_means(self.network)):
            network, encoded = self._with(weights, biases), self._encoded(x)
            recording = self.executor(network, encoded)
            found = outcome(network, encoded, recording) if means else seen(recording)
            if found is not None:
                return found
        return self._run(x, weights, biases, keep=[self.network.readout.population], means=means)

    def _run(self, x: Tensor, weights: list[Tensor], biases: list[Tensor], **options: Any) -> Outcome:
        by_connection = {c.name: w for c, w in zip(self.network.connections, weights, strict=True)}
        by_population = {p.name: b for p, b in zip(self.network.populations, biases, strict=True)}
        return run(self.network, self.encode(x), by_connection, by_population, **options)

    def encode(self, x: Tensor) -> Tensor:
        """Integers for ``x``, as :meth:`lapilli.network.Input.encode` gives them, on the device of ``x``: float64.

        Raises
        ------
        DataError
            If the shape does not fit, a value is not finite, or an integer is out of range.
        """
        given = self.network.input
        n = len(given.shape)
        if x.ndim not in (n + 1, n + 2) or tuple(x.shape[x.ndim - n :]) != given.shape:
            raise DataError(
                f"input of shape {tuple(x.shape)} does not fit the network: give [samples, *{given.shape}] "
                f"or [steps, samples, *{given.shape}]"
            )
        if x.ndim == n + 2 and len(x) != self.network.steps:
            raise DataError(f"the network runs {self.network.steps} steps; the input has {len(x)} frames")
        if not x.is_floating_point():
            if x.numel() and not (given.low <= int(x.min()) and int(x.max()) <= given.high):
                raise DataError(f"integer input is outside the network's {given.low}..{given.high}")
            return x.detach().double()
        real = x.detach().double()
        if not bool(torch.isfinite(real).all()):
            raise DataError("input has values that are not finite (nan or infinity)")
        scale, zero = (torch.tensor(a, device=x.device) for a in (given.scale, given.zero))
        return torch.round((real - zero) / scale).clamp(given.low, given.high)

    def _encoded(self, x: Tensor) -> IntArray:
        """:meth:`encode`, as an executor takes it."""
        return self.encode(x).to(torch.int64).numpy()

    @torch.no_grad()
    def record(self, x: Tensor, trace: Collection[str] = ()) -> Recording:
        """Spikes of every population for a batch, from the present integers; as an executor gives them."""
        everything = [p.name for p in self.network.populations]
        return recording(self._run(x, *self._integers(), keep=everything, trace=trace, count=True))

    @torch.no_grad()
    def spike_rates(self, x: Tensor) -> dict[str, float]:
        """Mean spikes per neuron and step of every spiking population for a batch."""
        if self.executor is not None and x.device.type == "cpu":
            recording = self.executor(self.to_network(), self._encoded(x))
        else:
            recording = self.record(x)
        return {name: float(spikes.mean()) for name, spikes in recording.spikes.items()}

    def to_network(self, metadata: Mapping[str, Any] | None = None) -> Network:
        """The description of the present integers.

        Parameters
        ----------
        metadata : mapping, optional
            Replaces the metadata of the network that training started from.
        """
        return self._with(*self._integers(), metadata)

    def _with(self, weights: list[Tensor], biases: list[Tensor], metadata: Mapping[str, Any] | None = None) -> Network:
        connections = tuple(
            replace(c, synapse=replace(c.synapse, weight=w.cpu().numpy().astype(np.int64)))
            for c, w in zip(self.network.connections, weights, strict=True)
        )
        populations = tuple(
            replace(p, bias=b.cpu().numpy().astype(np.int64))
            for p, b in zip(self.network.populations, biases, strict=True)
        )
        kept = self.network.metadata if metadata is None else metadata
        return replace(self.network, populations=populations, connections=connections, metadata=kept)


VERSIONS: dict[str, Version] = {"tssl-bp, by element": "element", "tssl-bp, by layer": "layer"}


def _gradient(network: Network) -> str:
    """Which gradient trains a description: its metadata may say; else DSR's."""
    gradient = network.metadata.get("gradient", "dsr")
    if gradient != "dsr" and gradient not in VERSIONS:
        raise DescriptionError(
            f"network {network.name!r}: unknown gradient {gradient!r} in its metadata; "
            f"known: dsr, {', '.join(VERSIONS)}"
        )
    return gradient


def _description(network: Network) -> dict[str, Tensor]:
    """The description as tensors of integers (which ``module.float()`` leaves alone), for ``state_dict()``."""
    tensors = network.tensors()
    head = {"structure": network.structure(), "metadata": dict(network.metadata), "arrays": list(tensors)}
    text = json.dumps(head, sort_keys=True).encode()
    integers = [a.view(np.int64) if a.dtype == np.float64 else a for a in tensors.values()]
    return {"description": torch.tensor(list(text), dtype=torch.uint8)} | {
        f"array_{i}": torch.tensor(array) for i, array in enumerate(integers)
    }


class _Grid:
    """Integers ``grid * round(latent * step / grid)`` between ``low`` and ``high``."""

    def __init__(self, step: float, grid: int, low: int, high: int) -> None:
        self.step = step
        self.grid = grid
        self.low, self.high = low, high

    def integers(self, parameter: Tensor) -> Tensor:
        parameter.clamp_(self.low / self.step, self.high / self.step)
        rounded = torch.round(parameter.detach() * (self.step / self.grid)) * self.grid
        return rounded.clamp_(self.low, self.high)

    def latent(
        self, integers: npt.NDArray[Any], before: npt.NDArray[np.float64] | None, dtype: torch.dtype
    ) -> nn.Parameter:
        """A parameter that rounds to exactly these integers, and otherwise is what they were before rounding."""
        given = torch.tensor(integers, dtype=torch.float64)
        if before is not None and before.shape != integers.shape:
            raise DescriptionError(f"latent values have shape {before.shape}, the network's {integers.shape}")
        start = given if before is None else torch.tensor(before, dtype=torch.float64)
        parameter = (start / self.step).to(dtype)
        same = self.integers(parameter).double() == given
        return nn.Parameter(torch.where(same, parameter, (given / self.step).to(dtype)))


class _WeightGrid(_Grid):
    def __init__(self, network: Network, c: Connection) -> None:
        target = network.population(c.target)
        limit = 2 ** (c.weight_bits - 1) - 1
        unit_of_weight = 2.0 ** (target.fraction_bits + c.weight_exponent)
        super().__init__(_unit(network, target) / unit_of_weight, 1, min(-limit, int(c.synapse.weight.min())), limit)


class _BiasGrid(_Grid):
    """The grid that a population's biases are on: the largest power of two up to 64 that divides all of them.

    64 (one weight step) where all are zero. 128 only where the register needs it: beyond 4095 * 64.
    """

    def __init__(self, network: Network, p: Population) -> None:
        largest = int(np.abs(p.bias).max())
        most = FRACTION_GRID if largest <= BIAS_MANTISSA * FRACTION_GRID else 2 * FRACTION_GRID
        grid = math.gcd(int(np.gcd.reduce(p.bias.ravel())), most)
        limit = min(max(largest, BIAS_MANTISSA * grid), p.v_max // grid * grid)
        super().__init__(_unit(network, p), grid, -limit, limit)


def _unit(network: Network, p: Population) -> float:
    """State units in one unit of latent weights and biases."""
    if p.reset == "subtract" and p.reset_amount > 0:
        return float(p.reset_amount)
    if p.spikes:
        return p.threshold + 1.0
    if p.scale is not None:
        return p.scale
    steps = [2.0 ** (c.weight_bits - 1 + p.fraction_bits + c.weight_exponent) for c in network.incoming(p.name)]
    return max(steps, default=1.0)


def _gain(network: Network, p: Population, c: Connection) -> float:
    """(Weighted) mean over the window of what a steady input of 1 over a connection adds to ``u``."""
    reached, total = 0.0, 0.0
    for n, weight in enumerate(step_weights(p, network.steps)):
        reached = reached * (1.0 - p.du / DECAY_ONE) + (1.0 if n >= c.delay else 0.0)
        total += weight * reached
    return total


def _logit_gains(network: Network) -> tuple[float, float]:
    """Factors that make logits of exact scores, and of the rate (or mean input) that carries their gradient.

    Where the population's scale is known, logits are the scores of the trained real-valued network: the amplitude
    times the (weighted) mean rate, or the (weighted) mean current.
    """
    readout = network.readout
    assert readout is not None
    p = network.population(readout.population)
    steps = network.steps
    keep = 1.0 - p.dv / DECAY_ONE
    k = 1.0 - keep if 0 < p.dv < DECAY_ONE else 1.0  # folding multiplied the weights of LIF layers by it
    if readout.kind == "membrane":
        most = sum(keep**n for n in range(steps))  # membrane of a steady input of 1
        unit = _unit(network, p)
        return 1.0 / (unit * k * most), 1.0 / k
    largest = float(count_weights(network).sum())
    amplitude = _unit(network, p) / (p.scale * k) if p.scale is not None else DEFAULT_LOGIT_RANGE
    return amplitude / largest, amplitude
