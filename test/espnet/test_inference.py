"""Waveforms through an ESPnet model: levels, channels, silence."""

import numpy as np
import pytest
import torch

from i2srf_kd.espnet.inference import enhance_utterance


class Scale(torch.nn.Module):
    """Stands for a model: estimates half of the mixture, in the variance-normalised domain if asked to."""

    ref_channel = 0

    def __init__(self, **flags):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(0.5))
        self.seen_std = None
        for name, value in flags.items():
            setattr(self, name, value)

    def forward_enhance(self, speech_mix, lengths, additional):
        self.seen_std = float(speech_mix.std())
        return [self.factor * speech_mix], None, None, {}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("flag", [None, "normalize_variance", "normalize_variance_per_ch"])
def test_enhancing_restores_level_and_picks_a_channel(channels, flag):
    mixture = np.random.default_rng(0).normal(0, 0.05, (500, channels)).astype(np.float32).squeeze()
    model = Scale(**({flag: True} if flag else {}))
    estimate = enhance_utterance(model, mixture)
    np.testing.assert_allclose(estimate, 0.5 * mixture.reshape(500, -1)[:, 0], rtol=1e-5)
    assert (abs(model.seen_std - 1) < 0.1) == (flag is not None)


@pytest.mark.parametrize("samples", [1, 500])
@pytest.mark.parametrize("flag", ["normalize_variance", "normalize_variance_per_ch"])
def test_silence_stays_silent(flag, samples):
    assert not enhance_utterance(Scale(**{flag: True}), np.zeros((samples, 2), np.float32)).any()
