"""Losses on waveforms as ESPnet names, weighs and logs them."""

import math

import pytest
import small_models
import torch
from espnet2.tasks.enh import criterion_choices

from i2srf_kd.espnet.task import DistillEnhancementTask
from i2srf_kd.losses.compressed_spectrum import compressed_spectrum_loss
from i2srf_kd.nets.stft import STFT
from i2srf_kd.system.errors import UserError

LOGGED = {
    "relative_l1": "relative_l1",
    "si_sdr": "si_sdr_loss",
    "multi_resolution": "multi_resolution",
    "pesq": "pesq_loss",
}


def options(criterions, rate=16000):
    return small_models.options(32, 64, criterions=criterions, sample_rate=rate)


def test_each_term_is_logged_and_counts_with_its_weight():
    weights = {name: 0.1 * (i + 1) for i, name in enumerate(LOGGED)}
    criterions = [
        {"name": name, "wrapper": "fixed_order", "wrapper_conf": {"weight": weight}} for name, weight in weights.items()
    ]
    model = DistillEnhancementTask.build_model(options(criterions))
    reference = 0.1 * torch.randn(2, 8000, generator=torch.Generator().manual_seed(0))
    mixture = reference + 0.05 * torch.randn(2, 8000, generator=torch.Generator().manual_seed(1))
    loss, stats, _ = model(mixture, torch.tensor([8000, 8000]), speech_ref1=reference)
    assert set(LOGGED.values()) <= set(stats)
    assert loss.item() == pytest.approx(
        math.fsum(w * stats[LOGGED[name]].item() for name, w in weights.items()), rel=1e-5
    )
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", LOGGED)
def test_names_in_logs_can_be_chosen(name):
    assert criterion_choices.get_class(name)(name="mine").name == "mine"


def test_pesq_at_another_rate_is_refused():
    with pytest.raises(UserError, match="criterion pesq is for 16000 Hz, --sample_rate is 8000"):
        DistillEnhancementTask.build_model(options([{"name": "pesq"}], rate=8000))


def test_impossible_windows_are_refused():
    with pytest.raises(UserError, match="sizes must be windows"):
        DistillEnhancementTask.build_model(options([{"name": "multi_resolution", "conf": {"sizes": [4]}}]))


def test_the_spectral_loss_is_that_of_the_resynthesised_waveform(monkeypatch):
    model = DistillEnhancementTask.build_model(options([{"name": "compressed_spectrum"}]))
    reference = 0.1 * torch.randn(2, 800, generator=torch.Generator().manual_seed(0))
    spectrum = torch.randn(2, 26, 33, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(model.separator, "forward", lambda *_, **__: ([spectrum.requires_grad_()], None, {}))
    _, stats, _ = model(reference, torch.tensor([800, 800]), speech_ref1=reference)
    stft = STFT(64, 32)
    planes = torch.view_as_real(spectrum.detach()).permute(0, 3, 1, 2)
    consistent, wanted = (torch.complex(*stft(w).unbind(1)) for w in (stft.inverse(planes, 800), reference))
    expected = compressed_spectrum_loss(consistent, wanted).mean()
    assert stats["compressed_spectrum"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert expected < 0.9 * compressed_spectrum_loss(spectrum.detach(), wanted).mean()
