"""Event recordings: read, made into frames, trained on, deployed."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from lapilli.cli import main
from lapilli.errors import DataError
from lapilli.pipeline import run_recipe
from lapilli.recipe import load_recipe
from lapilli.terminal import Narrator
from lapilli.train import DataConfig, Split, load_data
from lapilli.train.config import EventsConfig
from lapilli.train.data import shift
from lapilli.train.data.events import Events, bilinear, frames, read_bin


def write_bin(path, x, y, t, p):
    x, y, t, p = (np.asarray(a, np.int64) for a in (x, y, t, p))
    record = np.stack([x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255], 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(record.astype(np.uint8).tobytes())


@st.composite
def recordings(draw):
    """Events on a sensor of 3 rows and 4 columns."""
    n = draw(st.integers(1, 40))

    def integers(most):
        return np.array(draw(st.lists(st.integers(0, most), min_size=n, max_size=n)), np.int64)

    return Events(integers(3), integers(2), np.sort(integers(500)), integers(1))


@given(recordings(), st.integers(1, 7), st.sampled_from(["time", "count"]), st.sampled_from([1, 2, 255]),
       st.sampled_from([1, 2]), st.sampled_from([None, 64.0, 100.5]))  # fmt: skip
def test_every_event_is_counted_in_its_frame(recording, steps, bins, most, polarities, window):
    config = EventsConfig(size=(3, 4), bins=bins, most=most, polarities=polarities, window=window)
    expected = np.zeros((steps, polarities, 3, 4), np.int64)
    for i in range(len(recording)):
        since = int(recording.t[i] - recording.t[0])
        if bins == "count":
            n = i * steps // len(recording)
        elif window is None:
            n = since * steps // (int(recording.t[-1] - recording.t[0]) + 1)
        else:
            n = int(since * steps // window)
        if n < steps:
            expected[n, recording.p[i] if polarities == 2 else 0, recording.y[i], recording.x[i]] += 1
    found = frames(recording, steps, config, "here")
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.minimum(expected, most))


def test_a_file_is_read_byte_by_byte(tmp_path):
    x, y, t, p = [0, 255, 33, 7], [1, 33, 0, 239], [0, 5, 70_000, 2**23 - 1], [0, 1, 0, 1]
    write_bin(tmp_path / "a.bin", x, y, t, p)
    found = read_bin(tmp_path / "a.bin")
    assert [found.x.tolist(), found.y.tolist(), found.t.tolist(), found.p.tolist()] == [x, y, t, p]


def test_marks_of_the_clock_are_no_events_and_move_what_follows(tmp_path):
    write_bin(tmp_path / "a.bin", [1, 0, 2, 0, 3], [1, 240, 2, 240, 3], [10, 0, 20, 0, 30], [0] * 5)
    found = read_bin(tmp_path / "a.bin")
    assert found.x.tolist() == [1, 2, 3]
    assert found.t.tolist() == [10, 20 + 8192, 30 + 2 * 8192]


@pytest.mark.parametrize("size", [(2, 2), (3, 7), (1, 1), (6, 9), (12, 3)])
def test_frames_are_scaled_as_torch_scales_them(size):
    x = np.random.default_rng(0).integers(0, 9, (2, 3, 6, 9)).astype(np.uint8)
    torchs = torch.nn.functional.interpolate(torch.from_numpy(x).double(), size, mode="bilinear")
    assert np.allclose(bilinear(x, size), torchs.numpy(), atol=1e-5)


def data_set(folder, samples=6, size=8):
    """Two classes: events on the left, events on the right."""
    rng = np.random.default_rng(0)
    for part, count in (("Train", samples), ("Test", 3)):
        for label in ("left", "right"):
            for i in range(count):
                n = 60
                x = rng.integers(0, size // 2, n) + (size // 2 if label == "right" else 0)
                t = np.sort(rng.integers(0, 10_000, n))
                write_bin(folder / part / label / f"{i}.bin", x, rng.integers(0, size, n), t, rng.integers(0, 2, n))
    return DataConfig.model_validate({"name": "events", "folder": str(folder), "events": {"size": 8}})


def test_a_folder_of_recordings_becomes_frames(tmp_path):
    data = load_data(data_set(tmp_path), 5)
    assert data.labels == ("left", "right")
    assert data.shape == (2, 8, 8)
    assert data.train.framed
    assert data.train.x.shape == (5, 12, 2, 8, 8)
    assert data.train.y.tolist() == [0] * 6 + [1] * 6
    recording = read_bin(tmp_path / "Test" / "right" / "1.bin")
    assert np.array_equal(data.test.x[:, 4], frames(recording, 5, EventsConfig(size=(8, 8)), ""))
    assert data.test.values([4]).dtype == np.float32
    assert np.array_equal(data.test.values([4])[:, 0], data.test.x[:, 4])
    assert data.test.pictures().shape == (6, 2, 8, 8)
    held = data.held_out(1 / 3, 0)
    assert (len(held.train), len(held.validation), held.validation.framed) == (8, 4, True)
    assert held.train.shape == (2, 8, 8)
    with pytest.raises(DataError, match="need the number of time steps"):
        load_data(data_set(tmp_path))
    resized = load_data(data_set(tmp_path).model_copy(update={"events": EventsConfig(size=(8, 8), resize=(4, 4))}), 5)
    assert (resized.shape, resized.train.x.dtype) == ((2, 4, 4), np.float32)


def test_what_is_wrong_with_recordings_is_named(tmp_path):
    config = data_set(tmp_path)
    file = tmp_path / "Train" / "right" / "2.bin"

    def error(config=config, steps=5):
        with pytest.raises(DataError) as caught:
            load_data(config, steps)
        return str(caught.value)

    whole = file.read_bytes()
    file.write_bytes(whole[:-2])
    assert f"{file}: holds 298 bytes, not a multiple of 5" in error()
    file.write_bytes(b"")
    assert f"{file}: is empty" in error()
    write_bin(file, [1, 8], [1, 1], [0, 1], [0, 0])
    assert f"{file}: event 1 is at column 8, row 1, outside the 8 x 8 sensor; set data.events.size" in error()
    write_bin(file, [0], [240], [0], [0])
    assert f"{file}: has no events" in error()
    file.write_bytes(whole)
    assert "GiB, more than 8; use fewer steps" in error(steps=10**9)
    for bad in (tmp_path / "Test" / "left").iterdir():
        bad.unlink()
    (tmp_path / "Test" / "left").rmdir()
    assert "class 'left' is in one of Train and Test only" in error()
    assert "nowhere does not exist; put Train/CLASS/*.bin" in error(
        config.model_copy(update={"folder": str(tmp_path / "nowhere")})
    )


def test_all_frames_of_a_sample_move_together():
    rng = np.random.default_rng(0)
    x = rng.random((3, 20, 2, 5, 6), np.float32)
    moved = Split(x, np.zeros(20, np.int64), framed=True).augmented(slice(None), shift, np.random.default_rng(1))
    by_step = [shift(frame, np.random.default_rng(1)) for frame in x]
    assert np.array_equal(moved, np.stack(by_step))


def test_own_frames_in_arrays(tmp_path):
    rng = np.random.default_rng(0)
    x = {part: rng.random((n, 4, 3)) for part, n in (("train", 6), ("test", 2))}
    for part in x:
        np.save(tmp_path / f"{part}_x.npy", x[part])
        np.save(tmp_path / f"{part}_y.npy", np.arange(len(x[part])) % 2)
    config = DataConfig(name="arrays", folder=str(tmp_path))
    data = load_data(config, 4)
    assert data.shape == (3,)
    assert np.array_equal(data.test.values([1])[:, 0], x["test"][1].astype(np.float32))
    with pytest.raises(DataError, match="has 4 steps; set network"):
        load_data(config, 5)


def test_a_recipe_of_events_from_training_to_the_proof(tmp_path):
    config = data_set(tmp_path / "data", samples=12)
    settings = [
        f"data.folder={config.folder}", "data.events.size=8", "data.events.most=1", "quantize.input_levels=1",
        "network.steps=4", "train.epochs=6", "train.batch_size=8", "bit_true.epochs=1", "data.augment=none",
        "network.layers=[{type='conv', channels=4, padding=1}, {type='pool', size=4}, {type='linear'}]",
    ]  # fmt: skip
    recipe = load_recipe("nmnist", settings)
    done = run_recipe(
        recipe, tmp_path / "run", resume=False, narrator=Narrator(), executors=("torch", "fast", "onnxruntime")
    )
    assert done.spikes_equal
    assert done.summary["accuracy"]["stages"]["float"] == 1
    assert len(json.loads((tmp_path / "run" / "report.json").read_text())["samples"]) == 6
    network = str(tmp_path / "run" / "network.onnx")
    shown = CliRunner().invoke(main, ["sim", network, f"{config.folder}:train", "--json"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["samples"] == 24
