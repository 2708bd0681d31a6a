"""Synthetic speech: reproducible, different per voice, and clear errors."""

import importlib.util

import numpy as np
import pytest

from i2srf_kd.audio.level import active_frames
from i2srf_kd.corpora.espeak import Voice, synthesize_speech
from i2srf_kd.system.errors import UserError

TEXT = "The old gardener found three silver keys."
installed = pytest.mark.skipif(importlib.util.find_spec("espeakng_loader") is None, reason="no espeakng-loader")


@installed
def test_speech_is_reproducible_and_follows_the_voice():
    voice = Voice("en-us", "f3", rate=170, pitch=60)
    first, second = synthesize_speech([TEXT, "Good morning."], voice, 16000)
    assert first.dtype == np.float32 and 1.5 < len(first) / 16000 < 5 and len(second) < len(first)
    assert 0.05 < np.abs(first).max() <= 1.0 and active_frames(first, 16000).mean() > 0.5
    again = synthesize_speech([TEXT, "Good morning."], voice, 16000)
    assert np.array_equal(first, again[0]) and np.array_equal(second, again[1])
    slow, *_ = synthesize_speech([TEXT], voice._replace(rate=100), 16000)
    assert len(slow) > 1.3 * len(first)
    other, *_ = synthesize_speech([TEXT], Voice("en-gb-scotland", "m3"), 16000)
    assert len(other) != len(first) or not np.array_equal(other, first)
    low, *_ = synthesize_speech([TEXT], voice, 8000)
    assert abs(len(low) - len(first) / 2) <= 1


@installed
def test_unknown_voices_are_refused():
    with pytest.raises(UserError, match="no accent xx-yy"):
        synthesize_speech([TEXT], Voice("xx-yy"), 16000)
    with pytest.raises(UserError, match="no voice variant nobody"):
        synthesize_speech([TEXT], Voice("en-us", "nobody"), 16000)


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install espeakng-loader"):
        synthesize_speech([TEXT], Voice(), 16000)
