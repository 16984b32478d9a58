"""Gradients of convolutions, and what torch must not be asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lapilli.train.config import NetworkConfig, TrainConfig
from lapilli.train.convolution import bears_channels_last, convolution_backward
from lapilli.train.data import Split
from lapilli.train.loop import fit
from lapilli.train.model import build

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=60, deadline=None)
@given(
    kernel=st.one_of(st.just((1, 1)), pairs),
    stride=pairs,
    padding=st.one_of(st.just((0, 0)), pairs),
    dilation=pairs,
    groups=st.sampled_from([1, 2]),
    size=st.tuples(st.integers(7, 9), st.integers(7, 9)),
    last=st.booleans(),
    wanted=st.sampled_from([(True, True), (True, False), (False, True)]),
)
def test_gradients_are_those_of_autograd(kernel, stride, padding, dilation, groups, size, last, wanted):
    form = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(3, 4, *size, dtype=torch.float64).to(memory_format=form).requires_grad_(wanted[0])
    weight = torch.randn(6, 4 // groups, *kernel, dtype=torch.float64).requires_grad_(wanted[1])
    geometry = (stride, padding, dilation, groups)
    out = torch.nn.functional.conv2d(x, weight, None, *geometry)
    grad = torch.randn_like(out)
    out.backward(grad)
    found = convolution_backward(grad, x.detach(), weight.detach(), *geometry, wanted)
    for got, expected, asked in zip(found, (x.grad, weight.grad), wanted, strict=True):
        assert (got is None) is not asked
        assert not asked or torch.allclose(got, expected, rtol=0, atol=1e-10)


def test_torch_survives_strided_pointwise_convolutions_of_few_channels():
    """In a process of its own: a gradient that writes past its buffer kills it."""
    code = """if True:
        import torch
        from lapilli.train.convolution import convolution_backward
        torch.set_num_threads(2)
        for _ in range(60):
            for batch, channels in ((31, 8), (7, 4), (33, 12)):
                x, grad = torch.randn(batch, channels, 16, 16), torch.randn(batch, 16, 8, 8)
                weight = torch.randn(16, channels, 1, 1)
                x, grad, weight = (t.to(memory_format=torch.channels_last) for t in (x, grad, weight))
                convolution_backward(grad, x, weight, (2, 2), (0, 0), (1, 1), 1, (True, True))
                [torch.randn(n, 1000) for n in range(1, 8)]
        print("survived")
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "survived\n"), done.stderr


def test_padding_by_name_is_no_way_around():
    assert not bears_channels_last(torch.nn.Conv2d(8, 16, 1, 2, padding="valid"))
    assert bears_channels_last(torch.nn.Conv2d(8, 16, 1, padding="same"))


@pytest.mark.parametrize(("channels", "last"), [(8, False), (16, True)])
def test_channels_last_is_left_where_autograd_would_not_bear_it(channels, last):
    layers = [
        {"type": "conv", "channels": channels, "padding": 1, "neurons": False},
        {"type": "block", "channels": 2 * channels, "stride": 2},
        {"type": "neurons"},
        {"type": "pool", "size": "all"},
        {"type": "linear"},
    ]
    model = build(NetworkConfig.model_validate({"layers": layers, "steps": 2}), (2, 6, 6), 3)
    assert bears_channels_last(model) is last
    data = Split(torch.rand(6, 2, 6, 6).numpy(), torch.arange(6).numpy() % 3)
    fit(model, data, TrainConfig(epochs=1, rate_epochs=1, batch_size=6, warmup_iterations=0))
    weight = next(m.weight for m in model.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3))
    assert weight.is_contiguous(memory_format=torch.channels_last) is last
