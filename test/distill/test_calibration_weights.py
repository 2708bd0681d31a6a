"""Streams and weights beyond the published form, each against its definition written naively in float64."""

from typing import Dict, List

import numpy as np
import pytest
import torch
from torch import Tensor

from i2srf_kd.distill import Side, build_method
from i2srf_kd.distill.benefit import Benefit
from i2srf_kd.distill.calibration import STREAMS, CalibratedSetLoss, CalibrationOptions
from i2srf_kd.distill.method import layout_of

BINS = 4
OURS = {"streams": STREAMS, "frequency_bins": BINS, "batch_reduction": "frames", "normalize_over": "embedding"}


def features(widths=(9, 5), channels: int = 3, seed: int = 0, batch: int = 3, frames: int = 6) -> List[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, channels, frames, w, generator=generator, dtype=torch.float64) for w in widths]


def build(**options) -> CalibratedSetLoss:
    torch.manual_seed(0)
    return CalibratedSetLoss(2, 2, CalibrationOptions(**{**OURS, **options})).double()


def average(feature: np.ndarray, bins: int) -> np.ndarray:
    """Area averages over the last axis, by a fine staircase."""
    return np.repeat(feature, bins, -1).reshape(*feature.shape[:-1], bins, feature.shape[-1]).mean(-1)


def naive_rows(feature: Tensor, stream: str) -> np.ndarray:
    """Row distributions ``(B, N, M)``, one inner product at a time."""
    x = feature.detach().numpy()
    batch, _, frames, _ = x.shape
    if stream == "frequency":
        x = average(x, BINS)
        vectors = [[x[b, :, :, f].ravel() for f in range(BINS)] for b in range(batch)]
    else:
        vectors = [[x[b, :, t, :].ravel() for t in range(frames)] for b in range(batch)]
    places = len(vectors[0])
    if stream == "clips":
        compared = [[[vectors[c][n] for c in range(batch)] for n in range(places)] for _ in range(batch)]
    else:
        compared = [[vectors[b] for _ in range(places)] for b in range(batch)]
    rows = []
    for b in range(batch):
        for n in range(places):
            v = vectors[b][n]
            cosines = [v @ u / ((np.sqrt(v @ v) + 1e-6) * (np.sqrt(u @ u) + 1e-6)) for u in compared[b][n]]
            row = 0.5 * (1 + np.array(cosines))
            rows.append(row / row.sum())
    return np.array(rows).reshape(batch, places, -1)


def naive_distances(student: List[Tensor], teacher: List[Tensor], stream: str) -> np.ndarray:
    """Symmetric KL ``(B, N, Ns, Nt)``."""
    p, q = ([naive_rows(f, stream) for f in side] for side in (student, teacher))
    return np.stack([np.stack([((a - b) * np.log(a / b)).sum(-1) for b in q], -1) for a in p], -2)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("stream", STREAMS)
def test_each_stream_is_the_mean_distance_under_uniform_weights(stream: str) -> None:
    student, teacher = features(), features((7, 4), 5, seed=1)
    result = build(weights="uniform")(student, teacher)
    expected = naive_distances(student, teacher, stream)
    assert result.streams[stream].weights is None
    assert float(result.streams[stream].loss) == pytest.approx(expected.mean(), rel=1e-9)
    assert float(result.streams[stream].uniform_loss) == pytest.approx(expected.mean(), rel=1e-9)
    np.testing.assert_allclose(result.streams[stream].pair_loss, expected.mean((0, 1)) / 2, rtol=1e-9)


@pytest.mark.parametrize("weights, sign", [("agreement", -1.0), ("difference", 1.0)])
def test_weights_of_the_distances_themselves(weights: str, sign: float) -> None:
    student, teacher = features(), features((7, 4), 5, seed=1)
    result = build(weights=weights, temperature=0.5, uniform_share=0.2)(student, teacher)
    for stream in STREAMS:
        distances = naive_distances(student, teacher, stream)
        expected = 0.8 * softmax(sign * distances / distances.mean(-1, keepdims=True) / 0.5) + 0.2 / 2
        found = result.streams[stream]
        np.testing.assert_allclose(found.weights, expected, rtol=1e-9)
        assert float(found.loss) == pytest.approx((expected * distances).mean((0, 1)).sum() / 2, rel=1e-9)


def test_other_and_product_weigh_across_axes() -> None:
    student, teacher = features(), features((7, 4), 5, seed=1)
    own = build(weights="agreement", streams=("time", "frequency"))(student, teacher)
    time, bins = (own.streams[name].weights.numpy() for name in ("time", "frequency"))
    distances = {name: naive_distances(student, teacher, name) for name in ("time", "frequency")}
    product = time * bins.mean(1, keepdims=True)
    cases = {
        ("other", "time"): np.broadcast_to(bins.mean(1, keepdims=True), time.shape),
        ("other", "frequency"): np.broadcast_to(time.mean(1, keepdims=True), bins.shape),
        ("product", "time"): product / product.sum(-1, keepdims=True),
    }
    for (weighting, stream), expected in cases.items():
        found = build(weights="agreement", streams=("time", "frequency"), weighting=weighting)(student, teacher)
        pairs = (expected * distances[stream]).mean((0, 1))
        np.testing.assert_allclose(found.streams[stream].pair_loss, pairs, rtol=1e-9, err_msg=f"{weighting} {stream}")


def test_benefit_scales_each_frame_and_bin() -> None:
    student, teacher = features(), features((7, 4), 5, seed=1)
    benefit = {"time": torch.rand(3, 6), "clips": torch.rand(3, 6), "frequency": torch.rand(3, BINS)}
    found = build(weights="uniform")(student, teacher, benefit)
    for stream in STREAMS:
        expected = (naive_distances(student, teacher, stream) * benefit[stream].numpy()[:, :, None, None]).mean()
        assert float(found.streams[stream].loss) == pytest.approx(expected, rel=1e-6)
    none = build(weights="uniform")(student, teacher, {name: torch.zeros_like(b) for name, b in benefit.items()})
    assert float(none.loss) == 0


def test_weights_that_learn_from_agreement_are_out_of_reach_of_the_loss() -> None:
    student = [f.requires_grad_() for f in features()]
    teacher = features((7, 4), 5, seed=1)
    loss = build(learn_from="agreement")
    result = loss(student, teacher)
    parameters = list(loss.parameters())
    scaled = [stream.loss for stream in result.streams.values()]
    assert all(g is None for g in torch.autograd.grad(scaled, parameters, retain_graph=True, allow_unused=True))
    # The loss of the set brings the gradient along, not the value.
    assert float(result.loss) == pytest.approx(sum(float(loss) for loss in scaled), rel=1e-12)
    brought = torch.autograd.grad(result.loss, parameters, retain_graph=True)
    # And the other way round: what trains the weights does not reach the networks.
    of_features = torch.autograd.grad(result.calibration_loss, student, retain_graph=True, allow_unused=True)
    assert all(g is None for g in of_features)
    own = torch.autograd.grad(result.calibration_loss, parameters)
    assert all(g.abs().sum() > 0 for g in own)
    torch.testing.assert_close(brought, own)


def test_weights_that_learn_from_agreement_come_to_it() -> None:
    student, teacher = features(), features((7, 4), 5, seed=1)
    target = build(weights="agreement", temperature=0.3)(student, teacher)
    loss = build(learn_from="agreement", temperature=0.3)

    def distance() -> float:
        found = loss(student, teacher).streams
        return max(float((found[s].weights - target.streams[s].weights).abs().mean()) for s in STREAMS)

    before, optimizer = distance(), torch.optim.Adam(loss.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        loss(student, teacher).calibration_loss.backward()
        optimizer.step()
    assert distance() < 0.2 * before


@pytest.mark.parametrize("options", [{"weights": "agreement"}, {"weights": "difference"}, {"learn_from": "agreement"}])
def test_gradient_of_the_features_by_finite_differences(options: Dict[str, str]) -> None:
    """Weights without gradient are constants: they are taken from the first pass."""
    student = [f.requires_grad_() for f in features((3, 2), 2, batch=2, frames=3)]
    teacher = features((3, 2), 2, seed=1, batch=2, frames=3)
    weights = {name: s.weights.detach() for name, s in build(**options)(student, teacher).streams.items()}

    def constant(*layers: Tensor) -> Tensor:
        uniform = build(weights="uniform")
        uniform._weights = lambda *_: (weights, None)
        return uniform(list(layers), teacher).loss

    assert torch.autograd.gradcheck(constant, student)
    ours = torch.autograd.grad(build(**options)(student, teacher).loss, student)
    torch.testing.assert_close(ours, torch.autograd.grad(constant(*student), student))


@pytest.mark.parametrize("options", [{"weights": "agreement"}, {"learn_from": "agreement"}, {"weighting": "product"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_silence_and_equal_layers_are_finite(options: Dict[str, str], dtype: torch.dtype) -> None:
    student = [f.to(dtype) for f in features((9, 9))]
    for f in student:
        f[0, :, 1] = 0
        f[:, :, :, 2] = 0
    student = [f.requires_grad_() for f in student]
    teacher = [f.detach().clone() for f in student]
    result = build(**options).float()(student, teacher)
    result.loss.backward()
    assert torch.isfinite(result.loss)
    assert all(torch.isfinite(f.grad).all() for f in student)


@pytest.mark.parametrize("options", [{"weights": "agreement"}, {"learn_from": "agreement"}, {"weighting": "other"}])
def test_order_of_the_clips_and_gain_do_not_matter(options: Dict[str, str]) -> None:
    student, teacher = features(), features((7, 4), 5, seed=1)
    loss, order = build(**options), [2, 0, 1]
    expected = loss(student, teacher).loss
    torch.testing.assert_close(loss([f[order] for f in student], [f[order] for f in teacher]).loss, expected)
    torch.testing.assert_close(loss([50 * f for f in student], teacher).loss, expected, rtol=1e-4, atol=0)


def test_benefit_is_the_lead_of_the_teacher() -> None:
    reference = torch.randn(2, 4096, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(2, 4096, generator=torch.Generator().manual_seed(1))
    noise[1] = 0  # no network errs in the second clip
    student, teacher = Side(waveform=reference + 0.5 * noise), Side(waveform=reference.clone())
    ahead = Benefit()(student, teacher, reference, frames=9, bins=8)
    assert ahead["time"].shape == (2, 9) and ahead["frequency"].shape == (2, 8)
    for value in ahead.values():
        assert float(value[0].min()) > 0.99 and float(value[1].abs().max()) == 0
    behind = Benefit()(teacher, student, reference, frames=9, bins=8)
    assert all(float(value.abs().max()) == 0 for value in behind.values())


def test_benefit_asks_for_waveforms_and_names_what_is_missing() -> None:
    layers = {"encoder": features((9, 5))}
    method = build_method("i2srf_tfckd", layout_of(layers), layout_of(layers), sets=["encoder"], middle_channels=2,
                          calibration={"benefit": True})  # fmt: skip
    assert set(method.needs) == {"waveform", "reference"}
    with pytest.raises(ValueError, match="reference, which was not handed over"):
        method(Side(layers), Side(layers))


@pytest.mark.parametrize(
    "options, word",
    [
        ({"streams": ["time", "phase"]}, "phase"),
        ({"streams": "time"}, "list"),
        ({"streams": []}, "nothing to compare"),
        ({"weights": "attention"}, "agreement"),
        ({"uniform_share": 1.5}, "0 to 1"),
        ({"embedding": "fixed", "frames": 6, "batch_size": 3, "streams": ["frequency"]}, "published"),
    ],
)
def test_bad_options_are_named(options: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        CalibrationOptions.parse(options)


def test_the_published_form_refuses_other_batches_before_training() -> None:
    layers = {"encoder": features((9, 5))}
    fixed = {"embedding": "fixed", "frames": 6, "batch_size": 3}
    layout = layout_of(layers)
    method = build_method("i2rf_tfckd", layout, layout, sets=["encoder"], inter=False, calibration=fixed)
    method.check_batch(3, 6)
    with pytest.raises(ValueError, match="3 clips of 6 frames, the training has 4 of 6"):
        method.check_batch(4, 6)


def test_names_of_earlier_configurations_are_understood() -> None:
    assert CalibrationOptions.parse({"time_stream": True, "frequency_stream": False}).streams == ("time",)
    assert CalibrationOptions.parse({"time_stream": False}).streams == ("clips",)
    assert CalibrationOptions.parse({"embedding": "none"}).weights == "uniform"
