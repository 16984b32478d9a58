"""The process in which lava-dl's loader runs: ``python -m lapilli.deploy.lava.netx_worker FOLDER``.

As :mod:`.worker`: it reads ``jobs.json`` and for each job ``network.net`` and ``frames.npy``, and leaves ``.npy``
files.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import Error
from .netx_compatibility import import_netx
from .worker import die_with_parent, report_exceptions

RESET_OFFSET = 1  # layer k then resets at chip step k + 2: its neurons see the input's first step there


def main(folder: Path) -> int:
    """Run the jobs of a folder; the exit code is 1 if one failed, and ``error.json`` says why."""
    try:
        hdf5 = import_netx()
        report_exceptions()
        for index, job in enumerate(json.loads((folder / "jobs.json").read_text())):
            _run_job(hdf5, folder / str(index), job)
    except Error as error:
        (folder / "error.json").write_text(json.dumps({"kind": type(error).__name__, "message": str(error)}))
        return 1
    return 0


def _run_job(hdf5: Any, here: Path, job: dict[str, Any]) -> None:
    """Run a job: all samples back to back, or each in a network of its own where spikes could carry over."""
    frames = np.load(here / "frames.npy", mmap_mode="r", allow_pickle=False)
    if not job["apart"]:
        _run(hdf5, here, job, frames, job["samples"])
        return
    per_sample = len(frames) // job["samples"]
    for sample in range(job["samples"]):
        _run(hdf5, here, job, frames[sample * per_sample : (sample + 1) * per_sample], 1)
        for made in here.glob("*-*.npy"):
            made.replace(made.with_name(f"{made.stem}.part{sample}"))
    for first in here.glob("*.part0"):
        parts = [first.with_suffix(f".part{sample}") for sample in range(job["samples"])]
        loaded = []
        for part in parts:
            with part.open("rb") as file:
                loaded.append(np.load(file, allow_pickle=False))
        np.save(first.with_suffix(".npy"), np.concatenate(loaded), allow_pickle=False)


def _run(hdf5: Any, here: Path, job: dict[str, Any], frames: npt.NDArray[Any], samples: int) -> None:
    """One network from lava-dl's loader, ``samples`` windows."""
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg

    from .processes.frame_source import FrameSource

    steps = job["steps"]
    net = hdf5.Network(
        net_config=str(here / "network.net"),
        input_message_bits=job["message_bits"],
        reset_interval=steps,
        reset_offset=RESET_OFFSET,
    )
    source = FrameSource(frames=frames, hold=job["hold"], name="input")
    source.s_out.connect(net.inp)
    for number, layer in enumerate(job["layers"]):
        _record(net.layers[number], layer, here, RESET_OFFSET + 1 + number, samples, steps)
    total = samples * steps + len(net.layers)
    net.run(condition=RunSteps(num_steps=total), run_cfg=Loihi2SimCfg(select_tag="fixed_pt"))
    net.stop()


def _record(block: Any, layer: dict[str, Any], here: Path, first: int, samples: int, steps: int) -> None:
    """Attach the recorders of one layer, whose first window begins at chip step ``first``."""
    from .processes.probe import Probe
    from .processes.recorder import Recorder

    name = layer["name"]
    if layer["spikes"]:
        recorder = Recorder(
            shape=block.out.shape, path=here / f"spikes-{name}.npy", dtype=np.uint8, first=first, steps=samples * steps
        )
        block.out.connect(recorder.a_in)
    else:
        path = here / f"v_final-{name}.npy"
        Probe(var=block.neuron.v, path=path, first=first + steps - 1, every=steps, count=samples)
    for what in ("u", "v") if layer["traced"] else ():
        path = here / f"{what}-{name}.npy"
        Probe(var=getattr(block.neuron, what), path=path, first=first, every=1, count=samples * steps)


def start() -> None:
    """Run the jobs of the folder on the command line and exit."""
    die_with_parent()
    sys.exit(main(Path(sys.argv[-1])))


if __name__ == "__main__":
    start()
