"""The process in which Lava runs: ``python -m lapilli.deploy.lava.worker FOLDER``.

It reads ``jobs.json`` and the arrays beside it, runs one job after the other and leaves a ``.npy`` file for everything
that was recorded. Only JSON and NumPy files without pickles pass between the two processes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import Error, UnsupportedError
from ...network import INPUT, Network, from_structure
from .compatibility import import_lava
from .graph import ConvolutionAs, LavaNetwork, build


def main(folder: Path) -> int:
    """Run the jobs of a folder; the exit code is 1 if one failed, and ``error.json`` says why."""
    try:
        report_exceptions()
        for index, job in enumerate(json.loads((folder / "jobs.json").read_text())):
            here = folder / str(index)
            with np.load(here / "tensors.npz", allow_pickle=False) as tensors:
                network = from_structure(job["structure"], dict(tensors))
            told = run_job(network, here, job["samples"], job["hold"], job["trace"], job["convolution"])
            (here / "done.json").write_text(json.dumps(told))
    except Error as error:
        (folder / "error.json").write_text(json.dumps({"kind": type(error).__name__, "message": str(error)}))
        return 1
    return 0


def run_job(
    network: Network, here: Path, samples: int, hold: int, trace: list[str], convolution: ConvolutionAs
) -> dict[str, Any]:
    """Run one network on ``frames.npy``; returns what the executor has to know beside the files."""
    _check_connected(network)
    begin = time.perf_counter()
    lava = build(network, np.load(here / "frames.npy", mmap_mode="r", allow_pickle=False), hold, convolution)
    for number, p in enumerate(network.populations):
        _record(lava, here, number, samples, traced=p.name in trace)
    lava.run(1)  # the first run compiles and starts the processes; every further one only adds steps
    started = time.perf_counter()
    rest = lava.schedule.total_steps(samples) - lava.schedule.total_steps(1)
    if rest:
        lava.run_steps(rest)
    ended = time.perf_counter()
    lava.stop()
    return {
        "build": started - begin,
        "run": ended - started,
        "steps": rest,
        "activation_shift": lava.activation_shift,
    }


def _record(lava: LavaNetwork, here: Path, number: int, samples: int, *, traced: bool) -> None:
    """Attach the recorders of one population; ``number`` names its files."""
    from .processes.probe import Probe
    from .processes.recorder import Recorder

    p = lava.network.populations[number]
    process = lava.processes[p.name]
    first, interval = lava.schedule.first_step(p.name), lava.schedule.interval
    window: dict[str, Any] = {"first": first, "steps": samples * interval}
    if p.spikes:
        recorder = Recorder(shape=p.shape, path=here / f"spikes{number}.npy", dtype=p.spike_dtype, **window)
        process.s_out.connect(recorder.a_in)
    else:
        Probe(
            var=process.v, path=here / f"v_final{number}.npy", first=first + interval - 1, every=interval, count=samples
        )
    if traced:
        for what in ("u", "v") if hasattr(process, "u") else ():  # GradedReluVec has no u and clears its v
            path = here / f"{what}{number}.npy"
            Probe(var=getattr(process, what), path=path, first=first, every=1, count=samples * interval)
        if any(True for _ in lava.network.incoming(p.name)):
            recorder = Recorder(shape=p.shape, path=here / f"current{number}.npy", dtype=np.int64, **window)
            lava.connect_activation(p.name, recorder.a_in)


def _check_connected(network: Network) -> None:
    """Lava compiles what is connected with the Process that is run, and forgets the rest."""
    groups = {p.name: {p.name} for p in network.populations}
    if any(True for _ in network.outgoing(INPUT)):
        groups[INPUT] = {INPUT}
    for c in network.connections:
        joined = groups[c.source] | groups[c.target]
        groups |= dict.fromkeys(joined, joined)
    alone = sorted(set(groups) - groups[network.populations[0].name])
    if alone:
        raise UnsupportedError(
            f"network {network.name!r}: {', '.join(alone[:4])} and {network.populations[0].name!r} are not connected; "
            "Lava runs one connected graph, so run them as networks of their own"
        )


def die_with_parent() -> None:
    """End this process and all that Lava forked when the parent is gone: its end of our stdin closes then."""

    def watch() -> None:
        os.read(0, 1)  # not sys.stdin: forked processes close it, and would wait for its lock for ever
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def report_exceptions() -> None:
    """Have exceptions inside Lava's models printed: Lava keeps them until all models have ended, which may be never."""
    import_lava()
    from lava.magma.runtime import runtime

    silent = runtime.target_fn

    def loud(*args: Any, **options: Any) -> None:
        try:
            silent(*args, **options)
        except Exception:
            traceback.print_exc()
            raise

    runtime.target_fn = loud


def start() -> None:
    """Run the jobs of the folder on the command line and exit."""
    die_with_parent()
    sys.exit(main(Path(sys.argv[-1])))


if __name__ == "__main__":
    start()
