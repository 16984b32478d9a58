"""Data sets and augmentation."""

import gzip

import numpy as np
import pytest

from lapilli.errors import DataError
from lapilli.train import DataConfig
from lapilli.train.data import crop_flip, load, shift


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


def images(folder, size=(6, 5), classes=("cat", "dog"), parts=("train", "test")):
    from PIL import Image

    rng = np.random.default_rng(0)
    made = {}
    for part in parts:
        for label in classes:
            (folder / part / label).mkdir(parents=True)
            for i in range(3):
                pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / label / f"{i}.png")
                made[part, label, i] = pixels
    return made


@pytest.mark.parametrize("test", ["test", "val"])
def test_an_image_folder_is_read_pixel_by_pixel(tmp_path, test):
    made = images(tmp_path, parts=("train", test))
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    data = load(DataConfig(name="imagefolder", folder=str(tmp_path)))
    assert data.labels == ("cat", "dog")
    assert data.train.x.shape == data.test.x.shape == (6, 3, 6, 5)
    assert np.array_equal(data.train.y, [0, 0, 0, 1, 1, 1])
    expected = made[test, "dog", 1].transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    assert np.array_equal(data.test.x[4], expected)
    config = DataConfig(name="imagefolder", folder=str(tmp_path), mean=(0.5, 0.25, 0), std=(2,))
    shifted = (expected - np.array([0.5, 0.25, 0], np.float32).reshape(3, 1, 1)) / np.float32(2)
    assert np.array_equal(load(config).test.x[4], shifted)


def test_image_folders_that_do_not_fit_are_named(tmp_path):
    def error(**more):
        with pytest.raises(DataError) as caught:
            load(DataConfig(name="imagefolder", folder=str(tmp_path), **more))
        return str(caught.value)

    assert "train does not exist" in error()
    images(tmp_path)
    assert "2 values for 3 channels" in error(mean=(0, 0))
    (tmp_path / "test" / "dog" / "1.png").write_bytes(b"\x89PNG\r\n")
    assert "test/dog/1.png: not an image" in error()
    (tmp_path / "test" / "dog" / "1.png").unlink()
    (tmp_path / "test" / "bird").mkdir()
    assert "class 'bird' is in one of train and test only" in error()
    (tmp_path / "test" / "bird").rmdir()
    images(tmp_path / "other", size=(7, 5))
    (tmp_path / "other/train/cat/0.png").rename(tmp_path / "train" / "dog" / "9.png")
    assert "train/dog/9.png: is 5x7, the images before are 5x6" in error()


def write_idx(path, array):
    header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    data = header + array.astype(np.uint8).tobytes()
    if path.suffix == ".gz":
        data = gzip.compress(data)
    path.write_bytes(data)


def idx_files(folder, suffix=""):
    rng = np.random.default_rng(0)
    arrays = {
        "train-images-idx3-ubyte": rng.integers(0, 256, (5, 4, 3)),
        "train-labels-idx1-ubyte": np.array([0, 1, 2, 1, 0]),
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (2, 4, 3)),
        "t10k-labels-idx1-ubyte": np.array([2, 0]),
    }
    for name, array in arrays.items():
        write_idx(folder / (name + suffix), array)
    return arrays


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_are_read_pixel_by_pixel(tmp_path, suffix):
    arrays = idx_files(tmp_path, suffix)
    data = load(DataConfig(name="idx", folder=str(tmp_path)))
    assert data.shape == (1, 4, 3)
    assert data.n_classes == 3
    assert np.array_equal(data.test.y, [2, 0])
    assert np.array_equal(data.train.x[:, 0] * 255, arrays["train-images-idx3-ubyte"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "starts with "),
        (b"\0\0\x0d\3" + bytes(12), "starts with 00 00 0d 03"),
        (b"\0\0\x08\3" + b"\xff" * 12, "GiB as float32"),
        (b"\0\0\x08\3" + np.array((5, 4, 3), ">u4").tobytes() + bytes(59), "holds 59 than the 60 bytes"),
        (b"\0\0\x08\3" + np.array((5, 4, 3), ">u4").tobytes() + bytes(61), "holds more than the 60 bytes"),
        (b"\0\0\x08\3" + np.array((4, 4, 3), ">u4").tobytes() + bytes(48), "4 images in train-images"),
    ],
)
def test_idx_files_that_are_broken_are_named(tmp_path, content, said):
    idx_files(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=said):
        load(DataConfig(name="idx", folder=str(tmp_path)))
    (tmp_path / "train-images-idx3-ubyte").unlink()
    with pytest.raises(DataError, match="does not exist, nor does"):
        load(DataConfig(name="idx", folder=str(tmp_path)))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(content)[:-3])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz"):
        load(DataConfig(name="idx", folder=str(tmp_path)))


def test_crop_and_flip_moves_by_up_to_four_and_mirrors_half():
    x = np.arange(400 * 30, dtype=np.float32).reshape(400, 1, 5, 6) + 1
    changed = crop_flip(x, np.random.default_rng(0))
    seen, mirrored = set(), 0
    for before, after in zip(x, changed, strict=True):
        padded = np.pad(before, ((0, 0), (4, 4), (4, 4)))
        fits = [
            (i, j, flip)
            for i in range(9)
            for j in range(9)
            for flip in (1, -1)
            if np.array_equal(padded[:, i : i + 5, j : j + 6][..., ::flip], after)
        ]
        assert fits
        if len(fits) == 1:
            seen.add(fits[0][:2])
            mirrored += fits[0][2] == -1
    assert len(seen) > 60
    assert 120 < mirrored < 280
