"""A student, a teacher and one batch of noise: what the parts ``loss`` and ``step`` work on."""

import argparse
from typing import Dict, List

import torch
from torch import Tensor

from i2srf_kd.bin.methods import as_leaves, run_network
from i2srf_kd.distill import DistillMethod, Side, build_method, layout_of
from i2srf_kd.distill.methods.tfckd import I2RFTFCKD
from i2srf_kd.losses.compressed_spectrum import compressed_spectrum_loss
from i2srf_kd.nets import PRESETS, STFT, build_dpdcrn

FS = 16000


def add_pair_options(parser: argparse.ArgumentParser) -> None:
    """Options that say which networks and how much audio."""
    presets = [name for name, options in PRESETS.items() if not options.get("causal")]
    parser.add_argument("--student_preset", choices=presets, default="dpdcrn_student")
    parser.add_argument("--teacher_preset", choices=presets, default="dpdcrn_teacher")
    parser.add_argument("--batch", type=int, default=8, help="clips in a batch (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="length of a clip (default: %(default)s; 126 frames are 2 s)"
    )


class Pair:
    """Networks with random weights, which do not change the speed, and what they make of one batch.

    Args:
        args: options of :func:`add_pair_options` and ``device``.
    """

    def __init__(self, args: argparse.Namespace):
        torch.manual_seed(0)
        self.stft = STFT().to(args.device)
        self.student = build_dpdcrn(args.student_preset).to(args.device)
        self.teacher = build_dpdcrn(args.teacher_preset).to(args.device).eval().requires_grad_(False)
        self.mixture, self.reference = torch.randn(2, args.batch, round(args.seconds * FS)).to(args.device)
        self.spectrum, self.target = self.stft(self.mixture), self.stft(self.reference)
        with torch.no_grad():
            self._student_side = run_network(self.student, self.stft, self.mixture)
            self.teacher_side = run_network(self.teacher, self.stft, self.mixture)
        self.frames = self.spectrum.shape[2]

    def student_leaves(self) -> Side:
        """The student's side, each feature collecting a gradient of its own."""
        return as_leaves(self._student_side)

    def published_method(self) -> I2RFTFCKD:
        """I2RF-TFCKD with embeddings of this batch's size, as published."""
        sizes = {"embedding": "fixed", "frames": self.frames, "batch_size": len(self.mixture)}
        method = build_method("i2rf_tfckd", *self.layouts(), calibration=sizes)
        assert isinstance(method, I2RFTFCKD)
        return method.to(self.mixture.device)

    def default_method(self) -> DistillMethod:
        """I2SRF-TFCKD with its default options."""
        return build_method("i2srf_tfckd", *self.layouts()).to(self.mixture.device)

    def layouts(self) -> List[Dict]:
        """Layouts of student and teacher."""
        return [layout_of(self._student_side.features), layout_of(self.teacher_side.features)]

    def task_loss(self, spectrum: Tensor) -> Tensor:
        """Spectral loss of the planes ``(B, 2, T, F)``."""
        estimate, target = (torch.complex(x[:, 0], x[:, 1]) for x in (spectrum, self.target))
        return compressed_spectrum_loss(estimate, target).mean()


def feature_tensors(side: Side) -> List[Tensor]:
    """All features of a side."""
    return [feature for layers in side.features.values() for feature in layers]
