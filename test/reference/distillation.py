"""The published formulas of I2RF-TFCKD (arXiv 2506.13127) written naively, one pair of layers at a time.

The functions read the parameters of the package's modules and share no arithmetic with them, so that they can serve as
what the package is checked against and as what its speed is compared with. Published options only.
"""

from typing import Dict, List, Mapping, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from i2srf_kd.distill.calibration import CalibratedSetLoss, CalibrationWeights
from i2srf_kd.distill.fusion import RecursiveFusion
from i2srf_kd.distill.methods.tfckd import I2RFTFCKD

Features = Mapping[str, Sequence[Tensor]]
STREAMS = ("time", "batch")


def gram(feature: Tensor, stream: str) -> Tensor:
    """Inner products ``(B, T, N)`` of the frames of a clip (``time``), or of the clips at a frame (``batch``)."""
    vectors = feature.transpose(1, 2).flatten(2)  # (B, T, C * F)
    if stream == "time":
        return vectors @ vectors.transpose(1, 2)
    vectors = vectors.transpose(0, 1)
    return (vectors @ vectors.transpose(1, 2)).transpose(0, 1)


def rows(feature: Tensor, stream: str) -> Tensor:
    """Row distributions ``(B, T, N)``."""
    norm = feature.square().sum((1, 3)).sqrt() + 1e-6  # (B, T)
    products = norm[:, :, None] * (norm[:, None, :] if stream == "time" else norm.t()[None])
    similarity = 0.5 * (1 + gram(feature, stream) / products)
    return similarity / similarity.sum(-1, keepdim=True)


def embed(embedding: torch.nn.Module, feature: Tensor, stream: str) -> Tensor:
    """Embedding of the rows of inner products, of unit length over the frames."""
    embedded = embedding(gram(feature, stream))
    return embedded / embedded.square().sum(1, keepdim=True).sqrt()


def calibration_weights(
    weights: CalibrationWeights, student: Sequence[Tensor], teacher: Sequence[Tensor], stream: str
) -> Tensor:
    """Softmax over the teacher layers of the match of queries and keys: ``(B, T, Ns, Nt)``."""
    queries = [embed(e, f, stream) for e, f in zip(weights.queries, student, strict=True)]
    keys = [embed(e, f, stream) for e, f in zip(weights.keys, teacher, strict=True)]
    matches = torch.stack([torch.stack([(q * k).sum(-1) for k in keys], -1) for q in queries], -2)
    return torch.softmax(matches, -1)


def pair_loss(student: Tensor, teacher: Tensor, weight: Tensor, stream: str) -> Tensor:
    """Weighted symmetric KL divergence of one student and one teacher layer; ``weight`` is ``(B, T)``."""
    p, q = rows(student, stream), rows(teacher.detach(), stream)
    divergence = (p * (p / q).log()).sum(-1) + (q * (q / p).log()).sum(-1)
    batch, frames = weight.shape
    return (weight * divergence).sum() / (batch * (frames if stream == "time" else batch))


def set_loss(loss: CalibratedSetLoss, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Calibrated loss of one layer set."""
    options = loss.options
    if (options.embedding, options.normalize_over, options.batch_reduction) != ("fixed", "frame", "clips"):
        raise ValueError("the reference has the published options only")
    keys = teacher if loss.attach_keys else [f.detach() for f in teacher]
    total = student[0].new_zeros(())
    for stream, module in zip(STREAMS, (loss.learned["time"], loss.learned["clips"]), strict=True):
        weights = calibration_weights(module, student, keys, stream)
        for i, ours in enumerate(student):
            for j, theirs in enumerate(teacher):
                total = total + pair_loss(ours, theirs, weights[..., i, j], stream)
    return total / len(student)


def fusion(
    module: RecursiveFusion, features: Sequence[Tensor], state: Optional[Tensor] = None, every_step: bool = False
) -> Tensor:
    """Recursive fusion at full width: every convolution, every resize.

    Args:
        every_step: also compute the final convolution of each step before the last, as the published code does, which
            drops the results.
    """
    gates = list(module.gates)
    for i, (feature, reduce) in enumerate(zip(features, module.reduce, strict=True)):
        x = reduce.act(reduce.norm(reduce.conv(feature)))
        if state is not None:
            state = F.interpolate(state, size=x.shape[2:], mode="nearest")
            z = torch.sigmoid(gates.pop(0).conv(torch.cat([x, state], 1)))
            x = z[:, :1] * x + z[:, 1:] * state
        state = x
        if every_step and i + 1 < len(features):
            module.final(state)
    return module.final(state)


def representatives(
    chains: Mapping[str, RecursiveFusion], features: Features, every_step: bool = False
) -> List[Tensor]:
    """Fused feature of each set; the decoder enters from its output layer inwards."""
    ordered = {name: features[name][::-1] if name == "decoder" else features[name] for name in chains}
    return [fusion(chain, ordered[name], every_step=every_step) for name, chain in chains.items()]


def total_loss(method: I2RFTFCKD, student: Features, teacher: Features, every_step: bool = False) -> Dict[str, Tensor]:
    """All terms of the published method, named as the package names them."""
    teacher = {name: [f.detach() for f in layers] for name, layers in teacher.items()}
    terms = {f"intra_{name}": set_loss(loss, student[name], teacher[name]) for name, loss in method.intra.items()}
    ours = representatives(method.student_fusion.chains, student, every_step)
    theirs = representatives(method.teacher_fusion.chains, teacher, every_step)
    return {**terms, "inter": set_loss(method.inter_set, ours, theirs)}
