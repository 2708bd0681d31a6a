"""Feature sets of networks that know nothing of distillation."""

import pytest
import torch
from torch import nn

from i2srf_kd.distill.taps import FeatureTaps, canonical
from i2srf_kd.nets import DPDCRN


def test_dpdcrn_announces_the_sets_it_returns() -> None:
    network = DPDCRN(8, 2, n_fft=64)
    mixture = torch.randn(2, 2, 6, 33)
    returned = network(mixture, return_features=True).features
    taps = FeatureTaps(nn.ModuleDict({"separator": network}))
    with taps.record() as recorded:
        network(mixture)
    assert {k: [f.shape for f in v] for k, v in recorded.items()} == {
        k: [f.shape for f in v] for k, v in returned.items()
    }
    for name in returned:
        for a, b in zip(recorded[name], returned[name], strict=True):
            torch.testing.assert_close(a, b)
    assert network(mixture).features is None and network.feature_sink is None


def test_hooks_record_in_order_and_only_while_asked() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 4, 1))
    taps = FeatureTaps(network, {"early": ["0", "1"], "late": [{"module": "2", "layout": "BCTF"}]})
    x = torch.randn(1, 2, 5, 7)
    with taps.record() as features:
        network(x)
    network(x)
    assert [f.shape[1] for f in features["early"]] == [3, 3] and len(features["late"]) == 1


def test_nested_outputs() -> None:
    class Nested(nn.Module):
        def forward(self, x):
            return [x, 2 * x], x.shape

    taps = FeatureTaps(network := Nested(), {"a": [{"module": "", "output": [0, 1]}]})
    x = torch.randn(1, 2, 3, 4)
    with taps.record() as features:
        network(x)
    assert torch.equal(features["a"][0], 2 * x)


def test_layouts() -> None:
    x = torch.randn(2, 5, 3)
    assert torch.equal(canonical(x, "BTC")[:, :, :, 0], x.transpose(1, 2))
    assert torch.equal(canonical(x, "BTF")[:, 0], x)
    mics = torch.randn(2, 4, 5, 3)
    assert torch.equal(canonical(mics, "BCTC"), mics.transpose(2, 3).reshape(2, 12, 5, 1))
    spectrum = torch.randn(2, 5, 3, dtype=torch.complex64)
    both = canonical(spectrum, "BTF")
    assert both.shape == (2, 2, 5, 3) and torch.equal(both[:, 1], spectrum.imag)


@pytest.mark.parametrize(
    "spec, word",
    [
        ({"a": ["3"]}, "no module"),
        ({"a": [{"module": "0", "layout": "BXT"}]}, "layout"),
        ({"a": [{"modul": "0"}]}, "module, layout and output or input"),
        (["0"], "name of a set"),
        ({"a": "0"}, "must be a list"),
    ],
)
def test_bad_taps_are_named(spec, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        FeatureTaps(nn.Sequential(nn.ReLU()), spec)


def test_wrong_layout_shows_when_the_network_runs() -> None:
    taps = FeatureTaps(network := nn.Sequential(nn.ReLU()), {"a": [{"module": "0", "layout": "BTC"}]})
    with taps.record(), pytest.raises(ValueError, match="not laid out as BTC"):
        network(torch.zeros(1, 2, 3, 4))


def test_what_a_module_is_given() -> None:
    taps = FeatureTaps(network := nn.Sequential(nn.ReLU(), nn.ReLU()), {"a": [{"module": "0", "input": 0}]})
    x = torch.randn(1, 2, 3, 4)
    with taps.record() as features:
        network(x)
    assert torch.equal(features["a"][0], x)
    for spec, word in (
        ({"module": "0", "input": 0, "output": 0}, "not both"),
        ({"module": "0", "output": "first"}, "index or a list"),
    ):
        with pytest.raises(ValueError, match=word):
            FeatureTaps(network, {"a": [spec]})
    taps = FeatureTaps(network, {"a": [{"module": "0", "input": 3}]})
    with taps.record(), pytest.raises(ValueError, match="has no input"):
        network(x)
