"""Executors that run a description through its ONNX graph: ONNX Runtime, and onnx's slow ReferenceEvaluator.

They share no arithmetic with the reference simulator, so equal spikes are evidence and not a tautology.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import ExecutionError, MissingDependencyError, UnsupportedError
from ...network import IntArray, Network
from ...recording import Recording, at_every_step
from .external import layout, write
from .file import EXTERNAL_FROM, load_onnx
from .graph import build_model, initializers, outputs

if TYPE_CHECKING:
    import onnxruntime

SESSIONS_KEPT = 8
MOST_THREADS = 8  # the graphs are small; more threads only wait for each other

_sessions: OrderedDict[tuple[str, frozenset[str]], onnxruntime.InferenceSession] = OrderedDict()
_lock = threading.Lock()


def onnxruntime_executor(network: Network, x: IntArray, trace: Collection[str] = ()) -> Recording:
    """Run a batch through ONNX Runtime on the CPU; see :class:`lapilli.recording.Executor`.

    Raises
    ------
    MissingDependencyError
        If onnxruntime is not installed.
    ExecutionError
        If ONNX Runtime refuses the graph or fails in it.
    """
    return _run_session(_session(network, trace), network, x, trace)


def execute_file(path: str | Path, x: IntArray, trace: Collection[str] = ()) -> Recording:
    """Run the graph of a saved file itself through ONNX Runtime.

    The file is read and checked first (:func:`lapilli.export.load_onnx`). With ``trace``, the graph is the one
    that the file's description gives with the traced values as further outputs.

    Raises
    ------
    FileFormatError
        If the file is not what it claims to be.
    """
    network = load_onnx(path)
    if trace:
        return onnxruntime_executor(network, x, trace)
    return _run_session(_new_session(str(path)), network, x, trace)


def onnx_reference_executor(network: Network, x: IntArray, trace: Collection[str] = ()) -> Recording:
    """Run a batch through onnx's own ReferenceEvaluator: NumPy, slow, for small checks.

    Raises
    ------
    UnsupportedError
        If the installed onnx is older than 1.22.
    ExecutionError
        If the evaluator fails.
    """
    import onnx
    from onnx.reference import ReferenceEvaluator

    if tuple(int(n) for n in onnx.__version__.split(".")[:2]) < (1, 22):
        raise UnsupportedError(
            f"onnx {onnx.__version__}'s ReferenceEvaluator hides outer names from Scan bodies; install onnx >= 1.22"
        )
    feeds = _feeds(network, x)
    names = list(outputs(network, trace))
    try:
        results = ReferenceEvaluator(build_model(network, trace)).run(names, feeds)
    except Exception as error:
        raise ExecutionError(f"network {network.name!r}: onnx's ReferenceEvaluator failed: {_line(error)}") from error
    return _recording(network, dict(zip(names, results, strict=True)), trace)


def _feeds(network: Network, x: IntArray) -> dict[str, npt.NDArray[np.int32]]:
    """One frame for a constant input, T frames otherwise."""
    at_every_step(network, x)  # raises where the number of frames is wrong
    frames = x[None] if x.ndim == len(network.input.shape) + 1 else x
    return {"input": np.ascontiguousarray(frames, np.int32)}


def _recording(network: Network, results: dict[str, Any], trace: Collection[str]) -> Recording:
    found = Recording()
    for p in network.populations:
        if p.spikes:
            found.spikes[p.name] = results[f"{p.name}/spikes"]
        else:
            found.v_final[p.name] = results[f"{p.name}/v"]
    for name in trace:
        found.current[name] = results[f"{name}/drive"]
        found.u[name] = results[f"{name}/u_trace"]
        found.v[name] = results[f"{name}/v_trace"]
    return found


def _run_session(
    session: onnxruntime.InferenceSession, network: Network, x: IntArray, trace: Collection[str]
) -> Recording:
    feeds = _feeds(network, x)
    names = list(outputs(network, trace))
    try:
        results = session.run(names, feeds)
    except Exception as error:
        raise ExecutionError(f"network {network.name!r}: ONNX Runtime failed: {_line(error)}") from error
    return _recording(network, dict(zip(names, results, strict=True)), trace)


def _session(network: Network, trace: Collection[str]) -> onnxruntime.InferenceSession:
    """A session for this network, kept for the next call."""
    key = (network.digest(), frozenset(trace))
    with _lock:
        if key in _sessions:
            _sessions.move_to_end(key)
            return _sessions[key]
    session = _session_of(network, trace)
    with _lock:
        _sessions[key] = session
        while len(_sessions) > SESSIONS_KEPT:
            _sessions.popitem(last=False)
    return session


def _session_of(network: Network, trace: Collection[str]) -> onnxruntime.InferenceSession:
    tensors = dict(initializers(network))
    if sum(array.nbytes for array in tensors.values()) <= EXTERNAL_FROM:
        return _new_session(build_model(network, trace).SerializeToString(deterministic=True))
    # A model in memory ends at protobuf's 2 GiB, and each copy of it counts: large tensors go through a file.
    external = layout(network.digest(), ((name, array.nbytes) for name, array in tensors.items()))
    with tempfile.TemporaryDirectory(prefix="lapilli-") as folder:
        with (Path(folder) / external.location).open("wb") as file:
            write(file, external, tensors)
        path = Path(folder) / "model.onnx"
        path.write_bytes(build_model(network, trace, external=external).SerializeToString(deterministic=True))
        return _new_session(str(path))


def _new_session(model: bytes | str) -> onnxruntime.InferenceSession:
    try:
        import onnxruntime
    except ImportError:
        raise MissingDependencyError("ONNX Runtime is not installed; get it with: pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised, not printed
    options.intra_op_num_threads = min(MOST_THREADS, _processors())
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads sleep
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExecutionError(f"ONNX Runtime {onnxruntime.__version__} refuses the graph: {_line(error)}") from error


def _processors() -> int:
    """Processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _line(error: Exception) -> str:
    """First line of a foreign error message."""
    return (str(error) or type(error).__name__).strip().splitlines()[0][:300]
