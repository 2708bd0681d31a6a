"""Teachers and students of different kinds: frames, bins, channels, transforms and levels that differ."""

import argparse
import json
from pathlib import Path
from typing import Any, Dict, List

import pytest
import speech_task
import torch
import yaml
from places import CONF
from small_models import as_teacher, options, save_experiment

from i2srf_kd.espnet.distill_criterion import STUDENT_KEY, TEACHER_KEY
from i2srf_kd.espnet.task import DistillEnhancementTask
from i2srf_kd.system.errors import UserError

# The shipped teachers, made small in width alone.
SHIPPED: Dict[str, Any] = {
    "bsrnn": (CONF / "small" / "train_teacher_bsrnn.yaml", {"num_channels": 4}),
    "tfgridnet": (
        CONF / "train_teacher_tfgridnet.yaml",
        {"emb_dim": 4, "lstm_hidden_units": 4, "attn_n_head": 2, "attn_approx_qk_dim": 129},
    ),
}
# Every kind that has taps by default, small.
STFT = {"n_fft": 128, "hop_length": 64}
CONV = {"channel": 16, "kernel_size": 32, "stride": 16}
GRIDNET = {"n_srcs": 1, "n_layers": 2, "lstm_hidden_units": 4, "attn_n_head": 2, "emb_dim": 4}
GRIDNET_2 = {**GRIDNET, "n_fft": 128, "stride": 64, "attn_approx_qk_dim": 66}
FASNET = {
    "enc_dim": 8,
    "feature_dim": 8,
    "hidden_dim": 4,
    "layer": 1,
    "segment_size": 8,
    "num_spk": 1,
    "context_len": 16,
}
UNET = {"n_fft": 128, "stride": 64, "mic_channels": 2, "hid_chans": 4, "hid_chans_dense": 4, "tcn_channels": 8}
# name -> separator, its options, encoder
KINDS: Dict[str, Any] = {
    "dccrn": ("dccrn", {"kernel_num": [4, 8, 8], "rnn_units": 8}, "stft"),
    "bsrnn": (
        "bsrnn",
        {"num_channels": 4, "num_layers": 3, "target_fs": 16000, "subbands": [[13 * k, 13 * k + 12] for k in range(5)]},
        "stft",
    ),
    "tfgridnet": ("tfgridnet", GRIDNET_2, "same"),
    "tfgridnetv2": ("tfgridnetv2", GRIDNET_2, "same"),
    "tfgridnetv3": ("tfgridnetv3", {**GRIDNET, "attn_qk_output_channel": 2}, "stft"),
    "dprnn": ("dprnn", {"num_spk": 1, "layer": 2, "unit": 4, "segment_size": 10}, "conv"),
    "conv_tasnet": ("tcn", {"num_spk": 1, "layer": 2, "stack": 1, "bottleneck_dim": 8, "hidden_dim": 8}, "conv"),
    "tcn_on_spectra": ("tcn", {"num_spk": 1, "layer": 2, "stack": 1, "bottleneck_dim": 8, "hidden_dim": 8}, "stft"),
    "skim": ("skim", {"num_spk": 1, "layer": 2, "unit": 8, "segment_size": 10, "causal": True}, "conv"),
    "fasnet": ("fasnet", {**FASNET, "win_len": 4, "fasnet_type": "fasnet"}, "same"),
    "ifasnet": ("fasnet", {**FASNET, "win_len": 16, "fasnet_type": "ifasnet"}, "same"),
    "ineube": ("ineube", {**UNET, "tcn_repeats": 1, "tcn_blocks": 2}, "same"),
}  # fmt: skip
SEVERAL_CHANNELS = ("fasnet", "ifasnet", "ineube")
TEACHER = {"channels": 12, "blocks": 2, "heads": 2}
CRITERIONS = [{**speech_task.CRITERION, "name": "si_snr"}]  # a loss on spectra says nothing about learned features


def save(folder: Path, args: argparse.Namespace) -> Dict[str, str]:
    """A teacher with random weights."""
    return as_teacher(save_experiment(folder, args))


def shipped_teacher(kind: str, folder: Path) -> Dict[str, str]:
    path, narrow = SHIPPED[kind]
    config = yaml.safe_load(path.read_text())
    conf = {"encoder_conf": {}, "decoder_conf": {}, **config, "separator_conf": {**config["separator_conf"], **narrow}}
    return save(
        folder,
        options(
            **{
                key: conf[key]
                for key in conf
                if key in ("encoder", "encoder_conf", "decoder", "decoder_conf", "separator", "separator_conf")
            },
        ),
    )


def batch(samples: int = 3200, mics: int = 1) -> Dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 2, samples, generator=generator)
    lengths = torch.full((2,), samples)
    mixture = clean + 0.5 * noise
    mixture = mixture if mics == 1 else torch.stack([mixture] * mics, -1)
    return {"speech_mix": mixture, "speech_ref1": clean, "speech_mix_lengths": lengths}


def learns(model: Any, mics: int = 1) -> Dict[str, torch.Tensor]:
    """Three steps: the loss falls and everything that is trained gets a finite gradient; the values of the first."""
    optimizer = torch.optim.Adam(model.train().parameters(), lr=2e-3)
    losses, first = [], {}
    for _ in range(4):
        loss, stats, _ = model(**batch(mics=mics))
        optimizer.zero_grad()
        loss.backward()
        without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not [n for n in without if not n.startswith("separator.dnn2")]  # which iNeuBe runs on demand only
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        optimizer.step()
        first = first or stats
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    return first


def sides(model: Any) -> List[Any]:
    """Both sides as the methods see them, in one forward pass."""
    seen: List[Any] = []
    handle = model.distillation.criterion.register_forward_hook(lambda m, args, out: seen.append(args))
    model(**batch())
    handle.remove()
    reference, others = seen[0]
    return [others[STUDENT_KEY], others[TEACHER_KEY], reference]


@pytest.mark.parametrize("kind", sorted(SHIPPED))
def test_shipped_teachers_and_taps(kind: str, tmp_path: Path) -> None:
    distill = yaml.safe_load((CONF / "small" / "distill.yaml").read_text())
    distill["method_conf"]["middle_channels"] = 4
    teacher = shipped_teacher(kind, tmp_path / kind)
    model = DistillEnhancementTask.build_model(options(256, 512, distill=distill, **teacher))
    terms = learns(model)
    assert {"kd_inter", "kd_intra_encoder", "kd_intra_dual_path", "kd_intra_decoder"} <= set(terms)
    ours, theirs, _ = sides(model)
    assert {name: len(layers) for name, layers in theirs.features.items()} == {
        "encoder": 1, "dual_path": 4, "decoder": 1
    }  # fmt: skip
    frames = [side.features["encoder"][0].shape[2] for side in (ours, theirs)]
    assert frames == ([13, 26] if kind == "tfgridnet" else [13, 13])


@pytest.mark.parametrize("method", ["i2srf_tfckd", "fitnets", "spkd", "reviewkd", "semckd", "uclfwpkd", "at_kl"])
def test_another_frame_rate(method: str, tmp_path: Path) -> None:
    teacher = save(tmp_path / "fine", options(hop=32, separator_conf=TEACHER))
    distill = {"method": method, "weight": 0.3}
    learns(DistillEnhancementTask.build_model(options(distill=distill, **teacher)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_every_kind_learns_from_and_teaches_a_dpdcrn(role: str, kind: str, tmp_path: Path) -> None:
    network, mics = of_kind(kind), 2 if kind in SEVERAL_CHANNELS else 1
    dpdcrn = {"separator_conf": {**TEACHER, "num_mics": mics}}
    ours, theirs = (network, dpdcrn) if role == "student" else (dpdcrn, network)
    distill = {"method": "i2srf_tfckd", "method_conf": {"middle_channels": 4}, "weight": 0.1}
    model = DistillEnhancementTask.build_model(
        options(distill=distill, criterions=CRITERIONS, **{**save(tmp_path / "teacher", options(**theirs)), **ours})
    )
    assert {"kd_inter", "kd_intra_encoder", "kd_intra_dual_path", "kd_intra_decoder"} <= set(learns(model, mics))


def of_kind(kind: str) -> Dict[str, Any]:
    separator, conf, encoder = KINDS[kind]
    transform = {"stft": STFT, "conv": CONV, "same": {}}[encoder]
    return {
        "encoder": encoder, "encoder_conf": transform, "decoder": encoder, "decoder_conf": transform,
        "separator": separator, "separator_conf": conf,
    }  # fmt: skip


@pytest.mark.parametrize("method", ["response_waveform", "reviewkd", "semckd"])
def test_a_learned_encoder_learns_from_spectra(method: str, tmp_path: Path) -> None:
    teacher = save(tmp_path / "teacher", options(separator_conf=TEACHER))
    args = options(distill={"method": method}, criterions=CRITERIONS, **{**teacher, **of_kind("conv_tasnet")})
    assert {"kd"} < set(learns(DistillEnhancementTask.build_model(args)))


def test_a_separator_without_taps_is_named(tmp_path: Path) -> None:
    teacher = save(tmp_path / "teacher", options(separator_conf=TEACHER))
    rnn = {"separator": "rnn", "separator_conf": {"num_spk": 1, "layer": 1, "unit": 4}}
    with pytest.raises(UserError, match="the student announces no features: name its taps"):
        DistillEnhancementTask.build_model(options(distill={"method": "i2srf_tfckd"}, **{**teacher, **rnn}))


@pytest.mark.parametrize("transform", ["hop", "waveform", "same"])
def test_spectra_are_compared_through_the_students_transform(transform: str, tmp_path: Path) -> None:
    if transform == "waveform":
        teacher = shipped_teacher("tfgridnet", tmp_path / "teacher")
    else:
        teacher = save(tmp_path / "teacher", options(hop=32 if transform == "hop" else 64))
    distill = {"method": [{"name": "response_spectrum"}, {"name": "response_waveform"}, {"name": "dfkd"}]}
    model = DistillEnhancementTask.build_model(options(distill=distill, **teacher))
    learns(model)
    ours, theirs, _ = sides(model)
    assert ours.spectrum.shape == theirs.spectrum.shape
    window = torch.hann_window(128)
    direct = torch.stft(theirs.waveform, 128, 64, window=window, return_complex=True, pad_mode="reflect").mT
    if transform == "same":  # the network's own estimate, which need not be the STFT of a signal
        assert not torch.allclose(theirs.spectrum[:, 0], direct.real, atol=1e-3)
    else:
        torch.testing.assert_close(theirs.spectrum, torch.stack([direct.real, direct.imag], 1), atol=1e-4, rtol=1e-4)


def test_a_response_needs_no_taps(tmp_path: Path) -> None:
    teacher = save(tmp_path / "teacher", options(**of_kind("conv_tasnet")))
    distill = {"method": "response_waveform"}
    learns(DistillEnhancementTask.build_model(options(distill=distill, **{**teacher, **of_kind("dccrn")})))


def test_a_student_without_spectrum_is_told(tmp_path: Path) -> None:
    teacher = save(tmp_path / "teacher", options())
    distill = {"method": "response_spectrum"}
    with pytest.raises(UserError, match="encoder is no STFT"):
        DistillEnhancementTask.build_model(options(distill=distill, **{**teacher, **of_kind("conv_tasnet")}))


def test_outputs_are_compared_at_the_level_of_the_recording(tmp_path: Path) -> None:
    model_conf = {**options().model_conf, "normalize_variance": True}
    teacher = save(tmp_path / "teacher", options(model_conf=model_conf))
    distill = {"method": [{"name": "dispatch"}, {"name": "response_spectrum"}]}
    torch.manual_seed(1)  # the teacher's weights
    model = DistillEnhancementTask.build_model(options(model_conf=model_conf, distill=distill, **teacher))
    mixture = batch()["speech_mix"]
    level = mixture.std(1, keepdim=True)
    with torch.no_grad():
        ours, theirs, reference = sides(model.eval())
        plain = model.teacher.model
        lengths = batch()["speech_mix_lengths"]
        waveform = plain.forward_enhance(mixture / level, lengths, {})[0][0] * level
    torch.testing.assert_close(ours.waveform, waveform)
    torch.testing.assert_close(theirs.waveform, waveform)
    torch.testing.assert_close(theirs.spectrum, ours.spectrum)
    torch.testing.assert_close(reference, batch()["speech_ref1"])


@pytest.mark.slow
def test_a_tfgridnet_is_trained_and_taught_from(speech: Path, tmp_path: Path) -> None:
    """The shipped configurations through the command, with a narrow teacher."""
    path, narrow = SHIPPED["tfgridnet"]
    config = yaml.safe_load(path.read_text())
    config.update(separator_conf={**config["separator_conf"], **narrow}, max_epoch=2, num_iters_per_epoch=4)
    config.update(chunk_length=4000, num_workers=0, quality_utts=0)
    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump(config))
    sets = [item for item in speech_task.arguments(speech, tmp_path / "unused")]
    data = [part for i in range(len(sets)) if sets[i].startswith(("--train_", "--valid_")) for part in sets[i : i + 2]]
    common = ["--use_tensorboard", "false", "--ngpu", "0", *data]
    teacher = ["--config", str(tmp_path / "teacher.yaml"), "--output_dir", str(tmp_path / "teacher"), *common]
    assert speech_task.train(teacher) == 0

    student = yaml.safe_load((CONF / "mini" / "train_student.yaml").read_text())
    student.update(max_epoch=2, num_iters_per_epoch=4, chunk_length=4000, num_workers=0, quality_utts=0)
    student.pop("scheduler"), student.pop("scheduler_conf")
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(student))
    learning = ["--config", str(tmp_path / "student.yaml"), "--output_dir", str(tmp_path / "student"), *common]
    learning += ["--distill_config", str(CONF / "distill" / "i2srf_tfckd.yaml")]
    learning += ["--teacher_exp", str(tmp_path / "teacher")]
    assert speech_task.train_and_watch(learning, tmp_path / "report.pth") == 0
    report = torch.load(tmp_path / "report.pth")
    assert report["teacher_same"]
    # The weights of a single teacher layer are 1, whatever its calibration says.
    alone = (
        "distillation.criterion.distiller.methods.0.intra.encoder",
        "distillation.criterion.distiller.methods.0.intra.decoder",
    )
    assert all(name.startswith(alone) for name in report["without_gradient"])
    lines = [json.loads(line) for line in (tmp_path / "student" / "metrics.jsonl").read_text().splitlines()]
    valid = [line["loss"] for line in lines if line["phase"] == "valid"]
    assert valid[-1] < valid[0]
