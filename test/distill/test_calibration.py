"""Properties of similarity and calibration that a user relies on beyond the golden numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr

from i2srf_kd.distill.calibration import CalibratedSetLoss, CalibrationOptions
from i2srf_kd.distill.similarity import layer_similarities, resampling_matrix, symmetric_kl


def features(batch: int, frames: int, widths=(9, 5), channels: int = 3, seed: int = 0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, channels, frames, w, generator=generator, dtype=dtype) for w in widths]


def build(seed: int = 0, **options) -> CalibratedSetLoss:
    torch.manual_seed(seed)
    return CalibratedSetLoss(2, 2, CalibrationOptions(**options)).double()


@settings(max_examples=15, deadline=None)
@given(batch=st.integers(1, 5), frames=st.integers(1, 40), seed=st.integers(0, 100))
def test_any_batch_size_and_length_gives_a_finite_loss_and_gradient(batch: int, frames: int, seed: int) -> None:
    student = [f.requires_grad_() for f in features(batch, frames, seed=seed)]
    result = build()(student, features(batch, frames, widths=(7, 4), channels=5, seed=seed + 1))
    result.loss.backward()
    assert torch.isfinite(result.loss) and result.loss >= 0
    assert all(torch.isfinite(f.grad).all() for f in student)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 100), weighting=st.sampled_from(["own", "other", "product"]))
def test_order_of_the_batch_does_not_matter(seed: int, weighting: str) -> None:
    loss = build(weighting=weighting)
    student, teacher = features(4, 12, seed=seed), features(4, 12, seed=seed + 1)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    straight = loss(student, teacher).loss
    permuted = loss([f[order] for f in student], [f[order] for f in teacher]).loss
    torch.testing.assert_close(straight, permuted, rtol=1e-10, atol=0)


def test_pooled_calibration_does_not_depend_on_gain() -> None:
    loss = build()
    student, teacher = features(3, 10), features(3, 10, seed=1)
    loud = loss([100 * f for f in student], teacher).loss
    torch.testing.assert_close(loss(student, teacher).loss, loud, rtol=1e-5, atol=0)


def test_equal_layers_have_no_loss() -> None:
    student = features(3, 10, widths=(9, 9))
    same = [student[0], student[0]]
    assert build()(same, same).loss.abs() < 1e-12


@pytest.mark.parametrize("dtype, amplitude", [(torch.float32, 1e4), (torch.float32, 1e-9), (torch.bfloat16, 1.0)])
def test_silent_and_antiparallel_frames_are_finite(dtype: torch.dtype, amplitude: float) -> None:
    student = [amplitude * f for f in features(3, 6, dtype=torch.float32)]
    for f in student:
        f[0, :, 1] = 0.0
        f[:, :, 3] = -f[:, :, 2]
        f[1] = -f[2]
    student = [f.to(dtype).requires_grad_() for f in student]
    teacher = [amplitude * f for f in features(3, 6, seed=1, dtype=torch.float32)]
    teacher[0][2] = 0.0
    loss = CalibratedSetLoss(2, 2, CalibrationOptions())
    result = loss(student, [f.to(dtype) for f in teacher])
    result.loss.backward()
    assert torch.isfinite(result.loss)
    assert all(torch.isfinite(f.grad).all() for f in student)
    assert all(torch.isfinite(p.grad).all() for p in loss.parameters())


def test_autocast_keeps_row_distributions_in_float32() -> None:
    loss = CalibratedSetLoss(2, 2, CalibrationOptions())
    student, teacher = features(3, 8, dtype=torch.float32), features(3, 8, seed=1, dtype=torch.float32)
    plain = loss(student, teacher).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = loss(student, teacher).loss
    torch.testing.assert_close(plain, cast)


def test_rows_against_scipy_relative_entropy() -> None:
    student, teacher = features(2, 7)[0], features(2, 7, seed=1)[0]
    p, q = layer_similarities(student)[0].rows(), layer_similarities(teacher)[0].rows()
    torch.testing.assert_close(p.sum(-1), torch.ones(2, 7, dtype=p.dtype))
    expected = (rel_entr(p.numpy(), q.numpy()) + rel_entr(q.numpy(), p.numpy())).sum(-1)
    torch.testing.assert_close(symmetric_kl(p, q), torch.from_numpy(expected), rtol=1e-9, atol=1e-15)


def test_gradient_by_finite_differences() -> None:
    loss = build(normalize_over="embedding", batch_reduction="frames", temperature=0.1)
    student = [f.requires_grad_() for f in features(2, 4, widths=(3, 2), channels=2)]
    teacher = features(2, 4, widths=(3, 2), channels=2, seed=1)
    assert torch.autograd.gradcheck(lambda *s: loss(list(s), teacher).loss, student)


def test_streams_can_be_switched_off_and_sum_up() -> None:
    student, teacher = features(3, 10), features(3, 10, seed=1)
    both = build()
    time_only = CalibratedSetLoss(2, 2, CalibrationOptions.parse({"frequency_stream": False})).double()
    time_only.load_state_dict({k: v for k, v in both.state_dict().items() if k.startswith("learned.time.")})
    assert list(time_only.learned) == ["time"]
    torch.testing.assert_close(time_only(student, teacher).loss, both(student, teacher).streams["time"].loss)


def test_no_calibration_weighs_all_teacher_layers_alike() -> None:
    student, teacher = features(2, 5), features(2, 5, seed=1)
    loss = CalibratedSetLoss(2, 2, CalibrationOptions(weights="uniform"))
    assert not list(loss.parameters())
    result = loss(student, teacher)
    rows = [[layer_similarities(f)[0].rows() for f in side] for side in (student, teacher)]
    expected = sum(symmetric_kl(s, t).mean() / 2 for s in rows[0] for t in rows[1]) / 2
    torch.testing.assert_close(result.streams["time"].loss, expected)


def test_batch_stream_grows_with_clip_length_only_in_the_published_reduction() -> None:
    student, teacher = features(4, 12), features(4, 12, seed=1)
    published, mean = build(batch_reduction="clips"), build(batch_reduction="frames")
    ratio = published(student, teacher).streams["clips"].loss / mean(student, teacher).streams["clips"].loss
    assert float(ratio.detach()) == pytest.approx(12 / 4)


@pytest.mark.parametrize("length, bins", [(1, 8), (5, 8), (8, 8), (126, 64), (7, 3)])
def test_resampling_keeps_constants_and_the_mean(length: int, bins: int) -> None:
    matrix = resampling_matrix(length, bins, torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(matrix.sum(0), torch.ones(bins, dtype=torch.float64))
    row = torch.rand(length, dtype=torch.float64)
    torch.testing.assert_close((row @ matrix).mean(), row.mean())


@pytest.mark.parametrize(
    "options, word",
    [
        ({"embedding": "fixed"}, "frames"),
        ({"embedding": "linear"}, "pooled"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": "low"}, "temperature"),
        ({"time_bins": 0}, "time_bins"),
        ({"time_stream": False, "frequency_stream": False}, "nothing"),
    ],
)
def test_bad_options_are_named(options: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        CalibrationOptions.parse(options)


def test_fixed_calibration_weighs_other_sizes_uniformly_in_evaluation() -> None:
    fixed = CalibratedSetLoss(2, 2, CalibrationOptions(embedding="fixed", frames=10, batch_size=3)).double().eval()
    uniform = CalibratedSetLoss(2, 2, CalibrationOptions(weights="uniform"))
    student, teacher = features(2, 7), features(2, 7, seed=1)
    torch.testing.assert_close(fixed(student, teacher).loss, uniform(student, teacher).loss)
    assert fixed(features(3, 10), features(3, 10, seed=1)).streams["time"].weights is not None


def test_wrong_sizes_are_named() -> None:
    fixed = CalibratedSetLoss(2, 2, CalibrationOptions(embedding="fixed", frames=10, batch_size=3)).double()
    with pytest.raises(ValueError, match="built for 10 frames, got 11"):
        fixed(features(3, 11), features(3, 11))
    with pytest.raises(ValueError, match="2 student layers, got 1"):
        build()(features(3, 10)[:1], features(3, 10))
    with pytest.raises(ValueError, match="same batch size"):
        build()(features(3, 10), features(3, 9))
    with pytest.raises(ValueError, match=r"\(B, C, T, F\)"):
        layer_similarities(torch.zeros(2, 3, 4))
