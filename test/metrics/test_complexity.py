"""Parameters and MACs against counts made by hand."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from i2srf_kd.metrics.complexity import count_macs, count_parameters, macs_per_second


class _SelfAttention(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.fused = fused
        self.layer = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x):
        if self.fused:
            return nn.functional.scaled_dot_product_attention(x, x, x)
        return self.layer(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize(
    "module, shape, feedforward, recurrent",
    [
        (nn.Linear(8, 5), (3, 8), 3 * 8 * 5, 0),
        (nn.Conv2d(4, 6, (2, 3), groups=2), (1, 4, 5, 9), 6 * 4 * 7 * 2 * 6, 0),
        (nn.ConvTranspose1d(3, 5, 3, stride=2), (1, 3, 10), 3 * 5 * 3 * 10, 0),
        (nn.GRU(8, 16, batch_first=True, bidirectional=True), (2, 10, 8), 0, 20 * 2 * 3 * (8 * 16 + 16 * 16)),
        (nn.LSTM(8, 16, num_layers=2), (10, 2, 8), 0, 20 * 4 * ((8 * 16 + 256) + (256 + 256))),
        (nn.GRUCell(8, 16), (2, 8), 0, 2 * 3 * (8 * 16 + 16 * 16)),
        (_SelfAttention(False), (2, 10, 16), 2 * (4 * 10 * 256 + 2 * 100 * 16), 0),
        (_SelfAttention(True), (2, 10, 16), 2 * 2 * 100 * 16, 0),
    ],
)
def test_macs(module, shape, feedforward, recurrent):
    assert count_macs(module, torch.zeros(shape)) == {"feedforward": feedforward, "recurrent": recurrent}


def test_packed_sequences_count_their_frames():
    packed = pack_sequence([torch.zeros(5, 8), torch.zeros(3, 8)])
    assert count_macs(nn.GRU(8, 4), packed)["recurrent"] == 8 * 3 * (8 * 4 + 4 * 4)


def test_module_is_left_as_it_was():
    module = nn.Sequential(nn.Linear(4, 4), nn.GRU(4, 4).eval())
    before = torch.backends.mha.get_fastpath_enabled()
    count_macs(module, torch.zeros(3, 4))
    assert module.training and not module[1].training
    assert not module[1]._forward_hooks and not module[1]._forward_pre_hooks
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_hooks_go_even_when_the_model_fails():
    module = nn.GRU(4, 4)
    with pytest.raises(RuntimeError):
        count_macs(module, torch.zeros(3, 5))
    assert not module._forward_hooks and module.training


def test_shared_parameters_count_once():
    layer = nn.Linear(3, 2)
    assert count_parameters(nn.Sequential(layer, layer)) == 8


def test_per_second():
    module = nn.Sequential(nn.Conv1d(1, 10, 1), nn.Conv1d(10, 1, 1))
    result = macs_per_second(module, lambda seconds: (torch.zeros(1, 1, int(16000 * seconds)),), 2.0)
    assert result.gmacs_per_second == result.gmacs_per_second_with_recurrent == pytest.approx(20 * 16000 / 1e9)
    assert (result.parameters, result.seconds) == (31, 2.0)
    with pytest.raises(ValueError, match="seconds is 0"):
        macs_per_second(module, lambda seconds: (), 0)
