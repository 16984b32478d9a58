"""The profile says how each layer was summed, and leaves every bit and count alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_cli import call
from test_engine import ring
from test_kernels import cnn, mlp

import lapilli
from lapilli.network import INPUT
from lapilli.sim import simulate
from lapilli.sim.engine import kernels, threads
from lapilli.sim.engine.profile import Profiler

compiled = pytest.mark.skipif(kernels.best_level() < 0, reason="lapilli was installed without a compiler")


def cycle():
    """Populations that hear each other, and a readout that hears them."""
    network = ring()
    return network, np.random.default_rng(0).integers(0, 2, (network.steps, 23, 30))


@pytest.mark.parametrize("make", [mlp, cnn, cycle])
def test_a_profiled_run_is_the_same_run(make):
    network, x = make()
    profiler = Profiler()
    run, plain = simulate(network, x, profiler, batch=9), simulate(network, x, batch=9)
    assert run.engine == "fast"
    assert run.synop_totals == plain.synop_totals
    for name, counts in plain.counts.items():
        np.testing.assert_array_equal(run.counts[name], counts)
    layers = profiler.layers(run)
    assert [layer.population for layer in layers] == [p.name for p in network.flow]
    assert all(layer.seconds > 0 for layer in layers)


@compiled
def test_density_operations_and_path_of_a_layer_of_spikes(monkeypatch):
    network, x = mlp()
    for path in ("events", "products"):
        monkeypatch.setattr(kernels, "path", path)
        profiler = Profiler()
        run = simulate(network, x, profiler)
        first, second, _ = profiler.layers(run)
        assert first.path == second.path == path
        assert first.density == pytest.approx((x != 0).mean())
        assert second.density == pytest.approx(run.rates["p0"])
        assert second.synops == run.synop_totals["p0->p1"]
        assert second.of_peak == pytest.approx(second.rate / (profiler.peak * threads.count()))


@compiled
def test_a_constant_input_is_summed_once_and_graded_frames_as_products():
    network, x = cnn()
    for sample, path in ((x, "products"), (x[0], "once")):
        profiler = Profiler()
        run = simulate(network, sample, profiler)
        first = profiler.layers(run)[0]
        assert (first.path, first.density) == (path, None)
        assert first.synops == (0 if path == "once" else run.synop_totals[f"{INPUT}->a"])


def test_without_a_compiler_everything_is_numpy_and_there_is_no_peak(monkeypatch):
    monkeypatch.setattr(kernels, "level", -1)
    network, x = mlp()
    profiler = Profiler()
    run = simulate(network, x, profiler)
    assert {(layer.path, layer.of_peak) for layer in profiler.layers(run)} == {("NumPy", None)}


def test_the_command_shows_the_profile_and_refuses_other_engines(tmp_path):
    network, x = mlp()
    file, data = str(tmp_path / "net.onnx"), str(tmp_path / "x.npz")
    lapilli.save(network, file)
    np.savez(data, x=x)
    code, out, _ = call("sim", file, data, "--profile", "--json")
    profile = json.loads(out)["profile"]
    assert code == 0
    assert [layer["population"] for layer in profile["layers"]] == ["p0", "p1", "p2"]
    code, out, _ = call("sim", file, data, "--profile")
    assert code == 0
    assert "sums by" in out
    code, _, error = call("sim", file, data, "--profile", "--engine", "reference")
    assert code == 2
    assert "use fast" in error
