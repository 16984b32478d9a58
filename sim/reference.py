"""The golden reference: one time step at a time, in the words of the description.

Read it beside :mod:`lapilli.network`. It is never optimized; every other executor is held to it.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from ..arithmetic import neuron_step, synapse_sum
from ..network import INPUT, IntArray, Network
from ..overflow import LAVA, OverflowPolicy
from ..recording import Recording, at_every_step


def reference(network: Network, x: IntArray, trace: Collection[str] = (), policy: OverflowPolicy = LAVA) -> Recording:
    """Run a batch; see :class:`lapilli.recording.Executor`. ``policy``: what to do with overflows, to compare."""
    frames = at_every_step(network, x)
    batch = frames.shape[1]
    out = Recording(
        wraps={p.name: 0 for p in network.populations}, saturations={p.name: 0 for p in network.populations}
    )
    sent: dict[str, list[IntArray]] = {INPUT: list(frames)}  # what each population has sent so far, step by step
    u: dict[str, IntArray] = {}
    v: dict[str, IntArray] = {}
    traces: dict[str, dict[str, list[IntArray]]] = {p: {"current": [], "u": [], "v": []} for p in trace}
    for p in network.populations:
        sent[p.name] = []
        u[p.name] = np.zeros((batch, *p.shape), np.int64)
        v[p.name] = np.full((batch, *p.shape), p.v_init, np.int64)

    for n in range(network.steps):
        for p in network.order:
            drive = np.zeros((batch, *p.shape), np.int64)
            for c in network.incoming(p.name):
                if n - c.delay >= 0:
                    drive += synapse_sum(c.synapse, sent[c.source][n - c.delay], p.shape) << (
                        p.fraction_bits + c.weight_exponent
                    )
            step = neuron_step(p, u[p.name], v[p.name], drive, policy)
            u[p.name], v[p.name] = step.u, step.v
            sent[p.name].append(step.spikes)
            out.wraps[p.name] += int(step.wrapped.sum())
            out.saturations[p.name] += int(step.saturated.sum())
            if p.name in traces:
                for what, value in (("current", drive), ("u", step.u), ("v", step.v)):
                    traces[p.name][what].append(value)

    for p in network.populations:
        if p.spikes:
            out.spikes[p.name] = np.stack(sent[p.name]).astype(p.spike_dtype)
        out.v_final[p.name] = v[p.name]
    for name, recorded in traces.items():
        out.current[name], out.u[name], out.v[name] = (np.stack(recorded[what]) for what in ("current", "u", "v"))
    return out
