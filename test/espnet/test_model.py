"""The ESPnet side of a distillation: who owns what, who is frozen, which teachers fit, what is refused."""

import argparse
import copy
import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict

import pytest
import torch
from espnet2.enh.decoder.stft_decoder import STFTDecoder
from espnet2.enh.encoder.stft_encoder import STFTEncoder
from espnet2.enh.separator.abs_separator import AbsSeparator
from espnet2.tasks.enh import EnhancementTask, separator_choices
from places import REPOSITORY
from small_models import as_teacher, options, save_experiment

from i2srf_kd.espnet import registry
from i2srf_kd.espnet.loading import ESPnetWindowEnhancer, load_espnet_model
from i2srf_kd.espnet.model import DistillEnhancementModel
from i2srf_kd.espnet.separator import DPDCRNSeparator
from i2srf_kd.espnet.task import DistillEnhancementTask
from i2srf_kd.nets import STFT
from i2srf_kd.system.errors import UserError

BSRNN_TAPS = {
    "encoder": ["separator.bsrnn.band_split"],
    "dual_path": ["separator.bsrnn.norm_time.0", "separator.bsrnn.norm_time.1"],
    "decoder": [{"module": "separator", "layout": "BTF", "output": [0, 0]}],
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    args = options(separator_conf={"channels": 16, "blocks": 2})
    return save_experiment(tmp_path_factory.mktemp("teacher"), args)


def distilled(teacher: Path, **distill: Any) -> argparse.Namespace:
    section = {"method": "i2srf_tfckd", "method_conf": {"middle_channels": 4}, "weight": 0.5, **distill}
    return options(distill=section, **as_teacher(teacher))


def batch(samples: int = 4000, clips: int = 2, channels: int = 0) -> Dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (clips, samples, channels) if channels else (clips, samples)
    return {
        "speech_mix": torch.randn(shape, generator=generator),
        "speech_ref1": torch.randn(clips, samples, generator=generator),
        "speech_mix_lengths": torch.full((clips,), samples),
    }


def test_distillation_is_owned_and_the_teacher_is_not(teacher: Path) -> None:
    model = DistillEnhancementTask.build_model(distilled(teacher))
    assert isinstance(model, DistillEnhancementModel)
    names = [name for name, _ in model.named_parameters()]
    assert any(name.startswith("distillation.") for name in names)
    assert sum(p.numel() for p in model.separator.parameters()) == sum(
        p.numel() for n, p in model.named_parameters() if not n.startswith("distillation.")
    )
    before = copy.deepcopy(model.teacher.model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss, stats, _ = model.train()(**batch())
    loss.backward()
    assert not model.teacher.model.training
    assert all(p.grad is not None for n, p in model.named_parameters() if p.requires_grad), "DDP refuses these"
    optimizer.step()
    for name, value in model.teacher.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    expected = {"compressed_spectrum", "kd", "loss"} | {
        f"kd_{t}" for t in ("inter", "intra_encoder", "intra_dual_path", "intra_decoder")
    }
    assert set(stats) == expected
    torch.testing.assert_close(stats["loss"], stats["compressed_spectrum"] + 0.5 * stats["kd"])


def test_teacher_follows_dtype(teacher: Path) -> None:
    model = DistillEnhancementTask.build_model(distilled(teacher)).double()
    assert {p.dtype for p in model.teacher.model.parameters()} == {torch.float64}


def test_the_student_starts_alike_with_and_without_teacher(teacher: Path) -> None:
    torch.manual_seed(3)
    plain = DistillEnhancementTask.build_model(options()).state_dict()
    torch.manual_seed(3)
    learned = DistillEnhancementTask.build_model(distilled(teacher)).state_dict()
    for name, value in plain.items():
        assert torch.equal(value, learned[name]), name


def test_schedule_changes_the_loss_in_training_only(teacher: Path) -> None:
    model = DistillEnhancementTask.build_model(distilled(teacher, kd_only_steps=1))
    _, kd_only, _ = model.train()(**batch())
    torch.testing.assert_close(kd_only["loss"], 0.5 * kd_only["kd"])
    _, both, _ = model(**batch())
    torch.testing.assert_close(both["loss"], both["compressed_spectrum"] + 0.5 * both["kd"])
    assert int(model.distiller.steps) == 2
    model.eval()(**batch())
    assert int(model.distiller.steps) == 2


def test_a_teacher_of_another_kind(tmp_path: Path) -> None:
    conf = {"num_channels": 8, "num_layers": 2, "target_fs": 16000, "subbands": [[5 * k, 5 * k + 4] for k in range(13)]}
    args = options(separator="bsrnn", separator_conf=conf)
    bsrnn = save_experiment(tmp_path / "bsrnn", args)
    model = DistillEnhancementTask.build_model(distilled(bsrnn, teacher_taps=BSRNN_TAPS))
    loss, stats, _ = model.train()(**batch())
    loss.backward()
    assert {"kd_intra_encoder", "kd_intra_dual_path", "kd_intra_decoder", "kd_inter"} <= set(stats)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    loaded, _ = load_espnet_model(bsrnn / "config.yaml", bsrnn / "1epoch.pth")
    assert ESPnetWindowEnhancer(loaded, 16000).enhance_window(torch.randn(1, 4000)).shape == (1, 4000)


def test_a_distilled_student_loads_without_its_teacher(teacher: Path, tmp_path: Path) -> None:
    student = save_experiment(tmp_path / "student", distilled(teacher))
    model, _ = load_espnet_model(student / "config.yaml", student / "1epoch.pth")
    assert not any(name.startswith("distillation.") for name in model.state_dict())
    # ESPnet's own loader takes it as well: what it does not know it leaves out.
    plain, _ = EnhancementTask.build_model_from_file(student / "config.yaml", student / "1epoch.pth")
    torch.testing.assert_close(plain.separator.state_dict(), model.separator.state_dict())
    # A distillation may begin with weights for use, which have none of its own.
    torch.save(model.state_dict(), tmp_path / "for_use.pth")
    DistillEnhancementTask.build_model(
        argparse.Namespace(**{**vars(distilled(teacher)), "init_param": [str(tmp_path / "for_use.pth")]})
    )


@pytest.mark.parametrize("change, word", [("rename", "separator"), ("drop", "missing"), ("resize", "does not fit")])
def test_checkpoints_of_another_network_are_refused(change: str, word: str, teacher: Path, tmp_path: Path) -> None:
    state = torch.load(teacher / "1epoch.pth")
    first = next(iter(state))
    if change == "rename":
        state = {name.replace("separator", "masker"): value for name, value in state.items()}
    elif change == "drop":
        del state[first]
    else:
        state[first] = torch.zeros(3)
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=word):
        load_espnet_model(teacher / "config.yaml", tmp_path / "odd.pth")


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"separator_conf": {"channel": 8}}, "channel"),
        ({"separator_conf": {"preset": "dpdcrn_huge"}}, "dpdcrn_huge.*choose one of"),
        ({"separator_conf": {"num_spk": 2}}, "one speaker"),
        ({"criterions": [{"name": "compressed_spectrum", "cnf": {}}]}, "cnf"),
        ({"encoder_conf": {"nfft": 128}}, "nfft"),
    ],
)
def test_typing_errors_in_the_configuration_are_named(changes: dict, word: str) -> None:
    with pytest.raises(UserError, match=word):
        DistillEnhancementTask.build_model(options(**changes))


def test_typing_errors_in_the_distillation_are_named(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no option wieght"):
        DistillEnhancementTask.build_model(distilled(teacher, wieght=1))
    args = options(distill={"method": "i2srf_tfckd"})
    with pytest.raises(UserError, match="needs a teacher"):
        DistillEnhancementTask.resolve_distillation(args)
    args = options(distill_config=str(tmp_path / "absent.yaml"))
    with pytest.raises(UserError, match="absent.yaml"):
        DistillEnhancementTask.resolve_distillation(args)


def test_distill_config_is_written_out_and_weight_zero_means_none(teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "kd.yaml").write_text("distill: {method: i2srf_tfckd, weight: 0.3}")
    args = options(distill_config=str(tmp_path / "kd.yaml"), teacher_exp=str(teacher))
    DistillEnhancementTask.resolve_distillation(args)
    assert args.distill == {"method": "i2srf_tfckd", "weight": 0.3} and args.distill_config is None
    assert Path(args.teacher_model_file).resolve() == (teacher / "1epoch.pth").resolve()
    args = options(distill={"method": "i2srf_tfckd", "weight": 0})
    DistillEnhancementTask.resolve_distillation(args)
    assert args.distill == {}


def test_core_stft_equals_espnet() -> None:
    waveform = torch.randn(2, 5000, 2)
    lengths = torch.tensor([5000, 5000])
    core = STFT(512, 256)
    spectrum, _ = STFTEncoder(n_fft=512, hop_length=256)(waveform, lengths)  # (B, T, C, F)
    planes = core(waveform)
    for c in range(2):
        torch.testing.assert_close(planes[:, 2 * c], spectrum[:, :, c].real)
        torch.testing.assert_close(planes[:, 2 * c + 1], spectrum[:, :, c].imag)
    restored, _ = STFTDecoder(n_fft=512, hop_length=256)(spectrum[:, :, 0], lengths)
    torch.testing.assert_close(core.inverse(planes[:, :2], 5000), restored)


def test_multichannel_mixture() -> None:
    conf = {"channels": 8, "blocks": 1, "num_mics": 4, "ref_channel": 2}
    model = DistillEnhancementTask.build_model(options(separator_conf=conf))
    loss, _, _ = model(**batch(channels=4))
    assert torch.isfinite(loss)
    with pytest.raises(ValueError, match="built for 4 microphones, the mixture has 2"):
        model(**batch(channels=2))


def test_channels_that_no_microphone_uses_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    separator = DPDCRNSeparator(33, channels=8, heads=2, num_mics=2)
    for _ in range(2):
        separator(torch.randn(1, 5, 3, 33, dtype=torch.complex64), torch.tensor([5]))
    said = [record.getMessage() for record in caplog.records if record.name == "i2srf_kd.espnet.separator"]
    assert said == ["mixtures have 3 channels, of which num_mics uses the first 2"]


def test_reference_microphone_can_be_changed_after_loading() -> None:
    """ESPnet's SeparateSpeech sets ``ref_channel`` of the separator where it is given one."""
    conf = {"channels": 8, "heads": 2, "num_mics": 2}
    separator, other = DPDCRNSeparator(33, **conf), DPDCRNSeparator(33, **conf, ref_channel=1)
    other.load_state_dict(separator.state_dict())
    mixture, lengths = torch.randn(1, 5, 2, 33, dtype=torch.complex64), torch.tensor([5])
    separator.ref_channel = 1
    torch.testing.assert_close(separator(mixture, lengths)[0], other(mixture, lengths)[0], rtol=0, atol=0)
    with pytest.raises(UserError, match="ref_channel 2 is not one of 2 microphones"):
        separator.ref_channel = 2


def test_registration_checks_what_espnet_does_not() -> None:
    importlib.reload(registry)  # registering again changes nothing
    assert separator_choices.get_class("dpdcrn") is DPDCRNSeparator
    with pytest.raises(TypeError, match="is no AbsSeparator"):
        registry.register(separator_choices, "linear", torch.nn.Linear)
    with pytest.raises(ValueError, match="already"):
        registry.register(separator_choices, "bsrnn", type("Other", (AbsSeparator,), {}))
    with pytest.raises(ValueError, match="lower case"):
        registry.register(separator_choices, "DPDCRN2", DPDCRNSeparator)


@pytest.mark.slow
def test_a_spawned_process_finds_the_registered_classes(tmp_path: Path) -> None:
    code = (
        "import multiprocessing as mp\n"
        "import i2srf_kd.espnet\n"
        "def child(queue):\n"
        "    from espnet2.tasks.enh import separator_choices\n"
        "    queue.put(separator_choices.get_class('dpdcrn').__name__)\n"
        "if __name__ == '__main__':\n"
        "    context = mp.get_context('spawn'); queue = context.Queue()\n"
        "    p = context.Process(target=child, args=(queue,)); p.start()\n"
        "    print(queue.get(timeout=120)); p.join()\n"
    )
    path = tmp_path / "spawn_check.py"
    path.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, str(path)], env=environment, capture_output=True, text=True, check=True)
    assert "DPDCRNSeparator" in done.stdout


def test_an_utterance_of_any_length_ends_without_a_spike(teacher: Path) -> None:
    model, _ = load_espnet_model(teacher / "config.yaml", teacher / "1epoch.pth")
    noise = 0.1 * torch.randn(1, 20 * 64 + 63, generator=torch.Generator().manual_seed(0))
    enhanced = ESPnetWindowEnhancer(model, 16000).enhance_window(noise)
    assert enhanced.shape == noise.shape and enhanced.abs().max() < 2


def test_enhancing_does_not_run_the_teacher(teacher: Path) -> None:
    model = DistillEnhancementTask.build_model(distilled(teacher)).eval()
    runs = []
    model.teacher.model.separator.register_forward_hook(lambda *_: runs.append(1))
    ESPnetWindowEnhancer(model, 16000).enhance_window(torch.randn(1, 4000))
    assert not runs
    model(**batch())
    assert len(runs) == 1
