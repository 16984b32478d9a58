"""When each population works on which sample's which step: the pipelined schedule of a chip.

In the description spikes cross all layers within one algorithmic step. On Lava and on Loihi every connection costs
one chip step. So population ``p`` sees algorithmic step ``n`` of sample ``b`` at chip step::

    t = b T + n + d(p)        b = 0, 1, ..;  n = 1..T;  the first chip step is 1

where the depth ``d`` is the longest path from the input, and a connection that arrives early waits ``d(target) -
d(source) - 1`` chip steps more. Samples run back to back: the window of the next one begins when the last one ends,
population by population. At the first step of each window the state is set to its initial value, which wipes all
that biases and earlier samples left; only a delayed spike could get past that, so one that would arrive after its
sample's window is dropped where it is sent (``open_steps``).

An axonal delay of the description is time the chip does not have to add. With it a connection must satisfy
``d(target) >= d(source) + 1 - delay``, which is what makes recurrent connections possible: a cycle of ``k``
connections needs delays of at least ``k`` steps in total.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy.typing as npt

from ..errors import UnsupportedError
from ..network import INPUT, Connection, Network


@dataclass(frozen=True)
class Schedule:
    """The timetable of one network.

    Attributes
    ----------
    interval : int
        Chip steps from one sample to the next: the network's ``steps``.
    depth : dict of int
        ``d`` of every population, and 0 for the input.
    extra_delay : dict of int
        Chip steps that each connection waits beyond the one it costs.
    open_steps : dict of int
        How many steps of its source's window each connection transmits: all but the last ``delay`` ones.
    """

    interval: int
    depth: dict[str, int]
    extra_delay: dict[str, int]
    open_steps: dict[str, int]

    @cached_property
    def latency(self) -> int:
        """Chip steps by which the deepest population lags behind the input."""
        return max(self.depth.values())

    def first_step(self, name: str) -> int:
        """Chip step at which the window of the first sample begins (steps count from 1)."""
        return 1 + self.depth[name]

    def total_steps(self, samples: int) -> int:
        """Chip steps until the deepest population has finished the last of ``samples`` samples."""
        return samples * self.interval + self.latency

    def by_sample(self, recorded: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Sort what was recorded from a population's first step on: ``[B T, *shape]`` to ``[T, B, *shape]``."""
        return recorded.reshape(-1, self.interval, *recorded.shape[1:]).swapaxes(0, 1)


def _lead(connection: Connection) -> int:
    """By how many chip steps a target must lag behind the source at least."""
    return 1 - connection.delay


def make_schedule(network: Network) -> Schedule:
    """Work out the timetable.

    Raises
    ------
    UnsupportedError
        If a cycle has less delay than connections, so that a spike would have to arrive before it was sent.
    """
    depth = {INPUT: 0} | {p.name: 0 for p in network.populations}
    for _ in depth:  # longest paths: without a cycle of positive length they settle within that many rounds
        late = [c for c in network.connections if depth[c.target] < depth[c.source] + _lead(c)]
        if not late:
            break
        for c in late:
            depth[c.target] = max(depth[c.target], depth[c.source] + _lead(c))
    else:
        c = next(c for c in network.connections if depth[c.target] < depth[c.source] + _lead(c))
        raise UnsupportedError(
            f"connection {c.name!r} lies on a cycle with less delay than connections; each costs one step on the chip, "
            "so give the recurrent connection a delay of at least the number of connections on its cycle"
        )
    return Schedule(
        interval=network.steps,
        depth=depth,
        extra_delay={c.name: depth[c.target] - depth[c.source] - _lead(c) for c in network.connections},
        open_steps={c.name: max(0, network.steps - c.delay) for c in network.connections},
    )
