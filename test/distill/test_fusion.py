"""The fusion against the published formulas written naively: full width, every convolution, every resize."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import distillation as reference

from i2srf_kd.distill.fusion import RecursiveFusion, nearest_columns


@settings(max_examples=25, deadline=None)
@given(
    widths=st.lists(st.sampled_from([3, 8, 16, 17, 33, 64]), min_size=1, max_size=4),
    carried=st.sampled_from([None, 5, 16, 40]),
    seed=st.integers(0, 1000),
)
def test_equals_the_naive_form(widths, carried, seed) -> None:
    torch.manual_seed(seed)
    channels = [int(c) for c in torch.randint(1, 6, (len(widths),))]
    fusion = RecursiveFusion(channels, 4, 3, accept_state=carried is not None).double()
    features = [3 + torch.randn(2, c, 5, w, dtype=torch.float64) for c, w in zip(channels, widths, strict=True)]
    features = [f.requires_grad_() for f in features]
    state = None if carried is None else torch.randn(2, 4, 5, carried, dtype=torch.float64)
    ours, plain = fusion(features, state).output, reference.fusion(fusion, features, state)
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-11)
    cotangent = torch.randn_like(plain)
    parameters = [*features, *fusion.parameters()]
    gradients = [torch.autograd.grad((y * cotangent).sum(), parameters, allow_unused=True) for y in (ours, plain)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)


@given(source=st.integers(1, 300), target=st.integers(1, 300))
def test_nearest_columns_against_torch(source: int, target: int) -> None:
    ours = nearest_columns(torch.arange(target), source, target)
    theirs = F.interpolate(torch.arange(float(source))[None, None, None], size=(1, target), mode="nearest")
    # torch computes the index in float32, which is off by one now and then where it should be exact.
    assert (ours - theirs[0, 0, 0].long()).abs().max() <= 1
    assert int(ours[0]) == 0 and int(ours[-1]) == (target - 1) * source // target


def test_a_constant_layer_is_finite() -> None:
    fusion = RecursiveFusion([2, 2], 4, 3)
    features = [torch.full((1, 2, 5, 8), 7.0, requires_grad=True), torch.zeros(1, 2, 5, 4)]
    fusion(features).output.sum().backward()
    assert torch.isfinite(features[0].grad).all()


def test_wrong_use_is_named() -> None:
    fusion = RecursiveFusion([2, 2], 4, 3)
    with pytest.raises(ValueError, match="built for 2 layers, got 1"):
        fusion([torch.zeros(1, 2, 3, 4)])
    with pytest.raises(ValueError, match="accept_state"):
        fusion([torch.zeros(1, 2, 3, 4)] * 2, torch.zeros(1, 4, 3, 4))
    with pytest.raises(ValueError, match="at least one layer"):
        RecursiveFusion([], 4, 3)
