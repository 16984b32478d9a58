"""Networks of snnTorch and SpikingJelly, as PyTorch modules in memory, to a float network that can be quantized.

torch.fx writes down what the forward pass calls. It may be the pass of one time step (a ``Sequential`` of snnTorch), of
all steps at once (SpikingJelly's ``step_mode="m"``), or a loop over the steps in which states are handed on, as in
snnTorch's tutorials: then each step must do what the first one did, each neuron must get back the state it gave, and
only the first step is lowered. Everything else is refused, by the path of the module: a network that is *nearly* the
trained one is worth nothing here.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from inspect import Parameter, signature
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UnsupportedError
from ..network import INPUT, MAX_STEPS, Shape
from ..train.model import SpikingSequential, population_name
from ..train.neurons import Accumulator, Neuron
from .folding import Affine, Folded, after_batch_norm
from .framework_neurons import FrameworkNeurons, check_against, framework_of, is_neurons, read_neurons
from .lowering import Lowering, NeuronRule, Term, Value, affine_of, batch_norm_map, float_array
from .nir.real_network import RealNetwork, from_folded

Read: TypeAlias = Literal["spikes", "membrane", "current"]

_TIMELESS = (nn.Linear, nn.Identity, nn.Dropout)  # of torch: the same with a time axis in front
_LAYERS = (  # of torch; a subclass with another forward pass is something else
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.MaxPool1d, nn.MaxPool2d, nn.Flatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Identity,
)  # fmt: skip
_WRAPPERS = {  # SpikingJelly's layers with a step mode, by what they are without
    **{kind.__name__: kind for kind in _LAYERS if kind not in (nn.Dropout1d, nn.Identity)},
    "ThresholdDependentBatchNorm1d": nn.BatchNorm1d,  # at inference a batch normalization like any other
    "ThresholdDependentBatchNorm2d": nn.BatchNorm2d,
}
_OF_ALL_STEPS = ("SeqToANNContainer", "MultiStepContainer")  # SpikingJelly's, for layers of one step
_ADDITIONS = (operator.add, operator.iadd, torch.add)
_SCALINGS = (operator.mul, operator.truediv, operator.imul, operator.itruediv, torch.mul, torch.div)


@dataclass(frozen=True, eq=False)
class _Signal:
    """What travels between modules: a value, told apart by ``key``, in one step of an unrolled loop or in any."""

    value: Value
    key: tuple[Any, ...]
    step: int | None = None
    time: bool = False  # has an axis of steps in front


@dataclass(frozen=True)
class _State:
    """What a neuron module gives besides spikes."""

    path: str
    name: str
    step: int


@dataclass(frozen=True, eq=False)
class _Record:
    """Spikes, membranes or currents of several steps, stacked or added up."""

    signal: _Signal | None  # None: of membranes
    path: str
    steps: tuple[int, ...]


class _Zeros:
    """Initial states."""


class _Size:
    """Something computed from shapes."""


class _Tracer(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = isinstance(m, (Neuron, Accumulator))
        known = isinstance(m, _LAYERS) or type(m).__module__.startswith("spikingjelly.activation_based.layer")
        return ours or known or is_neurons(m) or super().is_leaf_module(m, module_qualified_name)


def from_torch(
    model: nn.Module,
    *,
    input_shape: Sequence[int],
    steps: int | None = None,
    read: Read | None = None,
    name: str = "network",
    labels: Sequence[str] = (),
) -> Folded | RealNetwork:
    """A trained network of snnTorch or SpikingJelly as a folded float network, ready for :func:`quantize`.

    In float64 it emits exactly the spikes of ``model`` in eval mode, run in float64 from reset states (up to rounding
    where a membrane meets its threshold). Nothing is approximated: what has no exact counterpart is refused.

    Parameters
    ----------
    model : nn.Module
        Its forward pass takes one input: of one step, of all steps (``[T, B, ...]``, SpikingJelly's ``step_mode="m"``),
        or one that it repeats itself in a loop. It is not changed.
    input_shape : sequence of int
        Of one sample in one step, without batch and time. A sequence ``(C, L)`` before ``Conv1d`` becomes
        ``(C, 1, L)``.
    steps : int, optional
        Length of a sample's window. Needed unless the forward pass has the loop over the steps.
    read : {"spikes", "membrane", "current"}, optional
        What the scores are: the number of spikes, or the last membrane, of the last neurons; or the sum of the currents
        that a last layer without neurons gives. Needed where the model returns spikes and membranes, or ends in a layer
        without neurons.
    name : str
        Of the network.
    labels : sequence of str
        Class names.

    Returns
    -------
    Folded or RealNetwork
        Run its ``simulate`` on ``[B, *input_shape]``, the same in every step, or on frames ``[T, B, *input_shape]``.
        A RealNetwork where neurons have synaptic currents or recurrent weights (Synaptic, RLeaky, RSynaptic), which
        folded layers have not; :func:`quantize` takes both.

    Raises
    ------
    UnsupportedError
        If something has no exact counterpart; the message names the module by its path.
    """
    if isinstance(model, SpikingSequential):
        raise UnsupportedError("the model is lapilli's own: use lapilli.export.lower")
    if steps is not None and not (type(steps) is int and 1 <= steps <= MAX_STEPS):
        raise UnsupportedError(f"steps {steps!r}: give an integer in 1..{MAX_STEPS}")
    shape = tuple(int(n) for n in input_shape)
    sequences = any(isinstance(m, nn.Conv1d) for m in model.modules())
    if sequences and len(shape) == 2:
        shape = (shape[0], 1, shape[1])
    follower = _Follower(model, shape, sequences)
    read_as = follower.run(read)
    known = follower.steps
    if known is None and steps is None:
        raise UnsupportedError("the model's forward pass does not say how many steps a sample takes: give steps")
    if known is not None and steps is not None and known != steps:
        raise UnsupportedError(f"steps {steps}: the model's forward pass takes {known}; leave steps out")
    folded = Folded(
        layers=follower.work.finished(read_as, "its last layer"),
        steps=known or steps or 0,
        input_shape=shape,
        name=name,
        labels=tuple(labels),
        read="plain",
    )
    if follower.keep_u or follower.recurrent:
        return from_folded(folded, follower.keep_u, follower.recurrent)
    return folded


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    training = {m: m.training for m in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, was in training.items():
            module.training = was


def _graph(model: nn.Module) -> torch.fx.Graph:
    """What the forward pass calls; arguments other than the input keep their defaults."""
    takes = list(signature(model.forward).parameters.values())
    needed = [p.name for p in takes[1:] if p.default is p.empty and p.kind is Parameter.POSITIONAL_OR_KEYWORD]
    if not takes or needed:
        raise UnsupportedError(
            f"the forward pass of {type(model).__name__} takes {', '.join(p.name for p in takes) or 'nothing'}; "
            "it must take the input only, so keep states inside (snnTorch: init_hidden=True, or init_leaky() in it)"
        )
    given = {p.name: p.default for p in takes[1:] if p.default is not p.empty}
    try:
        with _in_eval_mode(model):
            return _Tracer().trace(model, concrete_args=given or None)
    except Exception as error:  # whatever the model's own forward raises when it meets a placeholder
        reason = str(error).split("\n", 1)[0]
        raise UnsupportedError(
            f"the forward pass of {type(model).__name__} cannot be followed ({reason}); it may call layers, add their "
            "results and loop over a fixed number of steps, without looking at values"
        ) from error


class _Follower:
    """Walks the graph once; ``work`` holds the layers."""

    def __init__(self, model: nn.Module, shape: Shape, sequences: bool) -> None:
        self.model = model
        self.modules = {"": model, **dict(model.named_modules())}
        self.sequences = sequences
        self.work = Lowering(shape)
        self.calls: dict[str, int] = {}
        self.rules: dict[str, FrameworkNeurons] = {}
        self.inputs: dict[str, tuple[Any, ...]] = {}  # of neurons, by path: the key of what drives them
        self.keep_u: dict[str, float] = {}  # of populations with a synaptic current
        self.recurrent: dict[str, Affine] = {}  # weights of populations to themselves
        self.known: dict[tuple[Any, ...], Value] = {}
        self.where = "nothing"
        self.graph = _graph(model)

    @property
    def steps(self) -> int | None:
        """How many the forward pass takes, where it has the loop over them."""
        most = max(self.calls.values(), default=1)
        return most if most > 1 else None

    def refuse(self, why: str) -> UnsupportedError:
        """The error to raise at the present node."""
        return UnsupportedError(f"{self.where}: {why}")

    def run(self, read: Read | None) -> Value:
        """All nodes; the value that is read."""
        found: dict[torch.fx.Node, Any] = {}

        def of(argument: Any) -> Any:
            return torch.fx.map_arg(argument, lambda node: found[node])

        for node in self.graph.nodes:
            args, kwargs = of(node.args), of(node.kwargs)
            if node.op == "placeholder":
                found[node] = _Size() if found else self.placeholder(node)
            elif node.op == "get_attr":
                found[node] = self.constant(str(node.target))
            elif node.op == "call_module":
                path = str(node.target)
                self.at(path)
                found[node] = self.call(path, args, kwargs)
            elif node.op == "output":
                return self.output(args[0], read)
            else:
                called = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.name)
                self.where = f"operation {called!r} ({node.name})"
                found[node] = self.operation(node, args, dict(kwargs))
        raise AssertionError("a graph ends in an output")

    def at(self, path: str) -> None:
        """Where we are, for messages."""
        self.where = f"module {path!r} ({type(self.modules[path]).__name__})"

    def placeholder(self, node: torch.fx.Node) -> Any:
        repeated = any(user.op == "call_method" and user.target == "unsqueeze" for user in node.users)
        inside = any(
            getattr(m, "step_mode", "s") == "m" or type(m).__name__ in _OF_ALL_STEPS for m in self.modules.values()
        )
        return _Signal(Value((Term(INPUT),)), (INPUT,), time=inside and not repeated)

    def constant(self, target: str) -> Any:
        value: Any = self.model
        for part in target.split("."):
            value = getattr(value, part)
        if isinstance(value, Tensor) and not value.any():
            return _Zeros()
        self.where = f"tensor {target!r}"
        raise self.refuse("is used in the forward pass outside a layer; only initial states of zeros may be")

    # Modules

    def call(self, path: str, args: Any, kwargs: Any) -> Any:
        """One module on what it is given."""
        module = self.modules[path]
        signal, *states = args or (None,)
        if isinstance(signal, tuple):
            raise self.refuse(
                "gets spikes and a state; inside a Sequential give neurons init_hidden=True, and output=True "
                "at most to the last"
            )
        if isinstance(signal, _State):
            raise self.refuse(f"gets the {signal.name} of {signal.path!r}; a description sends spikes only")
        if not isinstance(signal, _Signal):
            raise self.refuse("works on something that no layer gives")
        if module._forward_hooks or module._forward_pre_hooks:
            raise self.refuse("has forward hooks, which may change values; remove them")
        if isinstance(module, (Neuron, Accumulator)):
            raise self.refuse(
                "is lapilli's own; build the network with lapilli.train.build and use lapilli.export.lower"
            )
        if is_neurons(module):
            return self.neurons(path, module, signal, states, kwargs)
        if states or kwargs:
            raise self.refuse("gets more than one argument")
        if framework_of(module) == "spikingjelly":
            return self.stepped(path, module, signal)
        return self.layer(path, module, signal)

    def stepped(self, path: str, module: nn.Module, signal: _Signal) -> _Signal:
        """SpikingJelly's layers with a step mode, and its containers of layers of one step."""
        kind = type(module).__name__
        mode = getattr(module, "step_mode", "s")
        if kind in (*_OF_ALL_STEPS, "StepModeContainer"):
            many = mode == "m" or kind in _OF_ALL_STEPS
            if many != signal.time:
                raise self.refuse(self.mode_message("m" if many else "s", signal))
            inner: Any = replace(signal, time=False)
            for name in module._modules:
                inside = f"{path}.{name}"
                self.at(inside)
                if isinstance(inner, tuple) or (kind == "SeqToANNContainer" and is_neurons(self.modules[inside])):
                    raise self.refuse(
                        "has a state, which SeqToANNContainer mixes between steps; use MultiStepContainer"
                    )
                inner = self.call(inside, (inner,), {})
            return replace(inner, time=signal.time)
        if kind not in _WRAPPERS:
            return self.layer(path, module, signal)  # refuses it
        if mode == "m" and not signal.time:
            raise self.refuse(self.mode_message(mode, signal))
        if mode == "m":
            return replace(self.layer(path, module, replace(signal, time=False), _WRAPPERS[kind]), time=True)
        return self.layer(path, module, signal, _WRAPPERS[kind])

    @staticmethod
    def mode_message(mode: str, signal: _Signal) -> str:
        got = "all steps" if signal.time else "one step"
        return f"has step_mode {mode!r} and gets {got}; use functional.set_step_mode for the whole network"

    def layer(self, path: str, module: nn.Module, signal: _Signal, kind: type[nn.Module] | None = None) -> _Signal:
        """A module without state, ``kind`` of torch's."""
        if kind is None:
            kind = next((k for k in _LAYERS if type(module).forward is k.forward and isinstance(module, k)), None)
            inner = getattr(kind, "_conv_forward", None)
            if kind is None or getattr(type(module), "_conv_forward", None) is not inner:
                raise self.refuse(
                    "has no exact counterpart; there are neurons of snnTorch and SpikingJelly, Linear, Conv1d/2d, "
                    "BatchNorm1d/2d, average and (of spikes) max pooling, Dropout, Flatten and additions"
                )
        if signal.time and issubclass(kind, nn.Flatten):
            return self.flattened(signal, (module.start_dim, module.end_dim))
        if signal.time and kind not in _TIMELESS:
            raise self.refuse(
                "would take the axis of steps for samples or channels; use SpikingJelly's layer of that name with "
                "step_mode='m', or SeqToANNContainer"
            )

        def apply(value: Value) -> Value:
            # SpikingJelly's are not all subclasses of torch's.
            if kind in (nn.Dropout, nn.Dropout2d):
                return value
            if kind in (nn.BatchNorm1d, nn.BatchNorm2d):
                return self.work.batch_norm(self.where, *batch_norm_map(self.where, module), value)
            return self.work.module(self.where, _named(path, module), module, value)

        return self.applied(signal, ("module", path), apply)

    def applied(self, signal: _Signal, what: tuple[Any, ...], function: Callable[[Value], Value]) -> _Signal:
        """A stateless function; in later steps of a loop it gives what it gave before."""
        key = (*what, signal.key)
        if key not in self.known:
            self.known[key] = function(signal.value)
        return replace(signal, value=self.known[key], key=key)

    def flattened(self, signal: _Signal, axes: tuple[Any, ...]) -> _Signal:
        axes = tuple(a - 1 if i == 0 and signal.time else a for i, a in enumerate(axes))
        return self.applied(signal, ("flatten",), lambda value: self.work.flatten(self.where, axes, value))

    def neurons(self, path: str, module: nn.Module, signal: _Signal, states: Any, kwargs: Any) -> Any:
        """Neurons in one more step, or in all."""
        step = self.calls.get(path, 0)
        self.calls[path] = step + 1
        if step == 0:
            self.rules[path] = rule = read_neurons(self.where, module)
            self.inputs[path] = signal.key
            self.end(path, module, rule, signal)
        rule = self.rules[path]
        if rule.steps_inside != signal.time:
            raise self.refuse(self.mode_message("m" if rule.steps_inside else "s", signal))
        if signal.step not in (None, step):
            raise self.refuse(
                f"in its step {step} gets what step {signal.step} gave; only RLeaky and RSynaptic carry spikes to "
                "the next step"
            )
        if signal.key != self.inputs[path]:
            raise self.refuse(f"gets something else in step {step} than in step 0; each step must do the same")
        if len(states) > len(rule.takes) or set(kwargs) - set(rule.takes):
            raise self.refuse(f"takes {', '.join(('its input', *rule.takes))} and gets more")
        for name, state in {**dict(zip(rule.takes, states, strict=False)), **kwargs}.items():
            self.check_state(path, step, name, state)
        spikes = _Signal(
            Value((Term(_named(path, module)),), flat=signal.value.flat), ("neurons", path), step, signal.time
        )
        if len(rule.gives) == 1:
            return spikes
        return (spikes, *(_State(path, name, step) for name in rule.gives[1:]))

    def check_state(self, path: str, step: int, name: str, state: Any) -> None:
        """A state that comes in must be the one that went out, or zeros before the first step."""
        own = isinstance(state, _State) and (state.path, state.name, state.step) == (path, name, step - 1)
        spikes = (
            isinstance(state, _Signal) and name == "spk" and (state.key, state.step) == (("neurons", path), step - 1)
        )
        start = step == 0 and (state is None or isinstance(state, _Zeros))
        if not (own or spikes or start):
            raise self.refuse(
                f"gets as {name} in step {step} something else than it gave in the step before; hand its own state on, "
                "and start from zeros"
            )

    def end(self, path: str, module: nn.Module, rule: FrameworkNeurons, signal: _Signal) -> None:
        """A new layer."""
        shape = self.work.shape(self.where, signal.value)
        plain = (shape[0], shape[2]) if self.sequences and len(shape) == 3 else shape
        try:
            thresholds = np.broadcast_to(rule.threshold, (1, *plain))[0].reshape(shape)
        except ValueError:
            raise self.refuse(f"thresholds of shape {rule.threshold.shape} do not fit {plain}") from None
        check_against(self.where, module, replace(rule, threshold=thresholds.reshape(plain)), plain)
        value, threshold = signal.value, float(thresholds.flat[0])
        recurrent = None if rule.recurrent is None else self.own_weights(path, rule.recurrent, shape)
        if recurrent is not None:
            value = replace(value, bias=value.bias + recurrent.bias)
        if (thresholds != threshold).any():
            # Neurons with different thresholds have one, once what drives them is scaled.
            channels = thresholds.reshape(len(thresholds), -1)
            if (channels != channels[:, :1]).any():
                raise self.refuse("thresholds differ within a channel; a population has one for each channel at most")
            value = self.work.batch_norm(self.where, 1 / channels[:, 0], np.zeros(len(channels)), value)
            threshold = 1.0
            recurrent = (
                None if recurrent is None else after_batch_norm(recurrent, 1 / channels[:, 0], 0 * channels[:, 0])
            )
        name = _named(path, module)
        if rule.keep_u:
            self.keep_u[name] = rule.keep_u
        if recurrent is not None:
            weight = recurrent.weight * (rule.gain * rule.amplitude)
            self.recurrent[name] = replace(recurrent, weight=weight)
        self.work.neurons(
            self.where,
            name,
            NeuronRule(
                reset=rule.reset,
                # "Above" is "at or above the next number".
                threshold=math.nextafter(threshold, math.inf) if rule.strict else threshold,
                reset_amount=threshold * rule.reset_factor if rule.reset == "subtract" else 0.0,
                beta=rule.beta,
                gain=rule.gain,
                amplitude=rule.amplitude,
            ),
            value,
        )

    def own_weights(self, path: str, module: nn.Module, shape: Shape) -> Affine:
        """Weights from neurons to themselves."""
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            return affine_of(f"module {path + '.recurrent'!r}", module)
        try:  # one to one: snnTorch's V
            factors = np.broadcast_to(float_array(getattr(module, "V", torch.zeros(0))), shape).reshape(shape[0], -1)
        except ValueError:
            factors = np.zeros((0, 1))
        if not factors.size or (factors != factors[:, :1]).any():
            raise self.refuse("recurrent weights are neither Linear, Conv2d, nor one factor for each channel")
        return Affine("scale", factors[:, 0].copy(), np.zeros(shape[0]))

    # Operations

    def operation(self, node: torch.fx.Node, args: Any, kwargs: dict[str, Any]) -> Any:
        """A function or a method."""
        target = node.target
        named = target if isinstance(target, str) else getattr(target, "__name__", "")
        first = args[0] if args else None
        if named.startswith("_assert"):  # that arguments have their defaults, from torch.fx
            return None
        if target is operator.getitem:
            return self.item(first, args[1])
        if named in ("size", "len", "dim") or (target is getattr and args[1] == "shape"):
            return _Size()
        if named in ("zeros", "zeros_like", "new_zeros"):
            return _Zeros()
        if any(isinstance(a, _Size) for a in args) and not isinstance(first, _Signal):
            return _Size()
        if target in _ADDITIONS and not kwargs:
            return self.added(*args[:2])
        if target is torch.stack or target is sum:
            return self.record(first)
        if isinstance(first, _Record):
            scales = target in _SCALINGS or named in ("mul", "div")
            if (scales and (isinstance(args[1], _Size) or args[1] > 0)) or self.over_steps(named, args, kwargs):
                return first
            raise self.refuse("works on all steps of the result; return it, or its sum or mean over the steps")
        if not isinstance(first, _Signal):
            raise self.refuse("works on something that no layer gives")
        if named == "flatten":
            axes = (kwargs.pop("start_dim", 0),) if len(args) == 1 else args[1:]
            end = (kwargs.pop("end_dim"),) if "end_dim" in kwargs else ()
            if not kwargs:
                return self.flattened(first, (*axes, *end))
        if named in ("view", "reshape") and self.is_flattening(first, args[1:]):
            return self.flattened(first, (2 if first.time else 1,))
        if named in ("unsqueeze", "repeat", "expand"):
            return self.repeated(named, first, args[1:])
        if first.time and self.over_steps(named, args, kwargs):
            return _Record(first, "", ())
        if target in (F.dropout, F.dropout1d, F.dropout2d) and not kwargs.get("training", (*args, True, True)[2]):
            return first
        kind = _FUNCTIONS.get(target)
        if kind is not None and not first.time:
            try:
                module = kind(*args[1:], **kwargs)
            except TypeError:
                raise self.refuse("has arguments that lapilli does not know") from None
            path = f"{kind.__name__.lower()}_{node.name}"
            return self.applied(
                first, ("function", str(module)), lambda v: self.work.module(self.where, path, module, v)
            )
        raise self.refuse("has no exact counterpart; use modules, additions, flatten(1) and pooling")

    @staticmethod
    def over_steps(named: str, args: Any, kwargs: dict[str, Any]) -> bool:
        """Whether it is a sum or mean over the first axis."""
        return named in ("mean", "sum") and (*args[1:], *kwargs.values()) in ((0,), ((0,),))

    def item(self, first: Any, index: Any) -> Any:
        """Part of a module's result, or one frame of the input."""
        if isinstance(first, tuple) and isinstance(index, int):
            return first[index]
        if isinstance(first, _Size):
            return _Size()
        frame = index[-1] if isinstance(index, tuple) and all(i == slice(None) for i in index[:-1]) else index
        if isinstance(first, _Signal) and first.key == (INPUT,) and type(frame) is int and frame >= 0:
            return replace(first, key=(INPUT, "frame"), step=frame)
        raise self.refuse("takes a part of a value; only frames of the input, x[step], can be taken")

    def added(self, a: Any, b: Any) -> Any:
        """A sum of two branches, or of the results of several steps."""
        if isinstance(a, (int, float, _Zeros)):
            a, b = b, a
        if isinstance(b, _Zeros) or (isinstance(b, (int, float)) and b == 0):
            return a
        if isinstance(a, _Record) or (
            isinstance(a, _Signal) and isinstance(b, _Signal) and a.key == b.key and a.step != b.step
        ):
            return self.record([a, b])
        if not isinstance(a, _Signal) or not isinstance(b, _Signal):
            raise self.refuse("adds something that no layer gives")
        if a.time != b.time or (a.step is not None and b.step is not None and a.step != b.step):
            raise self.refuse("adds values of different steps")
        value = Value(a.value.terms + b.value.terms, a.value.bias + b.value.bias, a.value.flat or b.value.flat)
        return _Signal(value, ("add", a.key, b.key), b.step if a.step is None else a.step, a.time)

    def record(self, parts: Any) -> Any:
        """Results of several steps of one layer."""
        if not isinstance(parts, (list, tuple)) or not parts:
            raise self.refuse("joins something that no layer gives")
        made: list[_Record] = []
        for part in parts:
            if isinstance(part, _State):
                made.append(_Record(None, part.path, (part.step,)))
            elif isinstance(part, _Signal) and part.step is not None:
                made.append(_Record(part, "", (part.step,)))
            elif isinstance(part, _Record):
                made.append(part)
            else:
                raise self.refuse("joins something that no layer gives")
        kinds = {(r.path, r.signal.key if r.signal else ()) for r in made}
        if len(kinds) > 1:
            raise self.refuse("joins results of different layers")
        return replace(made[0], steps=tuple(step for r in made for step in r.steps))

    def is_flattening(self, signal: _Signal, sizes: tuple[Any, ...]) -> bool:
        """Whether ``view`` with these sizes keeps the samples and joins everything else."""
        if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
            sizes = tuple(sizes[0])
        if len(sizes) != 2 or signal.time:
            return False
        values = math.prod(self.work.shape(self.where, signal.value))
        return sizes[1] == values if sizes[0] == -1 else isinstance(sizes[0], _Size) and sizes[1] in (-1, values)

    def repeated(self, named: str, signal: _Signal, args: tuple[Any, ...]) -> _Signal:
        """``x.unsqueeze(0).repeat(T, 1, ...)``: the same frame in every step."""
        sizes = tuple(args[0]) if args and isinstance(args[0], (tuple, list)) else args
        if named == "unsqueeze" and signal.key == (INPUT,) and sizes == (0,) and not signal.time:
            return replace(signal, key=(INPUT, "unsqueezed"))
        once = all(n in ((1,) if named == "repeat" else (-1,)) or isinstance(n, _Size) for n in sizes[1:])
        if named != "unsqueeze" and signal.key == (INPUT, "unsqueezed") and once and type(sizes[0]) is int:
            self.calls[INPUT] = sizes[0]
            return replace(signal, key=(INPUT,), time=True)
        raise self.refuse("changes axes; only x.unsqueeze(0).repeat(T, 1, ...) of the input may")

    # The end

    def output(self, returned: Any, read: Read | None) -> Value:
        """What is read of what the model returns."""
        self.where = "what the model returns"
        late = [path for path, times in self.calls.items() if times != self.steps and path != INPUT]
        if self.steps is not None and late and INPUT not in self.calls:
            raise UnsupportedError(
                f"module {late[0]!r} runs {self.calls[late[0]]} times and others {self.steps} times; all "
                "neurons run once in each step"
            )
        parts = [self.finished(part) for part in _leaves(returned)]
        spikes = [p for p in parts if p is not None and p.signal is not None]
        states = [p for p in parts if p is not None and p.signal is None]
        if read is None:
            if spikes and states:
                raise self.refuse("has spikes and membranes; say which is read: read='spikes' or read='membrane'")
            if any(s.signal is not None and s.signal.key[0] != "neurons" for s in spikes):
                raise self.refuse(
                    "does not come from neurons; add them, or give read='current' to sum it up over all steps"
                )
            read = "spikes" if spikes else "membrane"
        if read == "membrane":
            paths = {s.path for s in states}
            if len(paths) != 1:
                raise self.refuse("is not the membrane of one layer; return it, or choose another read")
            path = paths.pop()
            if self.rules[path].reset != "none":
                raise self.refuse(
                    f"is the membrane of {path!r}, which spikes and is reset; a description reads membranes of neurons "
                    "that do not spike: use read='spikes' or reset_mechanism='none'"
                )
            return Value((Term(_named(path, self.modules[path])),))
        keys = {s.signal.key: s.signal for s in spikes if s.signal is not None}
        if len(keys) != 1:
            raise self.refuse("is not the result of one layer; return one")
        (signal,) = keys.values()
        self.check_read(read, signal)
        if read == "current":
            return self.work.neurons(self.where, self.free_name(), NeuronRule(reset="none"), signal.value)
        return signal.value

    def check_read(self, read: Read, signal: _Signal) -> None:
        """Whether a signal can be read so."""
        if (read == "spikes") != (signal.key[0] == "neurons"):
            what = "comes from neurons: use read='spikes'" if read == "current" else "does not come from neurons"
            raise self.refuse(what)
        if read == "spikes" and self.rules[signal.key[1]].reset == "none":
            raise self.refuse(
                f"is the spikes of {signal.key[1]!r}, which is never reset; a description has no such neurons: read "
                "its membrane"
            )

    def free_name(self) -> str:
        """Of the population that sums up currents."""
        name = "readout"
        while name in self.work.layers:
            name += "_"
        return name

    def finished(self, part: Any) -> _Record | None:
        """A returned part, after checking that it covers all steps."""
        if isinstance(part, _State):
            if part.step != (self.steps or 1) - 1:
                raise self.refuse(f"has the {part.name} of {part.path!r} after step {part.step}, not after the last")
            return _Record(None, part.path, ()) if part.name == "mem" else None
        if isinstance(part, _Signal):
            if self.steps is not None and not part.time:
                raise self.refuse("is the result of one step of a loop; stack or add up the results of all steps")
            return _Record(part, "", ())
        if isinstance(part, _Record):
            if part.steps and sorted(part.steps) != list(range(self.steps or 1)):
                raise self.refuse(
                    f"is made of {len(set(part.steps))} of {self.steps} steps; a readout takes each of them once"
                )
            return part
        if part is None or isinstance(part, (int, float, _Size, _Zeros)):
            return None
        raise self.refuse("is something that no layer gives")


def _leaves(returned: Any) -> list[Any]:
    if isinstance(returned, Mapping):
        returned = list(returned.values())
    if isinstance(returned, (tuple, list)):
        return [leaf for part in returned for leaf in _leaves(part)]
    return [returned]


def _named(path: str, module: nn.Module) -> str:
    """A population's name: the module's path, after what it is where that is a number (in a Sequential)."""
    name = population_name(path)
    return name if path[:1].isalpha() else f"{type(module).__name__.lower()}{path.replace('.', '_')}"


_FUNCTIONS: dict[Any, type[nn.Module]] = {
    F.avg_pool1d: nn.AvgPool1d,
    F.avg_pool2d: nn.AvgPool2d,
    F.adaptive_avg_pool1d: nn.AdaptiveAvgPool1d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    F.max_pool1d: nn.MaxPool1d,
    F.max_pool2d: nn.MaxPool2d,
}
