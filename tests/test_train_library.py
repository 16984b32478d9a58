"""Data sets of torchvision and tonic: opened by name, never fetched unasked."""

import sys
import types

import numpy as np
import pytest
from click.testing import CliRunner

from lapilli.cli import main
from lapilli.errors import DataError, UnsupportedError
from lapilli.train import DataConfig, load_data
from lapilli.train.data import library


def error(name, folder, **more):
    with pytest.raises((DataError, UnsupportedError)) as caught:
        load_data(DataConfig(name=name, folder=str(folder), **more), 3)
    return str(caught.value)


@pytest.fixture
def stand_in(monkeypatch):
    """Put a module in the place of ``torchvision.datasets`` or ``tonic.datasets``."""

    def put(package, **data_sets):
        module = types.ModuleType(f"{package}.datasets")
        module.__all__ = list(data_sets)
        for name, kind in data_sets.items():
            setattr(module, name, kind)
        monkeypatch.setattr(library, "import_module", lambda name: module)

    return put


def test_a_package_that_is_absent_or_broken_is_named(tmp_path, monkeypatch):
    for package, extra in (("torchvision", "vision"), ("tonic", "events")):
        monkeypatch.setitem(sys.modules, package, None)
        said = error(f"{package}:X", tmp_path)
        assert said == f"data.name: {package} is not installed; pip install 'lapilli[{extra}]'"
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator nms does not exist\\nmore')")
    monkeypatch.delitem(sys.modules, "torchvision")
    monkeypatch.syspath_prepend(tmp_path)
    said = error("torchvision:X", tmp_path)
    assert "torchvision cannot be imported beside torch 2." in said
    assert "(operator nms does not exist); install the release" in said
    (tmp_path / "torchvision" / "__init__.py").write_text("import no_such_thing")
    assert "it needs no_such_thing" in error("torchvision:X", tmp_path)


def write_mnist(folder):
    from test_train_data import idx_files

    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    return idx_files(raw)


def test_mnist_of_torchvision_itself(tmp_path):
    pytest.importorskip("torchvision")
    assert "torchvision:MNIST is not in" in error("torchvision:MNIST", tmp_path)
    said = error("torchvision:MNIST", tmp_path / "nowhere")
    assert said.endswith(f"lapilli train RECIPE --set data.folder={tmp_path / 'nowhere'} --download")
    assert not (tmp_path / "nowhere").exists()
    arrays = write_mnist(tmp_path)
    data = load_data(DataConfig(name="torchvision:MNIST", folder=str(tmp_path), mean=(0.5,)))
    assert data.shape == (1, 4, 3)
    assert data.labels[3] == "3 - three"
    assert np.allclose((data.test.x[:, 0] + 0.5) * 255, arrays["t10k-images-idx3-ubyte"], atol=1e-4)
    assert data.train.y.tolist() == [0, 1, 2, 1, 0]
    assert "has no data set 'MNITS'; it has" in error("torchvision:MNITS", tmp_path)
    assert "see data.options" in error("torchvision:MNIST", tmp_path, options={"colour": True})


def test_downloads_only_happen_when_asked_for(tmp_path, stand_in):
    fetched = []

    class Tonic:
        """As tonic's data sets do: what is absent is fetched when they are opened."""

        sensor_size = (5, 4, 2)
        dtype = np.dtype([("x", int), ("y", int), ("t", int), ("p", int)])

        def __init__(self, save_to, train=True, transform=None):
            self.targets = [0, 1, 1]
            if save_to not in fetched:
                self.download()

        def download(self):
            fetched.append(str(tmp_path / "new"))

        def __len__(self):
            return 3

        def __getitem__(self, i):
            events = np.array([(4, 3, 0, 1), (0, 0, 50, 0), (i, 1, 99, 1)], self.dtype)
            return events, self.targets[i]

    stand_in("tonic", Tonic=Tonic)
    assert "tonic:Tonic is not in" in error("tonic:Tonic", tmp_path)
    assert fetched == []
    config = DataConfig(name="tonic:Tonic", folder=str(tmp_path / "new"))
    data = load_data(config, 3, download=True)
    assert fetched == [str(tmp_path / "new")]
    assert data.shape == (2, 4, 5)
    assert data.labels == ("0", "1")
    assert data.train.x[:, 2].sum((2, 3)).tolist() == [[0, 1], [1, 0], [0, 1]]
    assert data.train.x[2, 2, 1, 1, 2] == 1
    with pytest.raises(DataError, match="only torchvision and tonic fetch"):
        load_data(DataConfig(), download=True)


def test_tonics_own_base_class_refuses_to_fetch_too(tmp_path):
    tonic = pytest.importorskip("tonic.datasets")
    assert "tonic:NMNIST is not in" in error("tonic:NMNIST", tmp_path)
    assert not any(tmp_path.iterdir())
    assert tonic.NMNIST.sensor_size == (34, 34, 2)


def test_data_without_a_split_give_the_last_samples_of_every_class_to_the_test(tmp_path, stand_in):
    class Unsplit:
        """Files in the order of the disk, as tonic lists CIFAR10-DVS."""

        sensor_size = (40, 1, 1)

        def __init__(self, save_to):
            self.classes = {"dog": 1, "cat": 0}
            self.data = [f"cat_{i}" for i in (10, 9, 1)] + [f"dog_{i}" for i in (2, 3, 11)]

        def __len__(self):
            return 6

        def __getitem__(self, i):
            name, number = self.data[i].split("_")
            return np.array([(int(number), 5)], [("x", np.uint16), ("t", np.uint64)]), self.classes[name]

    stand_in("tonic", Unsplit=Unsplit)
    data = load_data(DataConfig(name="tonic:Unsplit", folder=str(tmp_path), test_fraction=1 / 3), 1)
    assert data.labels == ("cat", "dog")
    assert data.shape == (1, 1, 40)
    assert data.train.x[0, :, 0, 0].argmax(1).tolist() == [1, 9, 2, 3]
    assert data.test.x[0, :, 0, 0].argmax(1).tolist() == [10, 11]
    assert "both parts need samples of every class" in error("tonic:Unsplit", tmp_path, test_fraction=0.1)


def test_parts_are_found_by_their_names(tmp_path, stand_in):
    from PIL import Image

    class Images:
        """As torchvision's newer data sets: split="train", "val" or "test"."""

        classes = ("a", ("b", "c"))

        def __init__(self, root, split="train", transform=None):
            if split not in ("train", "val"):
                raise ValueError(split)
            self.size = 3 if split == "train" else 2

        def __len__(self):
            return self.size

        def __getitem__(self, i):
            return Image.new("CMYK" if i else "RGB", (5, 4), 0), i % 2

    class Odd(Images):
        def __getitem__(self, i):
            return Image.new("L", (5, 4 + i)), 0

    class Foreign(Images):
        def __getitem__(self, i):
            raise ImportError("pip install aedat")

    class Broken(Images):
        def __getitem__(self, i):
            raise OSError("cannot identify image file")

    class Boxes(Images):
        def __getitem__(self, i):
            return Image.new("L", (5, 4)), {"box": 1}

    stand_in("torchvision", Images=Images, Odd=Odd, Boxes=Boxes, Foreign=Foreign, Broken=Broken)
    data = load_data(DataConfig(name="torchvision:Images", folder=str(tmp_path)))
    assert (len(data.train), len(data.test)) == (3, 2)
    assert data.shape == (3, 4, 5)
    assert data.labels == ("a", "b or c")
    assert "sample 1 has shape (1, 5, 5), those before (1, 4, 5)" in error("torchvision:Odd", tmp_path)
    assert "sample 0 needs a package (pip install aedat)" in error("torchvision:Foreign", tmp_path)
    assert "sample 0 cannot be read (cannot identify image file)" in error("torchvision:Broken", tmp_path)
    assert "no class each, but {'box': 1}" in error("torchvision:Boxes", tmp_path)


def test_the_command_says_what_fetches_the_data(tmp_path):
    pytest.importorskip("torchvision")
    wanted = ["train", "mnist", "--set", "data.name=torchvision:MNIST", "--set", f"data.folder={tmp_path / 'x'}"]
    shown = CliRunner().invoke(main, wanted)
    assert shown.exit_code == 2
    assert shown.stderr.count("\n") == 1
    assert "--download" in shown.stderr
    shown = CliRunner().invoke(main, ["train", "digits", "--download"])
    assert shown.exit_code == 2
    assert "only torchvision and tonic fetch" in shown.stderr
