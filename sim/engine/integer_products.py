"""Sums of spikes as integer products of ONNX Runtime, for populations that the compiled kernel does not run.

``MatMulInteger`` of bytes 0 and 1 and of int8 weights adds in 32 bits. It is exact on every processor as long as no sum
leaves them: what narrower instructions saturate, pairs of products of more than 7 bits, cannot occur with spikes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from ...network import Conv2d, Dense, Shape
from . import threads

Array = npt.NDArray[Any]


def integer_sums(synapse: Dense | Conv2d, target: Shape) -> Callable[[Array], Array]:
    """The function from spikes [t, b, *source] to ``W x``, int32 [t, b, *target]; one group only."""
    weight = synapse.weight
    if isinstance(synapse, Dense):
        dense = _product(weight.T)
        return lambda x: dense(x.reshape(x.shape[0] * x.shape[1], -1)).reshape(*x.shape[:2], *target)
    (py, px), (sy, sx), (dy, dx) = synapse.padding, synapse.stride, synapse.dilation
    c_out, _, k_y, k_x = weight.shape
    kernel = (dy * (k_y - 1) + 1, dx * (k_x - 1) + 1)
    product = _product(weight.transpose(2, 3, 1, 0).reshape(-1, c_out))

    def sums(x: Array) -> Array:
        t, b, c, y, x_in = x.shape
        padded = np.zeros((t * b, y + 2 * py, x_in + 2 * px, c), np.uint8)
        padded[:, py : py + y, px : px + x_in] = x.reshape(t * b, c, y, x_in).transpose(0, 2, 3, 1)
        windows = sliding_window_view(padded, kernel, axis=(1, 2))  # pyright: ignore[reportCallIssue, reportArgumentType]
        seen = windows[:, ::sy, ::sx, :, ::dy, ::dx].transpose(0, 1, 2, 4, 5, 3)  # [t b, Y, X, K_y, K_x, C]
        found = product(seen.reshape(seen[..., 0, 0, 0].size, -1)).reshape(t, b, -1, c_out)
        return found.swapaxes(-1, -2).reshape(t, b, *target)

    return sums


def _product(weight: Array) -> Callable[[Array], Array]:
    """Product of rows of 0 and 1, any integers [rows, K], with int8 [K, N]: int32 [rows, N]."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    k, n = weight.shape
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "sums",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [None, k])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [None, n])],
        [numpy_helper.from_array(np.ascontiguousarray(weight, np.int8), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads.count()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return lambda x: np.asarray(session.run(None, {"x": np.ascontiguousarray(x, np.uint8)})[0])
