"""WER and the challenge's score against values worked out by hand; recognition with small models of the real format."""

import importlib.util
import math
import shutil
import warnings

import numpy as np
import pytest
from metrics.recogniser import save_model, speak

from i2srf_kd.metrics import asr
from i2srf_kd.system.errors import UserError


@pytest.mark.parametrize(
    "reference, hypothesis, expected",
    [
        ("A B C", "A B C", 0.0),
        ("A B C", "A C", 1 / 3),
        ("A B C", "A B B C", 1 / 3),
        ("A B", "C C", 1.0),
        ("A B", "C C A B B", 1.5),
        ("AB C", "A B C", 1.0),  # one word replaced, one inserted
        ("A", "", 1.0),
        (" A  B ", "A B", 0.0),
    ],
)
def test_word_error_rate(reference, hypothesis, expected):
    assert asr.word_error_rate(reference, hypothesis) == pytest.approx(expected)


@pytest.mark.parametrize(
    "stoi, reference, hypothesis, wer, challenge",
    [
        (0.9, "A B C D", "A B C", 0.25, (0.9 + 0.75) / 2),
        (0.9, "A B", "C C A B B", 1.0, 0.45),  # WER 1.5 counts as 1
        (-0.2, "A B", "A B", 0.0, 0.5),  # a negative STOI as 0
        (1.0 + 1e-9, "A", "A", 0.0, 1.0),
        (0.9, "", "A", math.nan, math.nan),
        (0.9, "", "", math.nan, math.nan),
        (math.nan, "A", "A", 0.0, 0.5),  # too little speech for STOI counts as 0
    ],
)
def test_challenge_score(stoi, reference, hypothesis, wer, challenge):
    expected = {"wer": wer, "challenge": challenge}
    assert asr.challenge_scores(stoi, reference, hypothesis) == pytest.approx(expected, nan_ok=True)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(asr, "missing_packages", lambda: ["transformers"])
    with pytest.raises(UserError, match=r"needs transformers: pip install i2srf_kd\[asr\]"):
        asr.Recogniser("anything")


@pytest.fixture(scope="module")
def transformers():
    if importlib.util.find_spec("transformers") is None:
        reason = "transformers is not installed, so no recogniser was tried: pip install i2srf_kd[asr]"
        warnings.warn(f"tests SKIPPED: {reason}", stacklevel=2)
        pytest.skip(reason)


@pytest.fixture(scope="module")
def pattern_model(transformers, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("asr") / "patterns")


@pytest.fixture(scope="module")
def random_model(transformers, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("asr") / "random", hears_patterns=False)


@pytest.mark.slow
def test_hears_what_was_spoken_greedily(pattern_model):
    recogniser = asr.Recogniser(str(pattern_model), device="cpu")
    spoken = ["ABC CAB", "_A__B_C_ _B", "AA_AAB C", "A" * 5 + "_" + "B" * 4]
    heard = ["ABC CAB", "ABC B", "AAB C", "AB"]
    assert recogniser([speak(text) for text in spoken], 16000) == heard
    # Waveforms are normalised one by one: neither level nor offset matters.
    assert recogniser([speak("AB C", level=1e-3), speak("AB C") + 0.3], 16000) == ["AB C", "AB C"]


@pytest.mark.slow
def test_batches_give_what_single_waveforms_give(random_model, monkeypatch):
    recogniser = asr.Recogniser(str(random_model), device="cpu", batch_size=3)
    random = np.random.default_rng(0)
    waves = [random.normal(0, 0.1, length) for length in (400, 640, 400, 333, 400, 640, 400, 7, 0)]
    sizes, original = [], recogniser._transcribe
    monkeypatch.setattr(recogniser, "_transcribe", lambda batch: sizes.append(len(batch)) or original(batch))
    together = recogniser(waves, 16000)
    assert sorted(sizes) == [1, 1, 2, 3]
    assert together == [recogniser([wave], 16000)[0] for wave in waves]
    assert len(set(together[:7])) == 7 and all(together[:7])
    assert together[7:] == ["", ""]  # shorter than one frame


@pytest.mark.slow
def test_padding_would_change_what_is_heard(random_model):
    recogniser = asr.Recogniser(str(random_model), device="cpu")
    wave = np.random.default_rng(0).normal(0, 0.1, 400).astype(np.float32)
    normal = (wave - wave.mean()) / wave.std()
    import torch

    with torch.no_grad():
        short, padded = (
            recogniser._model(torch.from_numpy(w)[None]).logits for w in (normal, np.pad(normal, (0, 400)))
        )
    assert (short - padded[:, : short.shape[1]]).abs().max() > 0.1


@pytest.mark.slow
def test_unusable_models_are_named(pattern_model, tmp_path):
    for name in (str(tmp_path / "absent"), "./absent", "a/b/c"):
        with pytest.raises(UserError, match="no such folder"):
            asr.Recogniser(name)
    broken = tmp_path / "broken"
    shutil.copytree(pattern_model, broken)
    (broken / "vocab.json").unlink()
    with pytest.raises(UserError, match="broken: cannot be loaded .*is the folder complete"):
        asr.Recogniser(str(broken))
    headless = tmp_path / "headless"
    shutil.copytree(pattern_model, headless)
    from transformers import Wav2Vec2Model

    Wav2Vec2Model.from_pretrained(pattern_model).save_pretrained(headless)
    with pytest.raises(UserError, match="headless: lacks 2 weights, such as lm_head.bias; it must be fine-tuned"):
        asr.Recogniser(str(headless))
    with pytest.raises(ValueError, match="needs 16000 Hz but the audio has 8000 Hz"):
        asr.Recogniser(str(pattern_model), device="cpu")([np.ones(99)], 8000)


def test_receptive_field_of_the_published_model():
    assert asr._receptive_field((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)) == 400
