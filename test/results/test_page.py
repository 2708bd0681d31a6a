"""The report's content, without a browser; test_browser.py opens it in one."""

import base64
import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import List, Tuple

import numpy as np
import pytest
import soundfile
from results import synthetic

from i2srf_kd.bin import report
from i2srf_kd.results import figures, listening, media
from i2srf_kd.results.study import read_study
from i2srf_kd.system.errors import UserError

pytest.importorskip("jinja2")


class Elements(HTMLParser):
    """Collects elements with their attributes, and checks that they are closed in order."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text: str):
        super().__init__()
        self.found: List[Tuple[str, dict]] = []
        self.open: List[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.found.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list) -> None:
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> List[dict]:
        return [attributes for name, attributes in self.found if name == tag]


def test_one_file_with_everything_in_it(ablation: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    arguments = [str(ablation), "-o", str(out), "--num_examples", "1", "--audio_format", "flac"]
    assert report.main(arguments) == 0
    page = out.read_text(encoding="utf-8")
    elements = Elements(page)
    for _, attributes in elements.found:
        for name in ("src", "href", "xlink:href", "data", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:")), attributes
    assert not re.search(r"@import|url\((?!#)", page)
    assert len(elements.all("img")) == len(elements.all("audio")) == 5
    assert all(attributes.get("alt") for attributes in elements.all("img"))
    targets = {attributes["id"] for _, attributes in elements.found if "id" in attributes}
    assert {a["href"][1:] for a in elements.all("a")} <= targets
    for text in (
        "A &lt;synthetic&gt; ablation", "3 of 4 seeds finished", "+0.300", "60 %", "1.70×", "0123456789",
        "train --seed 0 --name &#39;&lt;seed0&gt;&#39;", "Calibration weights of i2srf", "p257_001",
    ):  # fmt: skip
        assert text in page, text
    size = float(re.search(r"One file of ([\d.]+) (kB|MB)", page)[1])
    assert size * (1e3 if "kB that" in page else 1e6) == pytest.approx(out.stat().st_size, rel=0.1)


def test_a_training_that_has_just_begun(tmp_path: Path) -> None:
    folder = synthetic.write_training(tmp_path / "student", 2.0)
    assert report.main([str(folder), "-o", str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    Elements(page)
    assert "Nothing is scored yet" in page and "Learning curves" in page and "<audio" not in page


def test_examples_are_best_middle_and_worst(ablation: Path) -> None:
    study = read_study([ablation])
    base, kd = study.system("undistilled"), study.system("i2srf")
    for run in kd.scored:
        for gain, utt in zip((0.1, 0.4, -0.2, 0.3), synthetic.UTTERANCES, strict=True):
            run.scores[utt]["pesq_wb"] = base.scored[run.seed].scores[utt]["pesq_wb"] + gain
    shown = listening.systems_to_show(study)
    assert [system.name for system in shown] == ["teacher", "undistilled", "i2srf"]
    chosen = listening.choose(study, shown, 3)
    assert [utt for utt, _ in chosen] == ["p257_002", "p257_001", "p257_003"]
    assert chosen[0][1] == "largest gain of i2srf over undistilled: +0.40 WB-PESQ"
    assert chosen[2][1] == "smallest gain of i2srf over undistilled: -0.20 WB-PESQ"
    with pytest.raises(UserError, match="--show other: no system of that name"):
        listening.systems_to_show(study, ["other"])


@pytest.mark.parametrize("kind", sorted(media.AUDIO_FORMATS))
def test_sound_survives_its_encoding(kind: str) -> None:
    time = np.arange(16000) / 16000
    wave = 0.3 * np.sin(2 * np.pi * 440 * time)
    address = media.encode_audio(wave, 16000, kind)
    assert address.startswith(f"data:{media.AUDIO_FORMATS[kind][2]};base64,")
    decoded, fs = soundfile.read(io.BytesIO(base64.b64decode(address.split(",")[1])))
    assert fs == 16000 and abs(len(decoded) - 16000) < 2500
    middle = decoded[4000:12000]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(8000)))
    assert spectrum.argmax() == 220 and np.std(middle) == pytest.approx(0.3 / math.sqrt(2), rel=0.05)


def test_share_of_the_gradient_and_weighted_terms(ablation: Path) -> None:
    study = read_study([ablation])
    picture = figures.gradient_share(study)
    share, cosine, norm = picture.figure.axes
    means = share.get_lines()[3]  # after three seeds
    assert list(means.get_ydata()) == pytest.approx([25.0] * (synthetic.EPOCHS + 1))
    assert list(means.get_xdata()) == [0, 10, 20, 30, 40]
    assert cosine.get_lines()[3].get_ydata()[-1] == pytest.approx(0.5)
    run = study.system("i2srf").runs[0]
    terms = figures.weighted_terms(run)
    assert list(terms) == ["task", "intra_encoder", "intra_dual_path", "inter"]
    assert terms["inter"] == pytest.approx({epoch: 0.05 / epoch for epoch in range(1, 5)})
    losses = {line["epoch"]: line["loss"] for line in run.metrics if line["phase"] == "valid"}
    assert {epoch: sum(term[epoch] for term in terms.values()) for epoch in losses} == pytest.approx(losses)


def test_terms_of_combined_methods_have_their_own_weights(ablation: Path) -> None:
    run = read_study([ablation]).system("i2srf").runs[0]
    methods = [{"name": "a", "weight": 2.0}, {"name": "b"}]
    run.config = {"distill": {"method": methods, "weight": 0.5}}
    run.metrics = [{"epoch": 1, "phase": "valid", "loss": 9.0, "kd": 3.0, "kd_a0_x": 1.0, "kd_b1_y": 1.0}]
    assert figures.weighted_terms(run) == {"task": {1: 9.0}, "a0_x": {1: 1.0}, "b1_y": {1: 0.5}}


def test_wrong_options_are_refused(ablation: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--num_examples"):
        report.main([str(ablation), "-o", str(tmp_path / "x.html"), "--num_examples", "-1"])
    with pytest.raises(UserError, match="is a folder"):
        report.main([str(ablation), "-o", str(tmp_path)])
