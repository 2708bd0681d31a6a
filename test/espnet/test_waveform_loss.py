"""The spectral loss for networks with a learned encoder."""

import pytest
import torch

from i2srf_kd.espnet.criteria import CompressedSpectrumCriterion, CompressedSpectrumTDCriterion
from i2srf_kd.system.errors import UserError


def test_equals_the_loss_of_networks_on_the_waveform() -> None:
    estimate, reference = torch.randn(2, 3, 4000, requires_grad=True)
    plain, decoded = CompressedSpectrumCriterion(power=0.5), CompressedSpectrumTDCriterion(power=0.5)
    assert decoded.name == plain.name
    loss = decoded(reference, estimate)
    torch.testing.assert_close(loss, plain(reference, estimate))
    assert loss.shape == (3,) and bool((loss > 0).all()) and decoded(reference, reference).abs().max() < 1e-6


def test_features_of_a_learned_encoder_are_refused_with_its_name() -> None:
    with pytest.raises(UserError, match="compressed_spectrum_td"):
        CompressedSpectrumCriterion()(torch.randn(2, 5, 7), torch.randn(2, 5, 7))
