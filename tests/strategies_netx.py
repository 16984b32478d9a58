"""Random networks that a lava-dl .net file can say."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from lapilli.errors import UnsupportedError
from lapilli.export.netx.writing import net_layers
from lapilli.network import INPUT, Connection, Conv2d, Dense, Input, Network, Population, Readout


@st.composite
def net_networks(draw, *, delays=True, recurrent=True):
    """Convolutions first, dense layers after; delays on dense layers, feedback of delay 1, a readout at the end."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    low, high = draw(st.sampled_from(((0, 1), (0, 1), (0, 16), (-7, 8))))
    shape = draw(st.sampled_from(((2, 6, 5), (3, 4, 4), (7,))))
    made: list[Population] = []
    connections: list[Connection] = []
    source, at = INPUT, shape
    convolutions = draw(st.integers(0, 2)) if len(shape) == 3 else 0
    count = convolutions + draw(st.integers(0 if convolutions else 1, 2))

    def weights(size):
        sign = draw(st.sampled_from(("mixed", "mixed", "positive", "negative")))
        most = draw(st.sampled_from((127, 100, 20, 3)))
        w = rng.integers(
            {"mixed": -most, "positive": 0, "negative": -most}[sign], {"negative": 0}.get(sign, most) + 1, size
        )
        return w, draw(st.integers(0, 1))

    for i in range(count):
        name, last = f"p{i}", i == count - 1
        if i < convolutions:
            groups = draw(st.sampled_from([g for g in (1, 2, 3) if at[0] % g == 0]))
            kernel = draw(st.integers(1, min(3, *at[1:]))), draw(st.integers(1, min(3, *at[1:])))
            w, exponent = weights((groups * draw(st.integers(1, 2)), at[0] // groups, *kernel))
            synapse = Conv2d(
                w,
                stride=(draw(st.integers(1, 2)), draw(st.integers(1, 2))),
                padding=(draw(st.integers(0, 2)), draw(st.integers(0, 2))),
                groups=groups,
            )
            out = synapse.output_size(at)
            connections.append(Connection(source=source, target=name, synapse=synapse, weight_exponent=exponent))
        else:
            out = (draw(st.integers(1, 6)),)
            w, exponent = weights((*out, int(np.prod(at))))
            slots = draw(st.sampled_from((1, 1, 2))) if delays else 1
            slot = rng.integers(0, slots, w.shape)
            connections += [
                Connection(
                    source=source,
                    target=name,
                    synapse=Dense(np.where(slot == s, w, 0)),
                    weight_exponent=exponent,
                    delay=draw(st.integers(0, 3)) if delays else 0,
                    name=f"{source}->{name}:{s}",
                )
                for s in range(slots)
            ]
        reset = draw(st.sampled_from(("zero", "zero", "none"))) if last else "zero"
        per = draw(st.sampled_from(("none", "channel", "neuron")))
        bias_shape = {"none": (1,), "channel": (out[0], *[1] * (len(out) - 1)), "neuron": out}[per]
        made.append(
            Population(
                name=name,
                shape=out,
                threshold=64 * int(rng.integers(0, 400)) if reset == "zero" else 0,
                reset=reset,
                du=draw(st.one_of(st.just(4096), st.integers(0, 4096))),
                dv=draw(st.one_of(st.just(0), st.integers(0, 4096))),
                bias=rng.integers(-20, 60, bias_shape) * 64 * (per != "none"),
            )
        )
        if i >= convolutions and reset == "zero" and recurrent and draw(st.booleans()):
            w, exponent = weights((*out, *out))
            connections.append(
                Connection(source=name, target=name, synapse=Dense(w), weight_exponent=exponent, delay=1)
            )
        source, at = name, out
    network = Network(
        name="random",
        steps=draw(st.integers(1, 8)),
        input=Input(shape=shape, low=low, high=high, scale=np.array([1.0 / high])),
        populations=made,
        connections=connections,
        readout=Readout(population=made[-1].name, kind="count" if made[-1].spikes else "membrane"),
    )
    try:
        net_layers(network)
    except UnsupportedError:  # delays beside feedback, or one of lava-dl's packing traps
        from hypothesis import reject

        reject()
    return network
