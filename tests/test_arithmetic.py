"""The integer arithmetic, held to definitions written in another way."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lapilli.arithmetic import decay, decay_integer, fan_out, neuron_step, saturate, synapse_sum, wrap
from lapilli.network import Conv2d, Dense, Population, Scale

states = st.integers(-(2**31), 2**31)


@given(states, st.integers(0, 4096))
def test_decay_truncates_toward_zero(x, d):
    assert int(decay(np.int64(x), d)) == math.trunc(Fraction(x * (4096 - d), 4096))
    assert decay_integer(x, d) == math.trunc(Fraction(x * (4096 - d), 4096))


@given(states, st.integers(2, 32))
def test_wrap_is_congruent_and_half_open(x, bits):
    wrapped = int(wrap(np.int64(x), bits))
    assert (wrapped - x) % 2**bits == 0
    assert -(2 ** (bits - 1)) < wrapped <= 2 ** (bits - 1)


@given(states, st.integers(2, 32))
def test_saturate_is_the_nearest_representable(x, bits):
    limit = 2 ** (bits - 1) - 1
    assert int(saturate(np.int64(x), bits)) == max(-limit, min(limit, x))


def step(v, drive, **options):
    population = Population(name="p", shape=(1,), **options)
    one = lambda value: np.array([[value]], np.int64)  # noqa: E731
    made = neuron_step(population, one(0), one(v), one(drive))
    return int(made.v[0, 0]), bool(made.spikes[0, 0])


@pytest.mark.parametrize(
    ("reset", "amount", "expected"),
    [("subtract", 100, (101, True)), ("subtract", 60, (141, True)), ("zero", 0, (0, True)), ("none", 0, (201, False))],
)
def test_resets(reset, amount, expected):
    assert step(150, 51, threshold=200, reset=reset, reset_amount=amount) == expected


def test_threshold_is_strict():
    assert step(150, 50, threshold=200, reset="zero") == (200, False)


def test_membrane_saturates_and_current_wraps():
    population = Population(name="p", shape=(1,), reset="none")
    big = np.array([[2**23 + 5]], np.int64)
    made = neuron_step(population, 0 * big, 0 * big, big)
    assert made.u[0, 0] == -(2**23) + 5
    assert made.wrapped[0, 0]
    made = neuron_step(population, 0 * big, np.array([[2**23 - 2]], np.int64), np.array([[9]], np.int64))
    assert made.v[0, 0] == 2**23 - 1
    assert made.saturated[0, 0]


def direct_convolution(x, synapse, target):
    """One multiplication at a time, straight from the definition."""
    out = np.zeros((len(x), *target), np.int64)
    per_group_out = target[0] // synapse.groups
    per_group_in = x.shape[1] // synapse.groups
    c_out, c_in, k_y, k_x = synapse.weight.shape
    for b, co, yo, xo, ci, i, j in np.ndindex(len(x), c_out, target[1], target[2], c_in, k_y, k_x):
        y = yo * synapse.stride[0] - synapse.padding[0] + i * synapse.dilation[0]
        z = xo * synapse.stride[1] - synapse.padding[1] + j * synapse.dilation[1]
        if 0 <= y < x.shape[2] and 0 <= z < x.shape[3]:
            source = (co // per_group_out) * per_group_in + ci
            out[b, co, yo, xo] += int(synapse.weight[co, ci, i, j]) * int(x[b, source, y, z])
    return out


CONVOLUTIONS = [
    {},
    {"stride": 2, "padding": 1},
    {"stride": (1, 2), "padding": (0, 2)},
    {"dilation": 2, "padding": 2},
    {"groups": 2, "padding": (2, 1)},
]


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_convolution_and_its_fan_out(options):
    rng = np.random.default_rng(1)
    groups = options.get("groups", 1)
    weight = rng.integers(-3, 4, (4, 2 // groups, 3, 2))
    synapse = Conv2d(weight, **options)
    x = rng.integers(-5, 6, (2, 2, 6, 5))
    target = synapse.output_size((2, 6, 5))
    np.testing.assert_array_equal(synapse_sum(synapse, x, target), direct_convolution(x, synapse, target))

    ones = Conv2d(np.where(weight != 0, 1, 0), **options)
    out = fan_out(synapse, (2, 6, 5), target)
    for index in np.ndindex(2, 6, 5):
        spike = np.zeros((1, 2, 6, 5), np.int64)
        spike[(0, *index)] = 1
        assert out[index] == direct_convolution(spike, ones, target).sum()


def test_dense_flattens_in_c_order_and_scale_is_per_channel():
    x = np.arange(8).reshape(1, 2, 2, 2)
    weight = np.eye(8, dtype=np.int64)[::-1]
    np.testing.assert_array_equal(synapse_sum(Dense(weight), x, (8,))[0], np.arange(8)[::-1])
    np.testing.assert_array_equal(fan_out(Dense([[1, 0, 2], [0, 0, 3]]), (3,), (2,)), [1, 0, 2])
    per_channel = synapse_sum(Scale([2, -1]), x, (2, 2, 2))
    np.testing.assert_array_equal(per_channel[0, 1], -x[0, 1])
    np.testing.assert_array_equal(fan_out(Scale([2, 0]), (2, 2, 2), (2, 2, 2)).sum(axis=(1, 2)), [4, 0])
