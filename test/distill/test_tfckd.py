"""The methods as a user configures them: switches, gradients, frozen sides, errors."""

from typing import Dict, List

import pytest
import torch

from i2srf_kd.distill import DistillMethod, Side, build_method, method_names, register_method
from i2srf_kd.distill.distiller import Distiller
from i2srf_kd.distill.matching import match_frames
from i2srf_kd.distill.method import layout_of
from i2srf_kd.nets import DPDCRN

SETS = ("encoder", "dual_path", "decoder")


def run(channels: int, blocks: int, seed: int, frames: int = 10) -> Dict[str, List[torch.Tensor]]:
    torch.manual_seed(seed)
    network = DPDCRN(channels, blocks, n_fft=64)
    mixture = torch.randn(2, 2, frames, 33, generator=torch.Generator().manual_seed(0))
    return network(mixture, return_features=True).features


@pytest.fixture(scope="module")
def student() -> Dict[str, List[torch.Tensor]]:
    return {name: [f.detach() for f in layers] for name, layers in run(8, 1, seed=0).items()}


@pytest.fixture(scope="module")
def teacher() -> Dict[str, List[torch.Tensor]]:
    return {name: [f.detach() for f in layers] for name, layers in run(16, 2, seed=1).items()}


def build(name: str, student, teacher, seed: int = 0, **options) -> DistillMethod:
    torch.manual_seed(seed)
    return build_method(name, layout_of(student), layout_of(teacher), middle_channels=6, **options)


@pytest.mark.parametrize("name", ["i2rf_tfckd", "i2srf_tfckd"])
def test_terms_and_who_gets_a_gradient(name: str, student, teacher) -> None:
    leaves = {k: [f.clone().requires_grad_() for f in v] for k, v in student.items()}
    frozen = {k: [f.clone().requires_grad_() for f in v] for k, v in teacher.items()}
    method = build(name, student, teacher)
    terms = method(Side(leaves), Side(frozen))
    assert set(terms) == {"intra_encoder", "intra_dual_path", "intra_decoder", "inter"}
    sum(terms.values()).backward()
    assert all(f.grad is not None and f.grad.abs().sum() > 0 for layers in leaves.values() for f in layers)
    assert all(f.grad is None for layers in frozen.values() for f in layers)
    # Every parameter takes part: DDP refuses those that do not.
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "options, terms",
    [
        ({"inter": False}, {"intra_encoder", "intra_dual_path", "intra_decoder"}),
        ({"intra": False}, {"inter"}),
        ({"intra": ["decoder"]}, {"intra_decoder", "inter"}),
        ({"sets": ["encoder"], "inter": False}, {"intra_encoder"}),
        ({"calibration": {"weights": "uniform"}}, {"intra_encoder", "intra_dual_path", "intra_decoder", "inter"}),
    ],
)
def test_parts_can_be_switched_off(options: dict, terms: set, student, teacher) -> None:
    method = build("i2srf_tfckd", student, teacher, **options)
    leaves = {k: [f.clone().requires_grad_() for f in v] for k, v in student.items()}
    result = method(Side(leaves), Side(teacher))
    assert set(result) == terms
    sum(result.values()).backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


def test_the_two_forms_differ_where_documented(student, teacher) -> None:
    ours = build("i2srf_tfckd", student, teacher)
    assert ours.intra["encoder"].options.normalize_over == "embedding"
    options = {"normalize_over": "frame", "batch_reduction": "clips", "temperature": 1.0, "learn_from": "loss"}
    as_earlier = build("i2srf_tfckd", student, teacher, calibration=options)
    earlier = build("i2rf_tfckd", student, teacher)
    for name, value in as_earlier(Side(student), Side(teacher)).items():
        torch.testing.assert_close(value, earlier(Side(student), Side(teacher))[name])


def test_carried_state_reaches_the_last_set(student, teacher) -> None:
    method = build("i2srf_tfckd", student, teacher, carry_state=True)
    changed = {**student, "encoder": [f + 1.0 for f in student["encoder"]]}
    before, after = (method.student_fusion(f)[-1] for f in (student, changed))
    assert not torch.allclose(before, after)


def test_diagnostics_show_which_teacher_layer_teaches(student, teacher) -> None:
    method = build("i2srf_tfckd", student, teacher)
    method(Side(student), Side(teacher))
    weights = method.diagnostics()["intra_dual_path_time_weights"]
    assert weights.shape == (1, 2)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1))


def test_unknown_method_option_and_set_are_named(student, teacher) -> None:
    layouts = layout_of(student), layout_of(teacher)
    with pytest.raises(ValueError, match="no distillation method 'fitnet'.*i2srf_tfckd"):
        build_method("fitnet", *layouts)
    with pytest.raises(ValueError, match="no option intre.*inter"):
        build_method("i2srf_tfckd", *layouts, intre=True)
    with pytest.raises(ValueError, match="student has no feature set blocks"):
        build_method("i2srf_tfckd", *layouts, sets=["blocks"])
    with pytest.raises(ValueError, match="calibration has no option temp"):
        build_method("i2srf_tfckd", *layouts, calibration={"temp": 1})
    with pytest.raises(ValueError, match="sets must be a list"):
        build_method("i2srf_tfckd", *layouts, sets="encoder")
    with pytest.raises(ValueError, match="middle_channels"):
        build_method("i2srf_tfckd", *layouts, middle_channels=0)
    with pytest.raises(ValueError, match="nothing to distil"):
        build_method("i2srf_tfckd", *layouts, intra=False, inter=False)


class TestDistiller:
    def config(self, **more) -> dict:
        return {"method": "i2srf_tfckd", "method_conf": {"middle_channels": 6}, **more}

    def test_schedule(self, student, teacher) -> None:
        config = self.config(weight=0.4, kd_only_steps=2, ramp_steps=4)
        distiller = Distiller(config, layout_of(student), layout_of(teacher))
        phases = []
        for _ in range(8):
            phases.append(distiller.phase())
            distiller.steps += 1
        kd_only, ramp = phases[:2], phases[2:6]
        assert kd_only == [(0.0, 0.4)] * 2
        assert [task for task, _ in ramp] == [1.0] * 4
        assert [weight for _, weight in ramp] == pytest.approx([0.1, 0.2, 0.3, 0.4])
        assert phases[6:] == [(1.0, 0.4)] * 2
        assert "steps" in distiller.state_dict()

    def test_methods_can_be_combined(self, student, teacher) -> None:
        one = {"name": "i2rf_tfckd", "weight": 2.0, "conf": {"middle_channels": 6}}
        both = {"method": [one, {**one, "name": "i2srf_tfckd", "weight": 1.0}]}
        distiller = Distiller(both, layout_of(student), layout_of(teacher))
        loss, terms = distiller(Side(student), Side(teacher))
        first = sum(v for k, v in terms.items() if k.startswith("i2rf_tfckd0_"))
        second = sum(v for k, v in terms.items() if k.startswith("i2srf_tfckd1_"))
        torch.testing.assert_close(loss.detach(), 2 * first + second)

    @pytest.mark.parametrize(
        "config, word",
        [
            ({}, "needs a method"),
            ({"method": "i2srf_tfckd", "wieght": 1}, "no option wieght"),
            ({"method": [{"conf": {}}]}, "name, weight and conf"),
            ({"method": "i2srf_tfckd", "weight": -1}, "negative"),
        ],
    )
    def test_bad_configurations_are_named(self, config: dict, word: str, student, teacher) -> None:
        with pytest.raises(ValueError, match=word):
            Distiller(config, layout_of(student), layout_of(teacher))

    def test_another_frame_rate_is_adapted(self, student) -> None:
        slow = {k: [f.detach() for f in v] for k, v in run(16, 2, seed=1, frames=7).items()}
        distiller = Distiller(self.config(), layout_of(student), layout_of(slow))
        assert torch.isfinite(distiller(Side(student), Side(slow))[0])
        assert match_frames(slow["encoder"][0], 10).shape[2] == 10


def test_a_method_from_outside_the_package_is_selectable() -> None:
    @register_method("test_constant")
    class Constant(DistillMethod):
        def __init__(self, student, teacher, value: float = 1.0):
            super().__init__(student, teacher)
            self.value = value

        def forward(self, student, teacher, reference=None):
            return {"constant": torch.tensor(self.value)}

    assert "test_constant" in method_names()
    assert float(build_method("test_constant", {}, {}, value=3.0)(Side(), Side())["constant"]) == 3.0
    with pytest.raises(ValueError, match="already"):
        register_method("test_constant")(build_method("i2rf_tfckd", *_tiny_layouts()).__class__)


def _tiny_layouts():
    layout = {name: [(4, 5)] for name in SETS}
    from i2srf_kd.distill import LayerShape

    return [{name: [LayerShape(*shape) for shape in layers] for name, layers in layout.items()}] * 2
