"""Neurons of snnTorch and SpikingJelly, read off the module: what each does in a step, in the description's words.

Nothing of either framework is imported: a module says where it comes from, and what it holds is read. Both describe

    u = keep_u u + gain I        v = beta v + u        fire where v > threshold, or >=        reset

with a reset that snnTorch takes from the *next* step's membrane ("reset_delay"): it subtracts the threshold after the
leak, which is the same as subtracting ``threshold / beta`` at once. Whatever is read is then held against the module
itself on random currents (:func:`check_against`), so that a version, a subclass or an attribute that is not known here
cannot change the meaning unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UnsupportedError
from ..network import Reset, Shape
from .folding import FloatArray
from .lowering import float_array

FRAMEWORKS = ("snntorch", "spikingjelly")
CHECKED_STEPS, CHECKED_COPIES = 48, 3


@dataclass(frozen=True, eq=False, kw_only=True)
class FrameworkNeurons:
    """A neuron module of another framework.

    Attributes
    ----------
    threshold : float64, any shape that broadcasts to the population's
    strict : bool
        Fires above the threshold, not at it.
    reset : {"subtract", "zero", "none"}
    reset_factor : float
        The part of the threshold that reset "subtract" subtracts at once.
    beta, keep_u, gain : float
        See the module text; ``keep_u = 0``: no synaptic current.
    amplitude : float
        What a spike stands for.
    recurrent : nn.Module or None
        Weights from the spikes of one step to the current of the next.
    takes, gives : tuple of str
        Names of what the module takes after its input, and of what it returns; one value is no tuple.
    steps_inside : bool
        It takes all time steps at once, ``[T, B, ...]``.
    """

    threshold: FloatArray
    strict: bool = True
    reset: Reset
    reset_factor: float = 1.0
    beta: float
    keep_u: float = 0.0
    gain: float = 1.0
    amplitude: float = 1.0
    recurrent: nn.Module | None = None
    takes: tuple[str, ...] = ()
    gives: tuple[str, ...] = ("spk",)
    steps_inside: bool = False


def framework_of(module: nn.Module) -> str | None:
    """The framework that a module's class is from, if it is one of FRAMEWORKS."""
    package = type(module).__module__.partition(".")[0]
    return package if package in FRAMEWORKS else None


def is_neurons(module: nn.Module) -> bool:
    """Whether its class, or one that it derives from, is of a framework's package of neurons, known here or not."""
    packages = ("snntorch._neurons", "spikingjelly.activation_based.neuron")
    return any(base.__module__.startswith(packages) for base in type(module).__mro__)


def read_neurons(where: str, module: nn.Module) -> FrameworkNeurons:
    """What a neuron module does.

    Raises
    ------
    UnsupportedError
        If it cannot be said in the description's words.
    """
    kind = type(module).__name__
    reader = _READERS.get((framework_of(module) or "", kind))
    if reader is None:
        known = ", ".join(f"{framework}'s {name}" for framework, name in _READERS)
        raise UnsupportedError(f"{where}: has no counterpart in a description; there are {known}")
    return reader(where, module)


def _number(where: str, what: str, value: Any) -> float:
    """One value for the whole population."""
    array = float_array(value) if isinstance(value, Tensor) else np.asarray(value, np.float64)
    if array.size == 0 or (array != array.flat[0]).any() or not np.isfinite(array).all():
        raise UnsupportedError(
            f"{where}: {what} differs between neurons or is not finite; a population has one, so split the layer or "
            "train one value for it"
        )
    return float(array.flat[0])


def _fires(where: str, spike: Callable[[Tensor], Tensor]) -> bool:
    """Whether it fires strictly above the threshold, after having tried that it is a step at all."""
    distance = torch.tensor([-2.0, -1e-3, 0.0, 1e-3, 2.0], dtype=torch.float64).repeat(16)
    with torch.no_grad():
        fired = spike(distance).to(torch.float64).reshape(16, 5)
    below, at, above = fired[:, :2], fired[:, 2], fired[:, 3:]
    if below.any() or (above != 1).any() or (at != at[0]).any() or at[0] not in (0, 1):
        raise UnsupportedError(
            f"{where}: its surrogate function does not give spikes 0 and 1 in the forward pass; use one that does "
            "(SpikingJelly: spiking=True)"
        )
    return bool(at[0] == 0)


def _threshold(where: str, value: Any) -> FloatArray:
    array = float_array(value) if isinstance(value, Tensor) else np.asarray(value, np.float64)
    if not np.isfinite(array).all() or (array <= 0).any():
        raise UnsupportedError(
            f"{where}: its threshold is {array.min():g}; a neuron at rest would fire; give one above 0"
        )
    return array


# snnTorch

_DELAYED = (
    "drops the input of the step after a spike (snnTorch's reset_delay with reset_mechanism='zero'), which no neuron "
    "of a description does; use reset_delay=False, or Leaky"
)


def _snntorch(
    where: str, module: Any, *, beta: float, gain: float = 1.0, keep_u: float = 0.0, takes: tuple[str, ...] = ("mem",)
) -> FrameworkNeurons:
    """What all neurons of snnTorch share."""
    reset: Reset = module.reset_mechanism
    delayed = bool(getattr(module, "reset_delay", True))
    if module.inhibition:
        raise UnsupportedError(f"{where}: inhibition lets one neuron of a layer fire; train with inhibition=False")
    if module.state_quant:
        raise UnsupportedError(f"{where}: state_quant rounds the membrane in its own way; train with state_quant=False")
    if not 0 <= beta <= 1:
        raise UnsupportedError(f"{where}: keeps {beta:g} of its membrane in a step; give 0 to 1")
    if reset == "subtract" and not delayed:
        raise UnsupportedError(
            f"{where}: reset_delay=False with reset_mechanism='subtract' compares a membrane that is still above the "
            "threshold after its reset with twice the threshold in the next step, which no neuron of a description "
            "does; use reset_delay=True or reset_mechanism='zero', and train on"
        )
    if reset == "subtract" and beta == 0:
        raise UnsupportedError(f"{where}: subtracts from a membrane of which nothing is left (beta=0); use 'zero'")
    if reset == "zero" and delayed and type(module).__name__ != "Leaky":
        raise UnsupportedError(f"{where}: {_DELAYED}")
    spikes_only = module.init_hidden and not module.output
    states = tuple(name for name in takes if name != "spk")
    return FrameworkNeurons(
        threshold=_threshold(where, module.threshold),
        strict=_fires(where, module.spike_grad),
        reset=reset,
        reset_factor=1.0 / beta if reset == "subtract" else 1.0,
        beta=beta,
        keep_u=keep_u,
        gain=gain,
        amplitude=_number(where, "graded_spikes_factor", getattr(module, "graded_spikes_factor", 1.0)),
        recurrent=getattr(module, "recurrent", None),
        takes=takes,
        gives=("spk",) if spikes_only else ("spk", *states),
    )


def _kept(where: str, module: Any, what: str = "beta") -> float:
    return min(max(_number(where, what, getattr(module, what)), 0.0), 1.0)  # snnTorch clamps it in every step


def _leaky(where: str, module: Any) -> FrameworkNeurons:
    return _snntorch(where, module, beta=_kept(where, module))


def _lapicque(where: str, module: Any) -> FrameworkNeurons:
    r, c, step = (_number(where, name, getattr(module, name)) for name in ("R", "C", "time_step"))
    return _snntorch(where, module, beta=1 - step / (r * c), gain=step / c)


def _synaptic(where: str, module: Any) -> FrameworkNeurons:
    return _snntorch(
        where, module, beta=_kept(where, module), keep_u=_kept(where, module, "alpha"), takes=("syn", "mem")
    )


def _rleaky(where: str, module: Any) -> FrameworkNeurons:
    return _snntorch(where, module, beta=_kept(where, module), takes=("spk", "mem"))


def _rsynaptic(where: str, module: Any) -> FrameworkNeurons:
    return _snntorch(
        where, module, beta=_kept(where, module), keep_u=_kept(where, module, "alpha"), takes=("spk", "syn", "mem")
    )


# SpikingJelly


def _spikingjelly(where: str, module: Any, *, lost: float = 0.0, gain: float = 1.0) -> FrameworkNeurons:
    """Membranes are counted from ``v_reset``, where they start."""
    rest = module.v_reset
    if getattr(module, "_neuron_precision", None) is not None:
        raise UnsupportedError(f"{where}: computes in reduced precision; set its neuron precision back to None")
    if module.get_reset_value("v") != (rest or 0.0):
        raise UnsupportedError(
            f"{where}: its membrane starts at {module.get_reset_value('v')}; it must start at v_reset"
        )
    return FrameworkNeurons(
        threshold=_threshold(where, module.v_threshold - (rest or 0.0)),
        strict=_fires(where, module.surrogate_function),
        reset="subtract" if rest is None else "zero",
        beta=1.0 - lost,
        gain=gain,
        steps_inside=module.step_mode == "m",
    )


def _if_node(where: str, module: Any) -> FrameworkNeurons:
    return _spikingjelly(where, module)


def _lif_node(where: str, module: Any) -> FrameworkNeurons:
    lost = 1.0 / _number(where, "tau", module.tau)
    return _spikingjelly(where, module, lost=lost, gain=lost if module.decay_input else 1.0)


def _parametric(where: str, module: Any) -> FrameworkNeurons:
    w = torch.tensor(_number(where, "w", module.w), dtype=torch.float64)
    lost = float(w.sigmoid())
    return _spikingjelly(where, module, lost=lost, gain=lost if module.decay_input else 1.0)


_READERS: dict[tuple[str, str], Callable[[str, Any], FrameworkNeurons]] = {
    ("snntorch", "Leaky"): _leaky,
    ("snntorch", "Lapicque"): _lapicque,
    ("snntorch", "Synaptic"): _synaptic,
    ("snntorch", "RLeaky"): _rleaky,
    ("snntorch", "RSynaptic"): _rsynaptic,
    ("spikingjelly", "IFNode"): _if_node,
    ("spikingjelly", "LIFNode"): _lif_node,
    ("spikingjelly", "ParametricLIFNode"): _parametric,
    ("spikingjelly", "SimpleIFNode"): _if_node,
    ("spikingjelly", "SimpleLIFNode"): _lif_node,
}


# Held against the module


def check_against(where: str, module: nn.Module, rule: FrameworkNeurons, shape: Shape) -> None:
    """Run the module and the rule on the same random currents.

    Raises
    ------
    UnsupportedError
        If any spike differs.
    """
    rng = np.random.default_rng(0)
    threshold = np.broadcast_to(rule.threshold, (1, *shape))
    reach = (1 - rule.keep_u) * min(1.0, 1.5 - rule.beta) / max(rule.gain, 1e-9)
    currents = rng.uniform(-1, 3, (CHECKED_STEPS, CHECKED_COPIES, *shape)) * threshold * reach
    u = v = np.zeros((CHECKED_COPIES, *shape))
    sent = torch.zeros(CHECKED_COPIES, *shape, dtype=torch.float64)
    with torch.no_grad(), _at_rest(module) as step:
        for current in currents:
            back = 0.0 if rule.recurrent is None else float_array(_as_double(rule.recurrent, sent))
            sent = step(torch.from_numpy(current)).to(torch.float64)
            u = rule.keep_u * u + rule.gain * (current + back)
            v = rule.beta * v + u
            fired = v > threshold if rule.strict else v >= threshold
            if rule.reset == "zero":
                v = np.where(fired, 0.0, v)
            elif rule.reset == "subtract":
                v = v - rule.reset_factor * threshold * fired
            if not np.array_equal(float_array(sent), rule.amplitude * fired):
                raise UnsupportedError(
                    f"{where}: does not spike as lapilli expects of {type(module).__module__.partition('.')[0]}'s "
                    f"{type(module).__name__}; this version or a changed module does something else; use the versions "
                    "in constraints.txt and unchanged neurons"
                )


def _as_double(module: nn.Module, x: Tensor) -> Tensor:
    """The module on ``x`` in double precision, whatever the precision of its parameters."""
    doubled = {name: value.double() for name, value in module.state_dict().items()}
    return torch.func.functional_call(module, doubled, (x,))


@contextmanager
def _at_rest(module: Any) -> Iterator[Callable[[Tensor], Tensor]]:
    """One step of the module, from its initial state on; afterwards it has the state it had before."""
    if framework_of(module) == "spikingjelly":
        saved, recorded = dict(module._memories), getattr(module, "v_seq", None)
        module._memories.update(module._memories_rv)
        try:
            yield module.single_step_forward
        finally:
            module._memories.update(saved)
            if hasattr(module, "v_seq"):
                module.v_seq = recorded
        return
    names = [name for name in ("spk", "syn", "mem", "reset") if name in module.__dict__ or name in module._buffers]
    kept = {name: getattr(module, name) for name in names}
    precision = {name: p.data for name, p in module.named_parameters()}
    for name in kept:
        setattr(module, name, torch.zeros(0, dtype=torch.float64))

    def step(current: Tensor) -> Tensor:
        given = module(current)
        return given[0] if isinstance(given, tuple) else given

    try:
        for _, p in module.named_parameters():
            p.data = p.data.double()
        yield step
    finally:
        for name, p in module.named_parameters():
            p.data = precision[name]
        for name, value in kept.items():
            setattr(module, name, value)
