"""The golden reference against hand-computed steps and a recorded Loihi 2 neuron."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lapilli.network import INPUT, Connection, Dense, Input, Network, Population
from lapilli.sim.reference import reference

TRACE = Path(__file__).parents[2] / "shared" / "data" / "reference" / "loihi2-lif-trace.csv"


def one_neuron(weight, *, steps, delay=0, **population):
    p = Population(name="p", shape=(1,), **population)
    return Network(
        name="one",
        steps=steps,
        input=Input(shape=(1,)),
        populations=(p,),
        connections=(Connection(source=INPUT, target="p", synapse=Dense([[weight]]), delay=delay),),
    )


def run(network, spikes):
    out = reference(network, np.array(spikes).reshape(-1, 1, 1), ["p"])
    return {k: getattr(out, k)["p"].ravel().tolist() for k in ("current", "u", "v")} | {
        "s": out.spikes["p"].ravel().tolist() if "p" in out.spikes else None
    }


def test_soft_reset_by_hand():
    """u: 128, 64, 32+128, 80; v leaks by half; theta 150, rho 100."""
    got = run(one_neuron(2, steps=4, threshold=150, reset_amount=100, du=2048, dv=2048), [1, 0, 1, 0])
    assert got["current"] == [128, 0, 128, 0]
    assert got["u"] == [128, 64, 160, 80]
    # 128; 64+64=128; 64+160=224 fires -> 124; 62+80=142
    assert got["v"] == [128, 128, 124, 142]
    assert got["s"] == [0, 0, 1, 0]


def test_hard_reset_by_hand():
    got = run(one_neuron(2, steps=4, threshold=127, reset="zero", dv=2048), [1, 0, 1, 1])
    assert got["u"] == [128, 0, 128, 128]
    assert got["v"] == [0, 0, 0, 0]  # 128 fires, 0, 128 fires, 128 fires
    assert got["s"] == [1, 0, 1, 1]


def test_no_reset_by_hand():
    got = run(one_neuron(-1, steps=4, reset="none", dv=1024, bias=[7], v_init=100), [1, 1, 0, 0])
    # 75 - 64 + 7 = 18; trunc(13.5) = 13 - 57 = -44; trunc(-33.0) + 7 = -26; trunc(-19.5) = -19 + 7 = -12
    assert got["v"] == [18, -44, -26, -12]
    assert got["s"] is None


def test_a_membrane_at_the_threshold_does_not_fire():
    assert run(one_neuron(1, steps=3, threshold=128, reset="zero"), [1, 1, 1])["s"] == [0, 0, 1]


def test_axonal_delay_by_hand():
    got = run(one_neuron(1, steps=4, delay=2, threshold=1000, reset_amount=1000), [1, 0, 1, 1])
    assert got["current"] == [0, 0, 64, 0]


def test_wrap_and_saturation_by_hand():
    """8 bits: u in -127..128 wraps, v in -127..127 saturates."""
    n = one_neuron(100, steps=2, threshold=127, du=0, reset="zero", state_bits=8, fraction_bits=0)
    got = reference(n, np.ones((1, 1), np.int64), ["p"])
    assert got.u["p"].ravel().tolist() == [100, 200 - 256]
    assert got.v["p"].ravel().tolist() == [100, 100 - 56]
    assert (got.wraps, got.saturations) == ({"p": 1}, {"p": 0})
    n = one_neuron(100, steps=2, threshold=127, reset="zero", state_bits=8, fraction_bits=0)
    got = reference(n, np.ones((1, 1), np.int64), ["p"])
    assert got.v["p"].ravel().tolist() == [100, 127]
    assert (got.wraps, got.saturations) == ({"p": 0}, {"p": 1})


@pytest.mark.skipif(not TRACE.exists(), reason=f"the recorded trace {TRACE.name} is not beside this checkout")
def test_every_row_of_a_recorded_loihi_2_neuron():
    """neuromorphs/NIR paper/01_lif/lif_lava_loihi_fixed.csv: dv 163, weight 10, threshold mantissa 25, one step late.

    The chip reads out 128, its refractory counter, where the neuron has just spiked.
    """
    stimulus, membrane, spikes = np.loadtxt(TRACE, delimiter=",").T.astype(np.int64)
    network = one_neuron(10, steps=len(stimulus), delay=1, threshold=25 << 6, reset="zero", dv=163)
    got = run(network, stimulus)
    assert spikes.sum() == 4
    assert got["s"] == spikes.tolist()
    np.testing.assert_array_equal(np.where(spikes == 1, 128, got["v"]), membrane)
