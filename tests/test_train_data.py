"""Data sets and augmentation."""

import numpy as np
import pytest

from lapilli.errors import DataError
from lapilli.train import DataConfig
from lapilli.train.data import load, shift


def test_digits_are_split_by_seed_and_class():
    digits, again, other = (load(DataConfig(seed=s)) for s in (0, 0, 1))
    assert digits.shape == (1, 8, 8)
    assert digits.n_classes == 10
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    assert digits.train.x.dtype == np.float32
    assert digits.train.y.dtype == np.int64
    assert (digits.train.x.min(), digits.train.x.max()) == (0, 1)
    assert np.array_equal(digits.test.x, again.test.x)
    assert not np.array_equal(digits.test.x, other.test.x)
    assert set(np.bincount(digits.test.y)) <= {35, 36, 37}
    everything = np.concatenate([digits.train.x, digits.test.x]).reshape(1797, -1)
    everything_again = np.concatenate([other.train.x, other.test.x]).reshape(1797, -1)
    assert np.array_equal(np.sort(everything.sum(1)), np.sort(everything_again.sum(1)))


def test_shift_moves_whole_images_and_fills_with_zeros():
    x = np.arange(1, 201 * 20 + 1, dtype=np.float32)[: 200 * 20].reshape(200, 1, 4, 5)
    moved = shift(x, np.random.default_rng(0))
    seen = set()
    for before, after in zip(x, moved, strict=True):
        padded = np.pad(before, ((0, 0), (1, 1), (1, 1)))
        fits = [(i, j) for i in range(3) for j in range(3) if np.array_equal(padded[:, i : i + 4, j : j + 5], after)]
        assert len(fits) == 1
        seen.update(fits)
    assert len(seen) == 9


def write(folder, **changes):
    rng = np.random.default_rng(0)
    arrays = {
        "train_x": rng.random((6, 4)),
        "train_y": np.array([0, 1, 2, 0, 1, 2]),
        "test_x": rng.random((3, 4)),
        "test_y": np.array([0, 1, 2]),
    } | changes
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return DataConfig(name="arrays", folder=str(folder))


def test_own_arrays(tmp_path):
    data = load(write(tmp_path / "mine"))
    assert (data.shape, data.n_classes, data.name) == ((4,), 3, "mine")
    assert data.test.x.dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_y": np.zeros(5, int)}, "train_y"),
        ({"train_y": np.zeros(6)}, "integers"),
        ({"test_y": np.array([0, -1, 2])}, "from 0"),
        ({"test_x": np.zeros((3, 5))}, "shape"),
        ({"train_x": np.full((6, 4), np.nan)}, "finite"),
        ({"train_x": np.array([None] * 6)}, "train_x"),
    ],
)
def test_arrays_that_make_no_data_set(tmp_path, changes, words):
    with pytest.raises(DataError, match=words):
        load(write(tmp_path, **changes))


def test_absent_data_says_where_to_put_it(tmp_path):
    with pytest.raises(DataError, match=r"nowhere does not exist; put train_x\.npy"):
        load(DataConfig(name="arrays", folder=str(tmp_path / "nowhere")))
    with pytest.raises(DataError, match=r"data\.folder"):
        load(DataConfig(name="arrays"))
    config = write(tmp_path)
    (tmp_path / "test_y.npy").unlink()
    with pytest.raises(DataError, match=r"test_y\.npy does not exist"):
        load(config)
    (tmp_path / "test_y.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match="truncated"):
        load(config)
    with pytest.raises(DataError, match="known: arrays, digits"):
        load(DataConfig(name="mnits"))
