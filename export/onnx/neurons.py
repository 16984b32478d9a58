"""The neurons of the description as ONNX functions: standard operators only, int64 inside.

Read the text below beside :mod:`lapilli.arithmetic`; it is what every exported file carries in its ``functions``.
Three kinds exist, by reset: ``LifSubtract``, ``LifZero`` and ``Integrate`` (reset "none"); the first two also with
graded spikes, ``GradedLifSubtract`` and ``GradedLifZero``. Each has three forms:

``LifSubtract``
    All time steps of a sample window: a Scan over the first axis of ``drive`` int64 ``[T, B, *shape]``.
``LifSubtractStep``
    One time step, used where populations form a cycle and the Scan runs over the whole network.
``LifSubtractTraced``
    As the first, and gives ``u`` and ``v`` at every step; never written to a file, only run by an executor.

Thresholds and decays are attributes of the node that calls the function, so that a viewer shows them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import onnx
import onnx.parser

from ...network import DECAY_ONE, Population, Reset

DOMAIN = "ai.lapilli"
DOMAIN_VERSION = 1
OPSET = 17

_NAMES: dict[Reset, str] = {"subtract": "LifSubtract", "zero": "LifZero", "none": "Integrate"}


class Kind(NamedTuple):
    """What decides which function a population is."""

    reset: Reset
    graded: bool = False

    @classmethod
    def of(cls, population: Population) -> Kind:
        """The kind of a population."""
        return cls(population.reset, population.graded)


# ONNX: integer Div truncates toward zero (opset 14), Mod has the sign of the divisor, which is positive here.
_CURRENT_AND_MEMBRANE = """
    u_kept = Mul (u_last, keep_u)
    u_decayed = Div (u_kept, decay_one)
    u_exact = Add (u_decayed, drive_now)
    u_below_half = Sub (half, u_exact)
    u_folded = Mod (u_below_half, full)
    u = Sub (half, u_folded)
    v_kept = Mul (v_last, keep_v)
    v_decayed = Div (v_kept, decay_one)
    v_driven = Add (v_decayed, u)
    v_exact = Add (v_driven, bias)
    v_clipped = Clip (v_exact, v_min, v_max)
"""
_FIRE = """
    fired = Greater (v_clipped, theta)
    s = Cast <to = 2> (fired)
"""
# Where it fires the membrane is positive, so that Div rounds down.
_FIRE_GRADED = """
    fired = Greater (v_clipped, theta)
    fired_int64 = Cast <to = 7> (fired)
    quotient = Div (v_clipped, payload_unit)
    payload = Clip (quotient, one, payload_most)
    sent = Mul (fired_int64, payload)
    s = Cast <to = 6> (sent)
"""
_STEP: dict[Kind, str] = {
    Kind("subtract"): _CURRENT_AND_MEMBRANE
    + _FIRE
    + """
    fired_int64 = Cast <to = 7> (fired)
    drop = Mul (fired_int64, rho)
    v = Sub (v_clipped, drop)
""",
    Kind("zero"): _CURRENT_AND_MEMBRANE
    + _FIRE
    + """
    v = Where (fired, rest, v_clipped)
""",
    Kind("none"): _CURRENT_AND_MEMBRANE
    + """
    v = Identity (v_clipped)
""",
    Kind("subtract", graded=True): _CURRENT_AND_MEMBRANE
    + _FIRE_GRADED
    + """
    drop = Mul (sent, rho)
    v = Sub (v_clipped, drop)
""",
    Kind("zero", graded=True): _CURRENT_AND_MEMBRANE
    + _FIRE_GRADED
    + """
    v = Where (fired, rest, v_clipped)
""",
}

_CONSTANTS = f"""
    decay_one = Constant <value_int = {DECAY_ONE}> ()
    one = Constant <value_int = 1> ()
    two = Constant <value_int = 2> ()
    du = Constant <value_int: int = @du> ()
    dv = Constant <value_int: int = @dv> ()
    keep_u = Sub (decay_one, du)
    keep_v = Sub (decay_one, dv)
    bits = Constant <value_int: int = @state_bits> ()
    bits_below_sign = Sub (bits, one)
    half = Pow (two, bits_below_sign)
    full = Mul (half, two)
    v_max = Sub (half, one)
    v_min = Neg (v_max)
"""
_CONSTANTS_OF_RESET: dict[Reset, str] = {
    "subtract": """
    theta = Constant <value_int: int = @threshold> ()
    rho = Constant <value_int: int = @reset_amount> ()
""",
    "zero": """
    theta = Constant <value_int: int = @threshold> ()
    rest = Constant <value_int = 0> ()
""",
    "none": "",
}
_CONSTANTS_OF_PAYLOAD = """
    payload_most = Constant <value_int: int = @payload_max> ()
    payload_bits = Constant <value_int: int = @payload_shift> ()
    payload_unit = Pow (two, payload_bits)
"""
_START = """
    shape = Shape <start = 1> (drive)
    u_start = ConstantOfShape <value = int64[1] {0}> (shape)
    v_init = Constant <value_int: int = @v_init> ()
    v_start = Expand (v_init, shape)
"""

_MEANING = (
    "At every step: u = trunc(u (4096 - du) / 4096) + drive, wrapped to state_bits; "
    "v = trunc(v (4096 - dv) / 4096) + u + bias, saturated at state_bits; "
)
_MEANING_OF_RESET: dict[Reset, str] = {
    "subtract": "s = v > threshold; v = v - reset_amount s.",
    "zero": "s = v > threshold; v = 0 where s.",
    "none": "no spikes.",
}
_MEANING_OF_PAYLOAD = " The 1 of a spike is clip(floor(v / 2^payload_shift), 1, payload_max)."


def attributes(population: Population, *, step: bool = False) -> dict[str, int]:
    """Attributes of the node that stands for a population; a step function has no ``v_init``."""
    return {name: getattr(population, name) for name in _attribute_names(Kind.of(population), step)}


def _attribute_names(kind: Kind, step: bool) -> tuple[str, ...]:
    fire = {"subtract": ("threshold", "reset_amount"), "zero": ("threshold",), "none": ()}[kind.reset]
    payload = ("payload_max", "payload_shift") if kind.graded else ()
    return (*fire, *payload, "du", "dv", "state_bits", *(() if step else ("v_init",)))


def function_name(kind: Kind, *, step: bool = False, traced: bool = False) -> str:
    """Name of the function of a kind, e.g. ``LifZeroStep``."""
    return ("Graded" if kind.graded else "") + _NAMES[kind.reset] + ("Step" if step else "Traced" if traced else "")


@lru_cache
def neuron_function(kind: Kind, *, step: bool = False, traced: bool = False) -> onnx.FunctionProto:
    """The function of a kind; callers must not change it (it is shared).

    ``LifSubtract (drive, bias) => (spikes, v_final)``: int64 ``[T, B, *shape]`` and int64 broadcastable to
    ``[*shape]``, to uint8 ``[T, B, *shape]`` (graded: int32) and int64 ``[B, *shape]``. ``Integrate`` has no
    ``spikes``. ``...Traced`` adds ``u_trace, v_trace`` int64 ``[T, B, *shape]``.
    ``LifSubtractStep (drive_now, bias, u_last, v_last) => (s, u, v)``, all ``[B, *shape]``.
    """
    spikes = kind.reset != "none"
    names = ", ".join(_attribute_names(kind, step))
    constants = _CONSTANTS + _CONSTANTS_OF_RESET[kind.reset] + (_CONSTANTS_OF_PAYLOAD if kind.graded else "")
    if step:
        head = f"<{names}> (drive_now, bias, u_last, v_last) => ({'s, ' if spikes else ''}u, v)"
        body = constants + _STEP[kind]
    else:
        results = [*(["spikes"] if spikes else []), "v_final", *(["u_trace", "v_trace"] if traced else [])]
        head = f"<{names}> (drive, bias) => ({', '.join(results)})"
        scan_results = [*(["spikes"] if spikes else []), *(["u_trace", "v_trace"] if traced else [])]
        sent = ["int32[] s" if kind.graded else "uint8[] s"] if spikes else []
        seen = [*sent, *(["int64[] u_seen", "int64[] v_seen"] if traced else [])]
        look = "\n    u_seen = Identity (u)\n    v_seen = Identity (v)\n" if traced else ""
        body = (
            f"{constants}{_START}\n    {', '.join(['u_final', 'v_final', *scan_results])} = Scan <num_scan_inputs = 1, "
            "body = step (int64[] u_last, int64[] v_last, int64[] drive_now) => "
            f"({', '.join(['int64[] u', 'int64[] v', *seen])}) {{{_STEP[kind]}{look}}}> (u_start, v_start, drive)\n"
        )
    text = f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>\n'
    text += f"{function_name(kind, step=step, traced=traced)} {head}\n{{{body}}}"
    function = onnx.parser.parse_function(text)
    function.doc_string = _MEANING + _MEANING_OF_RESET[kind.reset] + (_MEANING_OF_PAYLOAD if kind.graded else "")
    return function
