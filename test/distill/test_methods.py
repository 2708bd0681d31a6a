"""The published methods: each against a computation of its own, and what holds for all of them."""

import inspect
import textwrap
from pathlib import Path
from typing import Dict, List

import numpy as np
import pytest
import torch
import yaml
from places import CONF
from scipy import signal, special
from scipy.spatial import distance

from i2srf_kd.distill import LayerShape, Side, build_method, layout_of, method_class, method_names
from i2srf_kd.distill.distiller import Distiller
from i2srf_kd.distill.matching import CrossLayerFusion, match_width, partner
from i2srf_kd.distill.methods.dfkd import low_band
from i2srf_kd.distill.methods.dispatch import leading_patches, patch_means
from i2srf_kd.distill.methods.reviewkd import hierarchical_loss

CONFIGS = CONF / "distill"
BATCH, FRAMES, SAMPLES = 3, 6, 1000
# Sizes of the layers (C, F): the student is narrower, shallower in one set, and sees fewer bins.
STUDENT = {"encoder": [(4, 9), (6, 5)], "dual_path": [(3, 5)], "decoder": [(4, 9), (2, 17)]}
TEACHER = {"encoder": [(8, 12), (8, 7)], "dual_path": [(4, 7), (5, 7), (6, 7)], "decoder": [(8, 12), (2, 20)]}

# Those that only take part in this test run (registered by another test file) are no methods of the package.
NAMES = [n for n in method_names() if method_class(n).__module__.startswith("i2srf_kd.")]
SMALL = {"middle_channels": 5, "embedding_size": 5}
# A method that is 0, or minimal, when student and teacher are the same network.
ZERO_AT_EQUALITY = ["response_spectrum", "attention_transfer", "at_kl", "spkd", "fskd", "dfkd", "dispatch"]


def make_side(sizes: dict, seed: int, scale: float = 1.0, offset: float = 0.0) -> Side:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return scale * (torch.randn(*shape, generator=generator) + offset)

    features = {name: [normal(BATCH, c, FRAMES, f) for c, f in layers] for name, layers in sizes.items()}
    return Side(features, normal(BATCH, 2, FRAMES, 33), normal(BATCH, SAMPLES))


@pytest.fixture()
def student() -> Side:
    return make_side(STUDENT, 0)


@pytest.fixture()
def teacher() -> Side:
    return make_side(TEACHER, 1)


@pytest.fixture()
def reference() -> torch.Tensor:
    return torch.randn(BATCH, SAMPLES, generator=torch.Generator().manual_seed(2))


def build(name: str, student: Side, teacher: Side, **options):
    torch.manual_seed(0)
    known = inspect.signature(method_class(name)).parameters
    small = {option: value for option, value in SMALL.items() if option in known}
    return build_method(name, layout_of(student.features), layout_of(teacher.features), **{**small, **options})


def value(name: str, student: Side, teacher: Side, term: str, reference=None, **options) -> float:
    with torch.no_grad():
        return float(build(name, student, teacher, **options)(student, teacher, reference)[term])


def leaves(side: Side, scale: float = 1.0) -> Side:
    """The same values as leaves of a graph."""

    def leaf(x: torch.Tensor) -> torch.Tensor:
        return (scale * x).clone().requires_grad_()

    return Side({k: [leaf(f) for f in v] for k, v in side.features.items()}, leaf(side.spectrum), leaf(side.waveform))


def tensors(side: Side) -> List[torch.Tensor]:
    return [side.spectrum, side.waveform, *(f for layers in side.features.values() for f in layers)]


def arrays(side: Side, name: str) -> List[np.ndarray]:
    return [f.double().numpy() for f in side.features[name]]


def narrow(x: np.ndarray, width: int) -> np.ndarray:
    """Area averages along the last axis: repeat each bin ``width`` times and average blocks of the old width."""
    return np.repeat(x, width, -1).reshape(*x.shape[:-1], width, x.shape[-1]).mean(-1)


def pairs(student: Side, teacher: Side, name: str):
    """Layers that meet, written down by hand for the sizes above."""
    chosen = {"encoder": [0, 1], "dual_path": [2], "decoder": [0, 1]}[name]
    theirs = arrays(teacher, name)
    return list(zip(arrays(student, name), [theirs[i] for i in chosen], strict=True))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


class TestEveryMethod:
    @pytest.mark.parametrize("name", NAMES)
    def test_finite_and_gradients(self, name: str, student: Side, teacher: Side, reference) -> None:
        method, ours, theirs = build(name, student, teacher), leaves(student), leaves(teacher)
        terms = method(ours, theirs, reference)
        assert all(t.dim() == 0 and torch.isfinite(t) for t in terms.values())
        torch.stack(list(terms.values())).sum().backward()
        grads = [x.grad for x in tensors(ours) if x.grad is not None]
        assert grads and all(g.isfinite().all() and g.abs().sum() > 0 for g in grads)
        assert all(x.grad is None for x in tensors(theirs))
        # Every parameter takes part: DDP refuses those that do not.
        assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters() if p.requires_grad)

    @pytest.mark.parametrize("name", NAMES)
    def test_reads_no_more_than_it_declares(self, name: str, student: Side, teacher: Side) -> None:
        method, ours = build(name, student, teacher), leaves(student)
        given = Side(ours.features)
        needs = method_class(name).needs
        given.spectrum = ours.spectrum if "spectrum" in needs else None
        given.waveform = ours.waveform if "waveform" in needs else None
        clean = 0.5 * teacher.waveform if "reference" in needs else None
        torch.stack(list(method(given, teacher, clean).values())).sum().backward()
        if not needs:
            assert all(f.grad is not None for layers in ours.features.values() for f in layers)

    @pytest.mark.parametrize("quiet", ["student", "teacher", "both"])
    @pytest.mark.parametrize("scale", [0.0, 1e-7])
    @pytest.mark.parametrize("name", NAMES)
    def test_silence_is_finite(self, name: str, scale: float, quiet: str, student, teacher, reference) -> None:
        ours = leaves(student, scale if quiet in ("student", "both") else 1.0)
        theirs = leaves(teacher, scale if quiet in ("teacher", "both") else 1.0)
        method = build(name, student, teacher)
        loss = torch.stack(list(method(ours, theirs, scale * reference).values())).sum()
        loss.backward()
        gradients = [x.grad for x in [*tensors(ours), *method.parameters()] if x.grad is not None]
        assert loss.isfinite() and all(g.isfinite().all() for g in gradients)

    @pytest.mark.parametrize("name", NAMES)
    def test_one_clip_of_silence(self, name: str, student: Side, teacher: Side, reference) -> None:
        ours = leaves(student)
        with torch.no_grad():
            for x in [*tensors(ours), *tensors(teacher), reference]:
                x[0] = 0
        loss = torch.stack(list(build(name, student, teacher)(ours, teacher, reference).values())).sum()
        loss.backward()
        assert loss.isfinite() and all(x.grad.isfinite().all() for x in tensors(ours) if x.grad is not None)

    @pytest.mark.parametrize("name", NAMES)
    def test_full_precision_under_autocast(self, name: str, student: Side, teacher: Side, reference) -> None:
        method = build(name, student, teacher)
        expected = method(student, teacher, reference)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = method(student, teacher, reference)
        # The fusion of the TFCKD forms runs in half precision on purpose.
        tolerance = {"rtol": 0.05, "atol": 1e-3} if name.endswith("tfckd") else {"rtol": 1e-6, "atol": 1e-9}
        for term, want in expected.items():
            torch.testing.assert_close(result[term].float(), want, **tolerance)

    @pytest.mark.parametrize("name", NAMES)
    def test_half_precision_features(self, name: str, student: Side, teacher: Side, reference) -> None:
        method = build(name, student, teacher)
        halves = [Side({k: [f.bfloat16() for f in v] for k, v in s.features.items()}) for s in (student, teacher)]
        for half, side in zip(halves, (student, teacher), strict=True):
            half.spectrum, half.waveform = side.spectrum.bfloat16(), side.waveform.bfloat16()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            terms = method(*halves, reference)
        assert all(t.isfinite() for t in terms.values())

    @pytest.mark.parametrize("name", ZERO_AT_EQUALITY)
    def test_zero_when_both_are_the_same(self, name: str, student: Side, reference) -> None:
        terms = build(name, student, student)(student, student, reference)
        assert all(abs(float(t)) < 1e-6 for t in terms.values())
        other = build(name, student, student)(make_side(STUDENT, 5), student, 0.9 * student.waveform)
        assert all(float(t) > 1e-4 for t in other.values())

    @pytest.mark.parametrize("name", NAMES)
    def test_training_the_own_parameters_and_the_student_lowers_the_loss(self, name, student, teacher) -> None:
        if name == "response_waveform":
            student.waveform = student.waveform + 0.5 * teacher.waveform
        clean = teacher.waveform
        method, ours = build(name, student, teacher), leaves(student)
        optimizer = torch.optim.Adam([*tensors(ours), *method.parameters()], lr=0.02)
        losses = []
        for _ in range(15):
            loss = torch.stack(list(method(ours, teacher, clean).values())).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < losses[0] - 1e-4

    @pytest.mark.parametrize("name", NAMES)
    def test_documented(self, name: str) -> None:
        cls = method_class(name)
        assert cls.source
        assert len((inspect.getdoc(cls) or "").split("\n")[0]) > 20

    @pytest.mark.parametrize("name", [n for n in NAMES if not n.endswith("tfckd")])
    def test_the_documented_configuration_builds(self, name: str, student: Side, teacher: Side) -> None:
        paragraphs = (inspect.getdoc(method_class(name)) or "").split("\n\n")
        [snippet] = [p for p in paragraphs if p.lstrip().startswith("method:")]
        config = yaml.safe_load(textwrap.dedent(snippet))
        assert config["method"] == name
        shipped = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        assert config == {**shipped, "method_conf": config["method_conf"]}
        Distiller(config, layout_of(student.features), layout_of(teacher.features))

    @pytest.mark.parametrize("name", [n for n in NAMES if "sets" in inspect.signature(method_class(n)).parameters])
    def test_sets_are_checked(self, name: str, student: Side, teacher: Side) -> None:
        with pytest.raises(ValueError, match="sets must be a list"):
            build(name, student, teacher, sets="encoder")
        with pytest.raises(ValueError, match="sets is empty"):
            build(name, student, teacher, sets=[])
        with pytest.raises(ValueError, match="student has no feature set blocks"):
            build(name, student, teacher, sets=["blocks"])


@pytest.mark.parametrize(
    "name, options, word",
    [
        ("response_waveform", {"loss": "l2"}, "loss must be one of l1, si_sdr"),
        ("response_waveform", {"max_db": 0}, "max_db must be a number above 0"),
        ("response_spectrum", {"power": 1.5}, "power must be a number above 0 and at most 1"),
        ("response_spectrum", {"complex_share": -0.1}, "complex_share"),
        ("at_kl", {"floor": 0}, "floor"),
        ("fskd", {"axes": "time"}, "axes must be a list"),
        ("fskd", {"axes": ["channel"]}, "axes must be one of time, frequency"),
        ("spkd", {"sets": ["encoder", "encoder"]}, "twice"),
        ("reviewkd", {"middle_channels": 0}, "middle_channels must be a whole number"),
        ("semckd", {"embedding_size": 1.5}, "embedding_size"),
        ("uclfwpkd", {"frames": "max"}, "frames must be one of sum, mean"),
        ("dfkd", {"mse_share": True}, "mse_share must be a number"),
        ("dispatch", {"share": 0}, "share must be a number above 0"),
        ("dispatch", {"patch": 8}, "patch must be frames and bins"),
        ("dispatch", {"patch": [8, 0]}, "patch must be a whole number"),
        ("dispatch", {"hop_length": 1024}, "hop_length 1024 must not exceed"),
    ],
)
def test_bad_options_are_named(name: str, options: dict, word: str, student: Side, teacher: Side) -> None:
    with pytest.raises(ValueError, match=word):
        build(name, student, teacher, **options)


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_builds(config: Path, student: Side, teacher: Side, reference) -> None:
    options = yaml.safe_load(config.read_text())
    assert config.stem.startswith((options["method"], "teacher_"))
    calibration = (options.get("method_conf") or {}).get("calibration") or {}
    if calibration.get("embedding") == "fixed":
        clips, _, frames, _ = student.features["encoder"][0].shape
        calibration.update(batch_size=clips, frames=frames)
    distiller = Distiller(options, layout_of(student.features), layout_of(teacher.features))
    loss, terms = distiller(student, teacher, reference)
    assert loss.isfinite() and terms
    if config.stem == "fskd":
        assert distiller.phase() == (0.0, 1.0)


def test_every_method_has_a_config() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} >= set(NAMES)


class TestAdapters:
    def test_partner_layers(self) -> None:
        assert [partner(i, 3, 3) for i in range(3)] == [0, 1, 2]
        assert [partner(i, 2, 4) for i in range(2)] == [1, 3]
        assert [partner(i, 1, 4) for i in range(1)] == [3]
        assert [partner(i, 4, 2) for i in range(4)] == [0, 0, 1, 1]

    @pytest.mark.parametrize("width", [1, 5, 7, 20])
    def test_width(self, width: int) -> None:
        x = torch.randn(2, 3, 7, dtype=torch.float64)
        np.testing.assert_allclose(match_width(x, width).numpy(), narrow(x.numpy(), width), atol=1e-12)

    def test_fusion_follows_its_definition(self) -> None:
        torch.manual_seed(0)
        fusion = CrossLayerFusion([LayerShape(2, 6), LayerShape(3, 4)], 5, [7, 8]).double()
        with torch.no_grad():
            for p in fusion.parameters():
                p.add_(0.1 * torch.randn_like(p))
        x = [torch.randn(2, 2, 4, 6, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)]

        def norm(k: int, which: str, y: torch.Tensor) -> torch.Tensor:
            p = getattr(fusion, which)[k]
            return torch.nn.functional.instance_norm(y, weight=p.weight.flatten(), bias=p.bias.flatten())

        deep = norm(1, "enter_norm", torch.einsum("mc,bctf->bmtf", fusion.enter[1].weight[..., 0, 0], x[1]))
        first = norm(0, "enter_norm", torch.einsum("mc,bctf->bmtf", fusion.enter[0].weight[..., 0, 0], x[0]))
        resized = torch.from_numpy(narrow(deep.detach().numpy(), 6))
        gate = fusion.gates[0]
        both = torch.einsum("gc,bctf->bgtf", gate.weight[..., 0, 0], torch.cat([first, resized], 1))
        maps = torch.sigmoid(both + gate.bias[:, None, None])
        state = maps[:, 0:1] * first + maps[:, 1:2] * resized
        for got, y, k in zip(fusion(x), (state, deep), (0, 1), strict=True):
            want = norm(k, "leave_norm", torch.nn.functional.conv2d(y, fusion.leave[k].weight, padding=1))
            torch.testing.assert_close(got, want)


class TestResponse:
    def test_l1(self, student: Side, teacher: Side) -> None:
        want = np.mean(np.abs(student.waveform.numpy() - teacher.waveform.numpy()))
        assert value("response_waveform", student, teacher, "l1") == pytest.approx(want, rel=1e-6)

    def test_si_sdr_against_the_metric(self, student: Side, teacher: Side) -> None:
        from i2srf_kd.metrics.signal import si_sdr

        student.waveform = 0.3 * student.waveform + teacher.waveform
        ratios = [si_sdr(t.numpy(), s.numpy()) for s, t in zip(student.waveform, teacher.waveform, strict=True)]
        got = value("response_waveform", student, teacher, "si_sdr", loss="si_sdr", max_db=80)
        assert got == pytest.approx(-np.mean(ratios), abs=1e-3)

    def test_si_sdr_ends_at_its_limit(self, teacher: Side) -> None:
        got = value("response_waveform", teacher, teacher, "si_sdr", loss="si_sdr", max_db=25)
        assert got == pytest.approx(-25, abs=1e-3)

    @pytest.mark.parametrize("student_scale, teacher_scale", [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (1e-20, 1e-20)])
    def test_si_sdr_of_silence(self, student_scale: float, teacher_scale: float, student: Side, teacher: Side) -> None:
        ours, theirs = leaves(student, student_scale), leaves(teacher, teacher_scale)
        loss = build("response_waveform", student, teacher, loss="si_sdr")(ours, theirs)["si_sdr"]
        loss.backward()
        assert loss.isfinite() and ours.waveform.grad.isfinite().all()
        if student_scale == teacher_scale:
            assert float(loss.detach()) == pytest.approx(0, abs=1e-6)

    @pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
    def test_spectrum(self, share: float, student: Side, teacher: Side) -> None:
        s, t = (x.spectrum.double().numpy() for x in (student, teacher))
        s, t = s[:, 0] + 1j * s[:, 1], t[:, 0] + 1j * t[:, 1]
        magnitude = np.mean((abs(s) ** 0.5 - abs(t) ** 0.5) ** 2)
        planes = np.mean(abs(s / abs(s) ** 0.5 - t / abs(t) ** 0.5) ** 2)
        got = value("response_spectrum", student, teacher, "compressed", power=0.5, complex_share=share)
        assert got == pytest.approx((1 - share) * magnitude + share * planes, rel=1e-5)

    def test_other_transforms_are_refused(self, student: Side, teacher: Side) -> None:
        teacher.spectrum = teacher.spectrum[..., :-1]
        for name in ("response_spectrum", "dfkd"):
            with pytest.raises(ValueError, match="different transforms"):
                build(name, student, teacher)(student, teacher)
        with pytest.raises(ValueError, match="waveform, which was not handed over"):
            build("response_waveform", student, teacher)(Side(), teacher)


def test_fitnets(student: Side, teacher: Side) -> None:
    method = build("fitnets", student, teacher).requires_grad_(False)
    got = method(student, teacher)
    for name in STUDENT:
        losses = []
        for k, (s, t) in enumerate(pairs(student, teacher, name)):
            conv = method.adapt[name][k]
            weight, bias = conv.weight[..., 0, 0].numpy(), conv.bias.numpy()
            adapted = narrow(np.einsum("oc,bctf->botf", weight, s) + bias[:, None, None], t.shape[-1])
            losses.append(np.mean((adapted - t) ** 2))
        assert float(got[name]) == pytest.approx(np.mean(losses), rel=1e-5)


def test_attention_transfer(student: Side, teacher: Side) -> None:
    for name in STUDENT:
        losses = []
        for s, t in pairs(student, teacher, name):
            maps = (s**2).sum(1), narrow((t**2).sum(1), s.shape[-1])
            losses += [
                distance.sqeuclidean(unit(q.ravel()), unit(p.ravel())) for q, p in zip(maps[0], maps[1], strict=True)
            ]
        assert value("attention_transfer", student, teacher, name) == pytest.approx(np.mean(losses), rel=1e-5)


def test_at_kl(student: Side, teacher: Side) -> None:
    for name in STUDENT:
        losses = []
        for s, t in pairs(student, teacher, name):
            q, p = (s**2).sum(1), narrow((t**2).sum(1), s.shape[-1])
            for b in range(BATCH):
                for frame in range(FRAMES):
                    rows = [x[b, frame] / x[b, frame].mean() + 0.01 for x in (q, p)]
                    ours, theirs = (row / row.sum() for row in rows)
                    losses.append(special.rel_entr(theirs, ours).sum())
        assert value("at_kl", student, teacher, name, floor=0.01) == pytest.approx(np.mean(losses), rel=1e-4)


def test_attention_reads_no_level(student: Side, teacher: Side) -> None:
    louder = Side({k: [3 * f for f in v] for k, v in student.features.items()})
    for name in ("attention_transfer", "at_kl", "spkd", "fskd"):
        assert value(name, louder, teacher, "encoder") == pytest.approx(
            value(name, student, teacher, "encoder"), rel=1e-4
        )


def test_spkd(student: Side, teacher: Side) -> None:
    for name in STUDENT:
        losses = []
        for s, t in pairs(student, teacher, name):
            grams = [unit(x.reshape(BATCH, -1) @ x.reshape(BATCH, -1).T) for x in (s, t)]
            losses.append(np.linalg.norm(grams[0] - grams[1]) ** 2 / BATCH**2)
        assert value("spkd", student, teacher, name) == pytest.approx(np.mean(losses), rel=1e-4)


@pytest.mark.parametrize("axes", [["time"], ["frequency"], ["time", "frequency"]])
def test_fskd(axes: List[str], student: Side, teacher: Side) -> None:
    for name in STUDENT:
        losses: Dict[str, List[float]] = {axis: [] for axis in axes}
        for s, t in pairs(student, teacher, name):
            for b in range(BATCH):
                for axis in axes:
                    if axis == "time":
                        vectors = [[x[b, :, i].ravel() for i in range(FRAMES)] for x in (s, t)]
                    else:
                        matched = narrow(t, s.shape[-1])
                        vectors = [[x[b, :, :, i].ravel() for i in range(s.shape[-1])] for x in (s, matched)]
                    grams = [unit(np.array([[u @ v for v in side] for u in side])) for side in vectors]
                    losses[axis].append(np.sum((grams[0] - grams[1]) ** 2) / len(grams[0]))
        want = np.mean([np.mean(x) for x in losses.values()])
        assert value("fskd", student, teacher, name, axes=axes) == pytest.approx(want, rel=1e-4)


class TestReviewKD:
    def test_hierarchical_loss(self) -> None:
        s, t = torch.randn(2, 2, 3, 8, 12, dtype=torch.float64)
        loss, total = np.mean((s - t).numpy() ** 2), 1.0
        for side, weight in ((4, 0.5), (2, 0.25), (1, 0.125)):
            cells = [x.numpy().reshape(2, 3, side, 8 // side, side, 12 // side).mean((3, 5)) for x in (s, t)]
            loss, total = loss + weight * np.mean((cells[0] - cells[1]) ** 2), total + weight
        assert float(hierarchical_loss(s, t)) == pytest.approx(loss / total, rel=1e-10)

    def test_small_features_have_fewer_grids(self) -> None:
        s, t = torch.randn(2, 1, 2, 3, 9)
        want = (s - t).square().mean() + 0.25 * (s - t).mean((2, 3)).square().mean()
        middle = torch.stack([torch.stack([match_width(match_width(x, 2).mT, 2) for x in y]) for y in (s, t)])
        want = (want + 0.5 * (middle[0] - middle[1]).square().mean()) / 1.75
        torch.testing.assert_close(hierarchical_loss(s, t), want)
        # A grid as fine as the feature would count the full size twice.
        s, t = torch.randn(2, 1, 2, 2, 9)
        whole = (s - t).square().mean() + 0.5 * (s - t).mean((2, 3)).square().mean()
        torch.testing.assert_close(hierarchical_loss(s, t), whole / 1.5)

    def test_terms(self, student: Side, teacher: Side) -> None:
        method = build("reviewkd", student, teacher).requires_grad_(False)
        got = method(student, teacher)
        for name in STUDENT:
            fused = method.fusion[name](student.features[name])
            losses = []
            for s, (_, t) in zip(fused, pairs(student, teacher, name), strict=True):
                resized = torch.from_numpy(narrow(s.numpy(), t.shape[-1]))
                losses.append(hierarchical_loss(resized, torch.from_numpy(t).float()))
            assert float(got[name]) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)


def test_semckd(student: Side, teacher: Side) -> None:
    method = build("semckd", student, teacher).requires_grad_(False)
    got = method(student, teacher)
    for name in STUDENT:
        module = method.pairs[name]
        total = 0.0
        ours, theirs = arrays(student, name), arrays(teacher, name)
        for i, s in enumerate(ours):
            for b in range(BATCH):
                scores, errors = [], []
                for j, t in enumerate(theirs):
                    vectors = []
                    for conv, x in ((module.queries[i], s), (module.keys[j], t)):
                        level = np.abs(x[b]).mean((1, 2))
                        vectors.append(conv.weight[..., 0, 0].numpy() @ level + conv.bias.numpy())
                    scores.append(vectors[0] @ vectors[1] / np.sqrt(5))
                    conv = module.regress[i][j]
                    mapped = np.einsum("oc,ctf->otf", conv.weight[..., 0, 0].numpy(), s[b])
                    mapped = narrow(mapped + conv.bias.numpy()[:, None, None], t.shape[-1])
                    errors.append(np.mean((mapped - t[b]) ** 2))
                total += special.softmax(scores) @ errors / (BATCH * len(ours))
        assert float(got[name]) == pytest.approx(total, rel=1e-4)
    weights = method.diagnostics()["dual_path_weights"]
    assert weights.shape == (1, 3)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1))


@pytest.mark.parametrize("name", ["clskd", "uclfwpkd"])
def test_cross_layer_methods(name: str, student: Side, teacher: Side) -> None:
    method = build(name, student, teacher).requires_grad_(False)
    got = method(student, teacher)
    for set_name in STUDENT:
        fused = [f.double().numpy() for f in method.fusion[set_name](student.features[set_name])]
        losses = []
        for s, (_, t) in zip(fused, pairs(student, teacher, set_name), strict=True):
            frames = []
            for i in range(FRAMES):
                vectors = [x[:, :, i].reshape(BATCH, -1) for x in (s, t)]
                if name == "clskd":
                    grams = [unit(x @ x.T) for x in vectors]
                    frames.append(np.sum((grams[0] - grams[1]) ** 2) / BATCH**2)
                    continue
                rows = [1 - distance.cdist(x, x, "cosine") / 2 for x in vectors]  # (cos + 1) / 2
                p_s, p_t = (r / r.sum(1, keepdims=True) for r in rows)
                weight = special.expit(vectors[1].mean(1, keepdims=True))
                frames.append(np.mean(weight * (p_t - p_s) * (np.log(p_t) - np.log(p_s))))
            losses.append(np.mean(frames) if name == "clskd" else np.sum(frames))
        assert float(got[set_name]) == pytest.approx(np.mean(losses), rel=1e-3)
    if name == "uclfwpkd":
        mean = value(name, student, teacher, "encoder", frames="mean")
        assert mean == pytest.approx(float(got["encoder"]) / FRAMES, rel=1e-5)


class TestDFKD:
    def test_border(self) -> None:
        magnitude = torch.tensor([[[1.0, 0.5, 2.0, 6.0, 1.0, 7.0, 7.5], [0.0] * 7]])
        assert low_band(magnitude)[0, 0].tolist() == [True] * 4 + [False] * 3
        assert low_band(magnitude)[0, 1].tolist() == [True] * 2 + [False] * 5

    def test_terms(self, student: Side, teacher: Side) -> None:
        def compressed(side: Side) -> np.ndarray:
            planes = side.spectrum.double().numpy()
            z = planes[:, 0] + 1j * planes[:, 1]
            return z / abs(z) ** 0.5

        s, t = compressed(student), compressed(teacher)
        low, high = [], []
        for b in range(BATCH):
            for i in range(FRAMES):
                a, c = s[b, i], t[b, i]
                border = np.argmax(np.diff(np.maximum.accumulate(abs(c)))) + 2

                def split(z: np.ndarray) -> np.ndarray:
                    return np.concatenate([z.real, z.imag])

                low.append(distance.cosine(split(a[:border]), split(c[:border])))
                top = split(a[border:]), split(c[border:])
                cosine = distance.cosine(*top) if len(top[0]) else 0.0
                error = np.mean((top[0] - top[1]) ** 2) if len(top[0]) else 0.0
                high.append(0.7 * cosine + 0.3 * error)
        options = {"power": 0.5, "mse_share": 0.3}
        assert value("dfkd", student, teacher, "low", **options) == pytest.approx(np.mean(low), rel=1e-4)
        assert value("dfkd", student, teacher, "high", **options) == pytest.approx(np.mean(high), rel=1e-4)

    def test_no_high_band(self, student: Side, teacher: Side) -> None:
        teacher.spectrum[..., -1] = 100.0
        ours = leaves(student)
        terms = build("dfkd", student, teacher)(ours, teacher)
        sum(terms.values()).backward()
        assert float(terms["high"].detach()) == 0 and ours.spectrum.grad.isfinite().all()

    def test_gradient_is_bounded_where_the_student_is_silent(self, student: Side, teacher: Side) -> None:
        quiet = Side(spectrum=(1e-8 * student.spectrum).requires_grad_())
        method = build("dfkd", student, teacher, power=1.0)
        sum(method(quiet, teacher).values()).backward()
        assert float(quiet.spectrum.grad.abs().max()) < 100


class TestDISPatch:
    def test_patch_means(self) -> None:
        x = torch.randn(2, 7, 10, dtype=torch.float64)
        got = patch_means(x, (3, 4)).numpy()
        want = [[[x[b, i : i + 3, j : j + 4].mean() for j in (0, 4, 8)] for i in (0, 3, 6)] for b in range(2)]
        np.testing.assert_allclose(got, want, rtol=1e-12)
        assert patch_means(x, (20, 30)).shape == (2, 1, 1)

    def test_chosen_patches(self) -> None:
        gap = torch.tensor([[0.1, 0.4, -0.2, 0.3], [-1.0, -2.0, 0.2, -0.1]])
        assert leading_patches(gap, 0.5).tolist() == [[False, True, False, True], [False, False, True, False]]

    def test_against_scipy(self, student: Side, teacher: Side, reference) -> None:
        def magnitude(x: torch.Tensor) -> np.ndarray:
            window = signal.get_window("hann", 64)
            padded = np.pad(x.double().numpy(), ((0, 0), (32, 32)))
            frames = np.lib.stride_tricks.sliding_window_view(padded, 64, axis=1)[:, ::32]
            return abs(np.fft.rfft(frames * window)) ** 0.5

        s, t, clean = (magnitude(x) for x in (student.waveform, teacher.waveform, reference))
        total, count = 0.0, 0
        for b in range(BATCH):
            found = []
            for i in range(0, s.shape[1], 4):
                for j in range(0, s.shape[2], 10):
                    a, c, r = (x[b, i : i + 4, j : j + 10] for x in (s, t, clean))
                    found.append((np.mean((a - r) ** 2) - np.mean((c - r) ** 2), np.mean((a - c) ** 2)))
            found.sort(reverse=True)
            best = [loss for gap, loss in found[: round(0.3 * len(found))] if gap > 0]
            total, count = total + sum(best), count + len(best)
        options = {"patch": [4, 10], "share": 0.3, "power": 0.5, "n_fft": 64, "hop_length": 32}
        got = value("dispatch", student, teacher, "patches", reference, **options)
        assert got == pytest.approx(total / count, rel=1e-4)

    def test_a_worse_teacher_teaches_nothing(self, student: Side, teacher: Side) -> None:
        assert value("dispatch", student, teacher, "patches", student.waveform) == 0

    def test_needs_a_reference_of_its_length(self, student: Side, teacher: Side) -> None:
        method = build("dispatch", student, teacher)
        with pytest.raises(ValueError, match="reference, which was not handed over"):
            method(student, teacher)
        with pytest.raises(ValueError, match="the reference has shape"):
            method(student, teacher, student.waveform[:, 1:])
