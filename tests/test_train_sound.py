"""Recordings of sound: read, made into spectrograms, split, trained on."""

import wave

import numpy as np
import pytest

from lapilli.errors import DataError
from lapilli.pipeline import run_recipe
from lapilli.recipe import load_recipe
from lapilli.terminal import Narrator
from lapilli.train import DataConfig, load_data
from lapilli.train.config import SoundConfig
from lapilli.train.data.sound import gammatone_bands, mel_bands, read_wav, spectrogram


def write_wav(path, x, rate=8000, width=2):
    """Samples in -1..1, ``[n]`` or ``[n, channels]``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    x = np.asarray(x, float).reshape(len(x), -1)
    integers = np.round(x * (2 ** (8 * width - 1) - 1)).astype("<i4")
    raw = (integers + 128 * (width == 1)).reshape(-1, 1).view(np.uint8)[:, :width]
    with wave.open(str(path), "wb") as file:
        file.setnchannels(x.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(raw.tobytes())


def tone(frequency, seconds=0.3, rate=8000):
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_samples_of_every_width_are_read(tmp_path, width, channels):
    x = np.random.default_rng(0).uniform(-1, 1, (50, channels))
    x[0], x[1] = -1, 1
    write_wav(tmp_path / "a.wav", x, 11025, width)
    found, rate = read_wav(tmp_path / "a.wav")
    assert rate == 11025
    assert np.abs(found - x.mean(1)).max() <= 1.5 / 2 ** (8 * width - 1)


@pytest.mark.parametrize("front_end", ["mel", "gammatone"])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_a_tone_is_loudest_in_its_band_at_any_sample_rate(front_end, rate):
    sound = SoundConfig(front_end=front_end)
    loudest = [spectrogram(tone(f, rate=rate), rate, 10, sound).mean(0).argmax() for f in (200, 500, 1000, 2000, 3500)]
    expected = {"mel": [1, 6, 13, 22, 29], "gammatone": [4, 11, 17, 24, 30]}[front_end]
    assert np.abs(np.array(loudest) - expected).max() <= 1
    assert loudest == sorted(set(loudest))


def test_loudness_is_in_decibels_below_the_loudest():
    x = np.concatenate([tone(1000), 0.1 * tone(1000), np.zeros(2400)])
    found = spectrogram(x, 8000, 30, SoundConfig(decibels=60))
    loud, soft, silent = found[5].max(), found[15].max(), found[25].max()
    assert loud == pytest.approx(1, abs=0.01)
    assert soft == pytest.approx(1 - 20 / 60, abs=0.01)
    assert silent == 0
    assert np.allclose(found, spectrogram(x / 7, 8000, 30, SoundConfig(decibels=60)), atol=1e-6)
    assert not spectrogram(np.zeros(2400), 8000, 30, SoundConfig()).any()


def test_a_duration_cuts_and_fills_with_silence():
    sound = SoundConfig(duration=0.6)
    half = spectrogram(tone(1000, 0.3), 8000, 20, sound)
    assert half[:9].max(1).min() > 0.9
    assert not half[12:].any()
    assert np.array_equal(spectrogram(tone(1000, 5), 8000, 20, sound), spectrogram(tone(1000, 0.6), 8000, 20, sound))
    assert spectrogram(tone(1000, 0.002), 8000, 20, SoundConfig()).shape == (20, 32)


def test_filters_are_those_of_the_formulas():
    mel, gammatone = mel_bands(8000, 1024, 20, 0.0, 4000.0), gammatone_bands(8000, 1024, 20, 100.0, 4000.0)
    frequencies = np.fft.rfftfreq(1024, 1 / 8000)
    # Triangles overlap so that they add up to 1 between the first and the last centre.
    inside = (frequencies >= frequencies[mel[0].argmax()]) & (frequencies <= frequencies[mel[-1].argmax()])
    assert np.allclose(mel[:, inside].sum(0), 1, atol=0.05)
    peak = frequencies[gammatone.argmax(1)]
    assert (peak[0], peak[-1]) == (pytest.approx(100, abs=8), pytest.approx(4000, abs=8))
    # 3 dB below the peak a gammatone filter of order 4 is 0.887 ERB wide (1.019 ERB times 2 sqrt(2^(1/4) - 1)).
    wide = (gammatone[10] > 0.5).sum() * 8000 / 1024
    erb = 24.7 * (0.00437 * peak[10] + 1)
    assert wide == pytest.approx(0.887 * erb, abs=9)


def recordings(folder, numbers=4):
    for label, frequency in (("high", 2000), ("low", 300)):
        for speaker in ("ann", "bob"):
            for n in range(numbers):
                write_wav(folder / f"{label}_{speaker}_{n}.wav", tone(frequency + 10 * n, 0.1 + 0.02 * n))
    return DataConfig.model_validate(
        {"name": "wav", "folder": str(folder), "sound": {"bands": 8, "columns": 12, "test_below": 1}}
    )


def changed(config, **sound):
    return config.model_copy(update={"sound": config.sound.model_copy(update=sound)})


def test_file_names_say_class_and_part(tmp_path):
    config = recordings(tmp_path)
    (tmp_path / "readme.txt").write_text("no recording")
    data = load_data(config)
    assert data.labels == ("high", "low")
    assert data.shape == (1, 8, 12)
    assert (len(data.train), len(data.test)) == (12, 4)
    x, rate = read_wav(tmp_path / "low_bob_0.wav")
    assert data.test.y.tolist() == [0, 0, 1, 1]
    assert np.array_equal(data.test.x[3, 0], spectrogram(x, rate, 12, config.sound).T)
    by_speaker = load_data(changed(config, test_speakers=("bob",)))
    assert (len(by_speaker.train), len(by_speaker.test)) == (8, 8)
    series = load_data(changed(config, form="series"), 12)
    assert (series.shape, series.train.x.shape, series.train.framed) == ((8,), (12, 12, 8), True)
    assert np.array_equal(series.test.x[:, 3].T, data.test.x[3, 0])
    assert series.test.pictures().shape == (4, 12, 8)


def test_folders_say_class_and_part_too(tmp_path):
    for part, count in (("train", 3), ("test", 1)):
        for label in ("a", "b"):
            for i in range(count):
                write_wav(tmp_path / part / label / f"{i}.wav", tone(500))
    data = load_data(DataConfig(name="wav", folder=str(tmp_path)))
    assert (data.labels, data.train.y.tolist(), data.test.y.tolist()) == (("a", "b"), [0, 0, 0, 1, 1, 1], [0, 1])


def test_what_is_wrong_with_recordings_is_named(tmp_path):
    config = recordings(tmp_path)
    file = tmp_path / "high_ann_2.wav"

    def error(config=config, steps=None):
        with pytest.raises(DataError) as caught:
            load_data(config, steps)
        return str(caught.value)

    assert "has no speaker 'eve'; it has ann, bob" in error(changed(config, test_speakers=("eve",)))
    assert "no recordings for the test" in error(changed(config, test_below=0))
    assert "needs the number of time steps" in error(changed(config, form="series"))
    assert "high_ann_1.wav: 8000 samples a second hold frequencies up to 4000 Hz" in error(changed(config, high=5000))
    assert "is too narrow for the window; use fewer bands" in error(changed(config, bands=1000))
    augmented = changed(config, form="series").model_copy(update={"augment": "shift"})
    assert "are for images; these samples have shape (8,)" in error(augmented, 4)
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    assert f"{file}: holds 1070 of 1120 samples at 8000 Hz" in error()
    file.write_bytes(whole[:20])
    assert f"{file}: not a WAV file of integer samples" in error()
    file.write_bytes(b"fLaC" + whole)
    assert f"{file}: not a WAV file of integer samples" in error()
    file.write_bytes(whole)
    file.rename(tmp_path / "take2.wav")
    assert "take2.wav: is not named CLASS_SPEAKER_NUMBER.wav; rename it" in error()


def test_a_frequency_range_must_not_be_empty():
    with pytest.raises(ValueError, match="500 Hz is not below high, 400 Hz"):
        SoundConfig(low=500, high=400)


@pytest.mark.parametrize("form", ["image", "series"])
def test_a_recipe_of_sound_from_training_to_the_proof(tmp_path, form):
    config = recordings(tmp_path / "data")
    layers = "{type='conv', channels=4, padding=1}, {type='pool', size=4}, " * (form == "image")
    settings = [
        f"data.folder={config.folder}", "data.sound.bands=8", "data.sound.columns=12", "data.sound.test_below=1",
        f"data.sound.form={form}", "data.augment=none", "network.steps=4", "train.epochs=6", "train.batch_size=6",
        "bit_true.epochs=1", f"network.layers=[{layers}{{type='linear'}}]",
    ]  # fmt: skip
    done = run_recipe(
        load_recipe("spoken-digits", settings), tmp_path / "run", resume=False, narrator=Narrator(),
        executors=("torch", "fast", "onnxruntime"),
    )  # fmt: skip
    assert done.spikes_equal
    assert done.summary["accuracy"]["stages"]["float"] == 1
