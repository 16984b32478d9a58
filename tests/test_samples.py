"""What a command's DATA may be."""

import numpy as np
import pytest
from PIL import Image

from lapilli.errors import DataError
from lapilli.network import Connection, Dense, Input, Network, Population, Readout
from lapilli.samples import read_samples


def network(shape=(1, 8, 8), metadata=None):
    size = int(np.prod(shape))
    return Network(
        name="n",
        steps=2,
        input=Input(shape=shape, high=16, scale=np.array([1 / 16])),
        populations=[Population(name="a", shape=(10,), threshold=64, reset_amount=64)],
        connections=[Connection(source="input", target="a", synapse=Dense(np.ones((10, size))))],
        readout=Readout(population="a"),
        metadata=metadata or {},
    )


def test_registered_data_and_its_splits():
    test, train = read_samples("digits", network()), read_samples("digits:train", network())
    assert test.x.shape[1:] == (1, 8, 8)
    assert len(test.x) + len(train.x) == 1797
    assert len(test.x) == len(test.y) == 360


def test_the_split_is_the_one_of_the_networks_training():
    other = network(metadata={"recipe": {"data": {"name": "digits", "seed": 5, "test_fraction": 0.5}}})
    assert len(read_samples("digits", other).x) == 899
    assert not np.array_equal(read_samples("digits", other).x[:100], read_samples("digits", network()).x[:100])


def test_only_images_that_are_chosen_are_decoded(tmp_path):
    for part in ("train", "test"):
        (tmp_path / part / "one").mkdir(parents=True)
        Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / part / "one" / "a.png")
        (tmp_path / part / "one" / "b.png").write_bytes(b"no image")
    trained = network((3, 4, 4), metadata={"recipe": {"data": {"name": "imagefolder"}}})
    first = read_samples(str(tmp_path), trained, limit=1)
    assert first.x[:, :, 0, 0].tolist() == [[1, 0, 0]]
    with pytest.raises(DataError, match=r"b\.png: not an image that can be decoded"):
        read_samples(str(tmp_path), trained)


def test_a_folder_is_read_as_the_recipe_says(tmp_path):
    rng = np.random.default_rng(0)
    for split, n in (("train", 6), ("test", 4)):
        np.save(tmp_path / f"{split}_x.npy", rng.random((n, 1, 8, 8), np.float32))
        np.save(tmp_path / f"{split}_y.npy", np.arange(n) % 2)
    trained = network(metadata={"recipe": {"data": {"name": "arrays"}}})
    assert len(read_samples(str(tmp_path), trained).x) == len(read_samples(f"{tmp_path}:test", trained).y) == 4
    assert len(read_samples(f"{tmp_path}:train", trained).x) == 6
    with pytest.raises(DataError, match=r"a folder, but network 'n' holds no recipe that says how to read it"):
        read_samples(str(tmp_path), network())
    strange = network(metadata={"recipe": {"data": {"name": "arrays", "nothing": 1}}})
    with pytest.raises(DataError, match="not one that this lapilli reads"):
        read_samples(str(tmp_path), strange)


def test_files(tmp_path):
    x = np.random.default_rng(0).random((5, 1, 8, 8))
    np.savez(tmp_path / "both.npz", x=x, y=np.arange(5))
    np.save(tmp_path / "flat.npy", x.reshape(5, 64))
    np.save(tmp_path / "frames.npy", np.stack([x, x]))
    assert read_samples(str(tmp_path / "both.npz"), network()).y.tolist() == [0, 1, 2, 3, 4]
    assert read_samples(str(tmp_path / "flat.npy"), network()).x.shape == x.shape
    assert read_samples(str(tmp_path / "both.npz"), network(), limit=2).x.shape == (2, 1, 8, 8)
    frames = read_samples(str(tmp_path / "frames.npy"), network(), limit=3)
    assert frames.x.shape == (2, 3, 1, 8, 8)
    assert frames.y is None


def test_pickles_are_never_loaded(tmp_path):
    np.save(tmp_path / "evil.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(DataError, match="not a NumPy file of plain numbers"):
        read_samples(str(tmp_path / "evil.npy"), network())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"z": np.zeros(3)}, "no array 'x'"),
        ({"x": np.zeros((3, 7))}, "does not fit"),
        ({"x": np.zeros((0, 1, 8, 8))}, "no sample"),
        ({"x": np.zeros((3, 1, 8, 8)), "y": np.zeros(2, int)}, "integers \\[3\\]"),
        ({"x": np.zeros((3, 1, 8, 8)), "y": np.zeros(3)}, "integers \\[3\\]"),
    ],
)
def test_what_does_not_fit(tmp_path, content, reason):
    np.savez(tmp_path / "x.npz", **content)
    with pytest.raises(DataError, match=reason):
        read_samples(str(tmp_path / "x.npz"), network())


@pytest.mark.parametrize("name", ["digitz", "digits:validation", "nowhere/x.npz"])
def test_what_is_not_there(name):
    with pytest.raises(DataError, match=r"^[^\n]*$"):
        read_samples(name, network())


def test_truncated_and_foreign_files(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 1, 8, 8)))
    whole = (tmp_path / "x.npz").read_bytes()
    for cut in (0, 10, len(whole) // 2):
        (tmp_path / "cut.npz").write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"cut\.npz"):
            read_samples(str(tmp_path / "cut.npz"), network())
