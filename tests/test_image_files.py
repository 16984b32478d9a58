"""Images that stay on disk: the same bits as in memory, whatever decodes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lapilli.errors import DataError, RecipeError
from lapilli.recipe import load_recipe
from lapilli.train import DataConfig, NetworkConfig, TrainConfig, build, evaluate, fit, load_data
from lapilli.train.data import augmentation, image_files
from lapilli.train.data.image_files import ImageFiles, middle, random_part


@pytest.fixture
def folder(tmp_path):
    """Two classes, ten training and four test images each, 9 wide and 8 high."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 10), ("test", 4)):
        for level, label in enumerate(("dark", "light")):
            (tmp_path / part / label).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(100 * level, 100 * level + 156, (8, 9, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / label / f"{i}.png")
    return tmp_path


def read(folder, **more):
    return load_data(DataConfig(name="imagefolder", folder=str(folder), **more))


def test_pixels_on_disk_are_those_in_memory(folder):
    options = {"mean": (0.5, 0.25, 0.125), "std": (2.0,), "validation": 0.2}
    here, there = read(folder, **options), read(folder, memory=0, **options)
    for split in ("train", "test", "validation"):
        a, b = getattr(here, split), getattr(there, split)
        assert (a.on_disk, b.on_disk) == (False, True)
        assert isinstance(b.take(slice(3)).x, ImageFiles)
        assert a.shape == b.shape == (3, 8, 9)
        assert np.array_equal(a.y, b.y)
        for chosen in (slice(None), slice(1, 3), np.array([3, 0]), a.y == 1):
            assert np.array_equal(a.values(chosen), b.values(chosen))
            assert np.array_equal(a.take(chosen).values(), b.take(chosen).values())
    assert np.array_equal(there.train.calibration(), here.train.calibration())
    assert np.array_equal(there.test.pictures(), here.test.pictures())


@pytest.mark.parametrize("threads", [1, 5])
def test_training_from_disk_ends_with_the_same_bits(folder, monkeypatch, threads):
    network = NetworkConfig.model_validate({"layers": [{"type": "conv", "channels": 2}, {"type": "linear"}]})
    ends = []
    for memory in (2, 0):
        data = read(folder, memory=memory, augment="crop-flip", augment_pixels=2)
        model = build(network, data.shape, 2)
        config = TrainConfig(epochs=2, batch_size=6, warmup_iterations=0, threads=1)
        fit(model, data.train, config, test=data.test, augment=augmentation(DataConfig(augment="crop-flip")))
        ends.append(
            (torch.cat([t.flatten().double() for t in model.state_dict().values()]), evaluate(model, data.test))
        )
        monkeypatch.setattr(image_files, "THREADS", threads)
    assert torch.equal(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]


def test_random_parts_depend_on_the_seed_only(folder, monkeypatch):
    data = read(folder, size=4, augment="resized-crop")
    assert data.train.on_disk
    assert data.train.shape == data.test.shape == (3, 4, 4)

    def epoch(seed, threads):
        monkeypatch.setattr(image_files, "THREADS", threads)
        rng = np.random.default_rng(seed)
        return [data.train.augmented(np.arange(start, start + 10), None, rng) for start in (0, 10)]

    first = epoch(1, 1)
    for again in (epoch(1, 1), epoch(1, 7)):
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], epoch(2, 1)[0])
    assert np.array_equal(data.train.values(), data.train.values())  # evaluated from the middle, not at random


def test_random_parts_have_the_usual_areas_and_ratios():
    # Red is the column, green the row: what is seen of them says which part it is.
    columns, rows = np.meshgrid(np.arange(200), np.arange(100))
    image = Image.fromarray(np.stack([columns, rows, rows], -1).astype(np.uint8))
    mirrored, areas, ratios = 0, [], []
    for seed in range(300):
        part = np.asarray(random_part(image, 64, np.random.default_rng(seed))).astype(int)
        assert part.shape == (64, 64, 3)
        width, height = (np.ptp(part[:, :, i]) + 1 for i in (0, 1))
        mirrored += part[0, 0, 0] > part[0, -1, 0]
        areas.append(width * height / 20000)
        ratios.append(width / height)
    assert 120 < mirrored < 180
    assert 0.06 < min(areas) < 0.12
    assert 0.5 < max(areas) < 0.72  # a square as high as the image is half of it, with ratio 4/3 two thirds
    assert 0.65 < min(ratios) < 0.85
    assert 1.2 < max(ratios) < 1.5
    thin = Image.new("RGB", (400, 3))
    assert random_part(thin, 8, np.random.default_rng(0)).size == (8, 8)


@pytest.mark.parametrize("size", [(9, 8), (31, 50), (64, 20)])
def test_evaluation_takes_the_middle(tmp_path, size):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(pixels)
    short = min(size)
    scaled = image.resize((16 * size[0] // short, 16 * size[1] // short), Image.Resampling.BILINEAR)
    left, top = round((scaled.width - 14) / 2), round((scaled.height - 14) / 2)
    expected = np.asarray(scaled)[top : top + 14, left : left + 14]
    assert np.array_equal(np.asarray(middle(image, 16, 14)), expected)
    for part in ("train", "val"):
        (tmp_path / part / "one").mkdir(parents=True)
        image.convert("L").save(tmp_path / part / "one" / "a.JPEG")  # a file without colours
        image.save(tmp_path / part / "one" / "b.png")
    found = read(tmp_path, size=14).test.values()  # 256/224 of 14 is 16
    assert np.array_equal(found[1], expected.transpose(2, 0, 1).astype(np.float32) / 255)
    assert np.array_equal(found[0, 0], found[0, 2])


def test_a_broken_image_is_named_when_it_is_met(folder):
    data = read(folder, memory=0)
    file = folder / "train" / "light" / "7.png"
    file.write_bytes(file.read_bytes()[:60])
    model = build(NetworkConfig.model_validate({"layers": [{"type": "linear"}]}), data.shape, 2)
    with pytest.raises(DataError, match=r"train/light/7\.png: not an image that can be decoded") as caught:
        fit(model, data.train, TrainConfig(epochs=1, batch_size=4))
    assert "\n" not in str(caught.value)
    assert len(data.train.take(slice(5)).values()) == 5
    Image.new("RGB", (8, 9)).save(file)
    with pytest.raises(DataError, match=r"light/7\.png: is 8x9, the images before are 9x8; .* or set data\.size"):
        data.train.values()
    assert read(folder, size=7).train.shape == (3, 7, 7)


def test_more_than_fits_is_not_decoded_at_once(folder, monkeypatch):
    data = read(folder, memory=0)
    monkeypatch.setattr(image_files, "MAX_BYTES", 4 * 3 * 72 * 10)
    assert len(data.train.values(slice(10))) == 10
    with pytest.raises(DataError, match="11 images of shape"):
        data.train.values(slice(11))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["data.augment=resized-crop"], "resized-crop' needs size"),
        (["data.resize=40"], "40 needs size"),
        (["data.size=32", "data.resize=30"], "resize: 30 is below size 32"),
        (["data.size=32", "data.name=torchvision:CIFAR10"], "stay as they are"),
    ],
)
def test_settings_that_do_not_fit_are_refused(given, words):
    with pytest.raises(RecipeError, match=words):
        load_recipe("cifar10", given)
