"""Gram matrices whose gradient is written by hand, against autograd's."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from i2srf_kd.distill.gram import frame_grams, padding_flops, self_gram
from i2srf_kd.distill.similarity import layer_similarities

SIZES = st.tuples(*(st.integers(1, size) for size in (3, 5, 18, 6)))
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "columns of a larger map": lambda x: torch.cat([x, x], dim=3)[..., ::2],
    "frames first": lambda x: x.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3),
}


def plain(feature):
    """The same by autograd."""
    vectors = feature.transpose(1, 2).flatten(2)
    by_frame = vectors.transpose(0, 1)
    return vectors @ vectors.mT, by_frame @ by_frame.mT


def gradient(function, feature, weights):
    """Of a weighted sum of both matrices; weights of None leave a matrix out."""
    feature = feature.detach().requires_grad_()
    grams = function(feature)
    sum((gram * w).sum() for gram, w in zip(grams, weights, strict=True) if w is not None).backward()
    return grams, feature.grad


@pytest.mark.parametrize("layout", LAYOUTS)
@given(size=SIZES, left_out=st.sampled_from([None, 0, 1]), seed=st.integers(0, 99))
def test_frame_grams(layout, size, left_out, seed):
    torch.manual_seed(seed)
    b, _, t, _ = size
    feature = LAYOUTS[layout](torch.randn(size, dtype=torch.float64))
    weights = [torch.randn(b, t, t, dtype=torch.float64), torch.randn(t, b, b, dtype=torch.float64)]
    if left_out is not None:
        weights[left_out] = None
    (grams, found), (expected_grams, expected) = (gradient(f, feature, weights) for f in (frame_grams, plain))
    for gram, expected_gram in zip(grams, expected_grams, strict=True):
        torch.testing.assert_close(gram, expected_gram)
    torch.testing.assert_close(found, expected)
    assert found.isfinite().all() and found.shape == feature.shape


def test_gradient_comes_in_the_order_of_the_feature():
    feature = torch.randn(2, 3, 5, 4)
    for layout in (torch.contiguous_format, torch.channels_last):
        leaf = feature.to(memory_format=layout).requires_grad_()
        (gradient_by_leaf,) = torch.autograd.grad(frame_grams(leaf)[0].sum(), leaf)
        assert gradient_by_leaf.stride() == leaf.stride()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_backward_pass_inside_autocast(layout):
    feature = torch.randn(2, 3, 5, 4).to(memory_format=layout)

    def cosines(x):
        return [similarity.cosine for similarity in layer_similarities(x)]

    expected = gradient(cosines, feature, [1.0, 1.0])[1]
    with torch.autocast("cpu", torch.bfloat16):
        found = gradient(cosines, feature, [1.0, 1.0])[1]
    torch.testing.assert_close(found, expected)


def test_padding_is_counted():
    feature = torch.randn(2, 3, 17, 4)
    assert padding_flops(feature) == 2 * 2 * 3 * 4 * (32**2 - 17**2)
    assert padding_flops(feature[:, :, :16]) == padding_flops(feature.to(memory_format=torch.channels_last)) == 0


def test_self_gram():
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(self_gram, x)
