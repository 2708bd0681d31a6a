"""Packed models between ESPnet and this project: ours in ESPnet's programs, theirs as teachers."""

import argparse
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any, Dict

import numpy as np
import pytest
import torch
from espnet2.bin.enh_inference import SeparateSpeech
from espnet2.main_funcs.pack_funcs import pack, unpack
from small_models import options, save_experiment

from i2srf_kd import load_enhancer
from i2srf_kd.espnet.task import DistillEnhancementTask
from i2srf_kd.espnet.teacher import load_teacher
from i2srf_kd.export.packing import pack_experiment
from i2srf_kd.models import folder_of
from i2srf_kd.system.errors import UserError

BSRNN = {"num_channels": 8, "num_layers": 2, "target_fs": 16000, "subbands": [[13 * k, 13 * k + 12] for k in range(5)]}


@pytest.fixture()
def packed(tmp_path: Path) -> Path:
    """A DPDCRN of two microphones, packed by this project."""
    conf = {"channels": 8, "heads": 2, "num_mics": 2}
    experiment = save_experiment(tmp_path / "student", options(separator_conf=conf))
    pack_experiment(experiment, tmp_path / "student.zip")
    return tmp_path / "student.zip"


def noisy(mics: int = 2) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, (64 * 80, mics)).astype(np.float32)


def test_espnet_enhances_with_ours(packed: Path, tmp_path: Path) -> None:
    files = unpack(packed, tmp_path / "zoo")
    assert sorted(files) == ["model_file", "train_config"]
    expected = load_enhancer(packed)(noisy(), 16000)
    np.testing.assert_array_equal(SeparateSpeech(**files)(noisy()[None], fs=16000)[0][0], expected)
    # ESPnet loads strictly here: nothing but the network may be in the file.
    (tmp_path / "inference.yaml").write_text("decoder_conf: {hop_length: 64}\n")
    again = SeparateSpeech(**files, inference_config=tmp_path / "inference.yaml")
    np.testing.assert_array_equal(again(noisy()[None], fs=16000)[0][0], expected)
    other = SeparateSpeech(**files, ref_channel=1)(noisy()[None], fs=16000)[0][0]
    assert np.abs(other - expected).max() > 1e-3


@pytest.mark.skipif(importlib.util.find_spec("espnet_model_zoo") is None, reason="espnet_model_zoo is not installed")
def test_from_pretrained(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # where the zoo unpacks to
    theirs = SeparateSpeech.from_pretrained(str(packed))(noisy()[None], fs=16000)[0][0]
    np.testing.assert_array_equal(theirs, load_enhancer(packed)(noisy(), 16000))


@pytest.mark.parametrize("form", ["zip", "folder"])
def test_a_model_that_espnet_packed_teaches(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_experiment(tmp_path / "exp" / "enh_x", options(separator="bsrnn", separator_conf=BSRNN))
    monkeypatch.chdir(tmp_path)
    pack({"model_file": "exp/enh_x/latest.pth"}, {"train_config": "exp/enh_x/config.yaml"}, "bsrnn.zip")
    if form == "folder":
        unpack("bsrnn.zip", "unpacked")
    model = {"zip": "bsrnn.zip", "folder": "unpacked"}[form]
    assert load_enhancer(model)(noisy()[:, 0], 16000).shape == (len(noisy()),)
    args = learning_from(model)
    loss, stats, _ = DistillEnhancementTask.build_model(args)(**batch())
    assert {"kd_intra_dual_path", "kd_inter"} <= set(stats) and torch.isfinite(loss)
    # The configuration that training writes is complete: it begins again from that.
    again = argparse.Namespace(**{**vars(args), "teacher_digest": None})
    DistillEnhancementTask.resolve_distillation(again)
    assert again.teacher_digest == args.teacher_digest
    assert again.teacher_model_file == args.teacher_model_file


@pytest.mark.parametrize("form", ["name", "folder"])
def test_a_model_of_the_package_teaches(form: str) -> None:
    model = {"name": "dpdcrn_tiny", "folder": str(folder_of("dpdcrn_tiny"))}[form]
    args = learning_from(model)
    teacher, _ = load_teacher(Path(args.teacher_config), Path(args.teacher_model_file), needs=["waveform"])
    estimate = teacher(batch()["speech_mix"], batch()["speech_mix_lengths"]).waveform
    expected = load_enhancer(model)(noisy()[:, 0], 16000)
    np.testing.assert_allclose(estimate[0], expected, atol=1e-6)


def learning_from(teacher: str) -> argparse.Namespace:
    distill = {"method": "i2srf_tfckd", "method_conf": {"middle_channels": 4}}
    args = options(distill=distill, teacher_exp=teacher)
    DistillEnhancementTask.resolve_distillation(args)
    return args


def batch() -> Dict[str, Any]:
    speech = torch.from_numpy(noisy()[:, 0]).expand(2, -1)
    return {"speech_mix": speech, "speech_ref1": speech, "speech_mix_lengths": torch.full((2,), len(noisy()))}


def test_a_tag_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, module in (("espnet_model_zoo", None), ("espnet_model_zoo.downloader", None)):
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(
        UserError, match="someone/some_model: no such folder. If it is a tag of the hub, install espnet_"
    ):
        learning_from("someone/some_model")
    (tmp_path / "exp").mkdir()
    with pytest.raises(UserError, match="exp/teacher_2: no such experiment folder"):  # misspelt: nobody is asked
        learning_from("exp/teacher_2")

    save_experiment(tmp_path / "cache", options())

    class Downloader:
        def download(self, name: str) -> str:
            if name != "someone/some_model":
                raise RuntimeError("404")
            return str(tmp_path / "cache")

    monkeypatch.setitem(sys.modules, "espnet_model_zoo", types.ModuleType("espnet_model_zoo"))
    zoo = types.ModuleType("espnet_model_zoo.downloader")
    zoo.ModelDownloader = Downloader  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "espnet_model_zoo.downloader", zoo)
    assert learning_from("someone/some_model").teacher_config == str(tmp_path / "cache" / "config.yaml")
    with pytest.raises(UserError, match="someone/other: no such folder, and the hub does not give it .404."):
        learning_from("someone/other")
