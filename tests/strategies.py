"""Random networks and inputs for property-based tests: every executor runs the same cases."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from lapilli.network import INPUT, Connection, Conv2d, Dense, Input, Network, Population, Readout, Scale

RESETS = ("subtract", "zero")


def integers_like(rng: np.random.Generator, low: int, high: int, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(low, high + 1, shape)


@st.composite
def populations(draw, name, shape, *, resets=RESETS, stock=False, wild=False, graded=True):
    """A population; ``stock``: only what Loihi's registers can hold; ``wild``: may wrap and saturate.

    ``graded``: may send graded spikes (never where ``stock``).
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    reset = draw(st.sampled_from(resets))
    grid = 64 if stock else draw(st.sampled_from((1, 64)))
    threshold = grid * draw(st.integers(0, 2**17 - 1 if wild else 600))
    threshold = min(threshold, 2**23 - 1)
    per = draw(st.sampled_from(("none", "all", "channel", "neuron")))
    bias_shape = {"none": (1,), "all": (1,), "channel": (shape[0], *[1] * (len(shape) - 1)), "neuron": shape}[per]
    limit = 64 * (4095 if wild else 60)
    bias = np.zeros((1,), np.int64) if per == "none" else integers_like(rng, -limit // 64, limit // 64, bias_shape) * 64
    shift, payload = 0, 1
    if graded and not stock and reset != "none" and draw(st.sampled_from((False, False, True))):
        shift = draw(st.integers(0, 8))
        payload = draw(st.sampled_from((2, 3, 15, 255, 256, *((2**15 - 1, 2**20) if wild else ()))))
        payload = min(payload, (2**23 - 1) >> shift)
    reset_amount = draw(st.integers(0, max(1, 2 * threshold))) if reset == "subtract" else 0
    return Population(
        name=name,
        shape=shape,
        threshold=0 if reset == "none" else threshold,
        reset=reset,
        reset_amount=reset_amount % ((2**23 - 1) // payload + 1),
        payload_max=payload,
        payload_shift=shift,
        du=draw(st.one_of(st.just(4096), st.integers(0, 4096))),
        dv=draw(st.one_of(st.just(0), st.integers(0, 4096 if not stock else 4095))),
        bias=bias,
        v_init=0 if stock and reset == "zero" else draw(st.one_of(st.just(0), st.integers(-5000, 5000))),
    )


@st.composite
def networks(
    draw,
    *,
    resets=RESETS,
    stock=False,
    wild=False,
    sequential=False,
    acyclic=True,
    max_steps=8,
    delays=False,
    binary=None,
    graded=True,
):
    """A network of 1 to 4 populations: convolutions first, dense ones after; branches unless ``sequential``.

    ``delays``: axonal delays may occur; ``acyclic=False``: recurrent connections (delay >= 1) may occur.
    ``graded``: populations may send graded spikes. The last population may be a readout accumulator (reset "none").
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    low, high = {None: draw(st.sampled_from(((0, 1), (0, 16), (-7, 8)))), True: (0, 1), False: (0, 16)}[binary]
    shape = draw(st.sampled_from(((1, 5, 6), (2, 6, 5), (3, 4, 4), (7,))))
    net_input = Input(shape=shape, low=low, high=high, scale=np.array([1.0 / high]))
    made: list[Population] = []
    connections: list[Connection] = []

    def weight(size):
        bits = draw(st.sampled_from((8, 8, 6, 4, 2)))
        w = integers_like(rng, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, size)
        return w * (rng.random(size) < draw(st.sampled_from((1.0, 0.5)))), bits

    def connect(source, source_shape, target, synapse, bits):
        delay = draw(st.integers(0, 3)) if delays else 0
        exponent = draw(st.integers(0, 3 if not wild else 8))
        connections.append(
            Connection(
                source=source, target=target, synapse=synapse, weight_bits=bits, weight_exponent=exponent, delay=delay
            )
        )

    count = draw(st.integers(1, 4))
    source, source_shape = INPUT, shape
    for i in range(count):
        last = i == count - 1
        name = f"p{i}"
        kinds = ["dense"] + (["conv", "conv", "scale"] if len(source_shape) == 3 else ["scale"])
        kind = draw(st.sampled_from(kinds))
        if kind == "conv":
            c, y, x = source_shape
            k = (draw(st.integers(1, min(3, y))), draw(st.integers(1, min(3, x))))
            groups = draw(st.sampled_from([g for g in (1, 2, 3) if c % g == 0]))
            c_out = groups * draw(st.integers(1, 3))
            w, bits = weight((c_out, c // groups, *k))
            synapse = Conv2d(
                w,
                stride=(draw(st.integers(1, 2)), draw(st.integers(1, 2))),
                padding=(draw(st.integers(0, 2)), draw(st.integers(0, 2))),
                groups=groups,
            )
            out = synapse.output_size(source_shape)
            if draw(st.booleans()) and min(out[1:]) >= 3 and min(y, x) >= 5 and max(k) <= 2:
                synapse = Conv2d(w, padding=synapse.padding, dilation=2, groups=groups)
                out = synapse.output_size(source_shape)
        elif kind == "dense":
            out = (draw(st.integers(1, 9)),)
            w, bits = weight((out[0], int(np.prod(source_shape))))
            synapse = Dense(w)
        else:
            w, bits = weight((draw(st.sampled_from((1, source_shape[0]))),))
            synapse, out = Scale(w), source_shape
        kinds_of_reset = (*resets, "none") if last else resets
        p = draw(populations(name, out, resets=kinds_of_reset, stock=stock, wild=wild, graded=graded))
        made.append(p)
        connect(source, source_shape, name, synapse, bits)
        if not sequential and i >= 1 and draw(st.booleans()):  # a branch that skips layers
            earlier = draw(st.sampled_from([INPUT, *[q.name for q in made[:-1]]]))
            if not any(c.source == earlier and c.target == name for c in connections):
                earlier_shape = shape if earlier == INPUT else next(q.shape for q in made if q.name == earlier)
                w, bits = weight((int(np.prod(out)), int(np.prod(earlier_shape))))
                connect(earlier, earlier_shape, name, Dense(w), bits)
        source, source_shape = name, out
    if not acyclic and made[-1].spikes and draw(st.booleans()):
        back = draw(st.sampled_from([q.name for q in made]))
        size = next(q.size for q in made if q.name == back)
        w, bits = weight((size, made[-1].size))
        connections.append(
            Connection(
                source=made[-1].name,
                target=back,
                synapse=Dense(w),
                weight_bits=bits,
                delay=draw(st.integers(1, 3)),
                name="feedback",
            )
        )
    readout = Readout(population=made[-1].name, kind="count" if made[-1].spikes else "membrane")
    return Network(
        name="random",
        steps=draw(st.integers(1, max_steps)),
        input=net_input,
        populations=made,
        connections=connections,
        readout=readout,
    )


@st.composite
def inputs(draw, network, *, max_batch=4):
    """Integer input for a network: constant or frames."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch = draw(st.integers(1, max_batch))
    lead = (network.steps, batch) if draw(st.booleans()) else (batch,)
    return rng.integers(network.input.low, network.input.high + 1, (*lead, *network.input.shape))


@st.composite
def networks_with_input(draw, **kwargs):
    network = draw(networks(**kwargs))
    return network, draw(inputs(network))


@st.composite
def cyclic_networks_with_input(draw):
    """Up to four populations of one shape with connections in all directions, and input; every kind of synapse."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.sampled_from(((5,), (70,), (3, 4, 3), (66, 2, 2))))
    size, channels = int(np.prod(shape)), shape[0]
    made = [draw(populations(f"p{i}", shape, wild=True)) for i in range(draw(st.integers(1, 4)))]
    names = [p.name for p in made]
    every = [(s, t) for s in (INPUT, *names) for t in names]
    chosen = draw(st.sets(st.sampled_from(every), max_size=8)) | {(INPUT, names[0]), (names[-1], names[0])}
    connections = []
    for source, target in sorted(chosen):
        back = source != INPUT and names.index(source) >= names.index(target)
        kinds = ["scale", "conv", "depthwise", "dense"] if len(shape) == 3 else ["scale", "dense", "dense"]
        kind = draw(st.sampled_from(kinds))
        if kind == "scale":
            synapse = Scale(rng.integers(-128, 128, channels))
        elif kind == "conv":
            synapse = Conv2d(rng.integers(-128, 128, (channels, channels, 3, 3)), padding=1)
        elif kind == "depthwise":
            synapse = Conv2d(rng.integers(-128, 128, (channels, 1, 3, 3)), padding=1, groups=channels)
        else:
            synapse = Dense(rng.integers(-128, 128, (size, size)))
        exponent, delay = draw(st.integers(0, 6)), draw(st.integers(int(back), 4))
        connections.append(
            Connection(source=source, target=target, synapse=synapse, weight_exponent=exponent, delay=delay)
        )
    network = Network(
        name="cyclic",
        steps=draw(st.integers(1, 13)),
        input=Input(shape=shape, high=draw(st.sampled_from((1, 1, 9)))),
        populations=draw(st.permutations(made)),
        connections=connections,
        readout=Readout(population=names[-1]),
    )
    return network, draw(inputs(network, max_batch=7))
