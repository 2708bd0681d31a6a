"""A student, a teacher and one batch of noise: what the parts ``loss`` and ``step`` work on."""

import argparse
from typing import List

import torch
from torch import Tensor

from i2srf_kd.distill import DistillMethod, Side
from i2srf_kd.distill.catalogue import StudentAndTeacher
from i2srf_kd.distill.methods.tfckd import I2RFTFCKD
from i2srf_kd.nets import PRESETS, build_dpdcrn

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


class BenchPair(StudentAndTeacher):
    """Networks with random weights, which do not change the speed, and what they make of one batch of noise.

    Args:
        args: options of :func:`add_pair_options` and ``device``.
    """

    def __init__(self, args: argparse.Namespace):
        torch.manual_seed(0)
        student, teacher = build_dpdcrn(args.student_preset), build_dpdcrn(args.teacher_preset)
        noise = torch.randn(2, args.batch, round(args.seconds * FS)).to(args.device)
        super().__init__(student.to(args.device), teacher.to(args.device).requires_grad_(False), *noise)
        self.frames = self.spectrum.shape[2]

    def published_method(self) -> I2RFTFCKD:
        """I2RF-TFCKD with embeddings of this batch's size, as published."""
        sizes = {"embedding": "fixed", "frames": self.frames, "batch_size": len(self.mixture)}
        method = self.build("i2rf_tfckd", calibration=sizes)
        assert isinstance(method, I2RFTFCKD)
        return method

    def default_method(self) -> DistillMethod:
        """I2SRF-TFCKD with its default options."""
        return self.build("i2srf_tfckd")


def feature_tensors(side: Side) -> List[Tensor]:
    """All features of a side."""
    return [feature for layers in side.features.values() for feature in layers]
