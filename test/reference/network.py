"""DPDCRN's published formulas written plainly: explicit softmax attention, copied dense blocks, a mask through angles.

It reads the parameters of a :class:`i2srf_kd.nets.DPDCRN` and shares nothing else with it, so that it can serve as
what the package is checked against and as what its speed is compared with.
"""

from typing import Dict, List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2srf_kd.nets import DPDCRN
from i2srf_kd.nets.blocks import ConvNormAct, DilatedDenseBlock, DualPathBlock, SelfAttention, SequenceBranch


def conv_norm_act(block: ConvNormAct, x: Tensor) -> Tensor:
    """(De)convolution, instance norm over (T, F), PReLU."""
    x = block.conv(x)
    mean = x.mean((2, 3), keepdim=True)
    variance = (x - mean).square().mean((2, 3), keepdim=True)
    x = (x - mean) / torch.sqrt(variance + block.norm.eps)
    x = x * block.norm.weight[:, None, None] + block.norm.bias[:, None, None]
    return torch.where(x >= 0, x, block.act.weight[:, None, None] * x)


def dense_block(block: DilatedDenseBlock, x: Tensor) -> Tensor:
    """Each layer sees frames t and t - 2**k of everything before it, newest first."""
    dense = x
    for k, layer in enumerate(block.layers):
        x = conv_norm_act(layer, F.pad(dense, (0, 0, 2**k, 0)))
        dense = torch.cat([x, dense], dim=1)
    return x


def attention(block: SelfAttention, x: Tensor) -> Tensor:
    """Multi-head self-attention over the second axis of ``(N, L, D)``, one head after the other."""
    q, k, v = block.qkv(x).chunk(3, dim=-1)
    heads = []
    for q_, k_, v_ in zip(*(z.chunk(block.heads, dim=-1) for z in (q, k, v)), strict=True):
        heads.append(torch.softmax(q_ @ k_.transpose(1, 2) / q_.shape[-1] ** 0.5, dim=-1) @ v_)
    return block.output(torch.cat(heads, dim=-1))


def branch(block: SequenceBranch, x: Tensor) -> Tensor:
    """Attention and a GRU, each with a residual and layer norms around it."""
    x = block.post_attention_norm(x + attention(block.attention, block.pre_attention_norm(x)))
    return block.post_gru_norm(x + block.gru_projection(F.relu(block.gru(x)[0])))


def group_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Norm over channels, frames and bins of each clip."""
    mean = x.mean((1, 2, 3), keepdim=True)
    variance = (x - mean).square().mean((1, 2, 3), keepdim=True)
    return (x - mean) / torch.sqrt(variance + norm.eps) * norm.weight[:, None, None] + norm.bias[:, None, None]


def dual_path_block(block: DualPathBlock, x: Tensor) -> Tuple[Tensor, Tensor]:
    """(frequency branch, time branch) of ``(B, D, T, F)``."""
    b, d, t, f = x.shape
    over_frequency = branch(block.frequency_branch, x.permute(0, 2, 3, 1).reshape(b * t, f, d))
    over_time = branch(block.time_branch, x.permute(0, 3, 2, 1).reshape(b * f, t, d))
    return (
        group_norm(block.frequency_branch.group_norm, over_frequency.view(b, t, f, d).permute(0, 3, 1, 2)),
        group_norm(block.time_branch.group_norm, over_time.view(b, f, t, d).permute(0, 3, 2, 1)),
    )


def apply_mask(mask: Tensor, reference: Tensor) -> Tensor:
    """Magnitude ``tanh |m|`` and phase of the mask, applied to planes ``(B, 2, T, F)`` in polar form."""
    magnitude = torch.sqrt(mask[:, 0] ** 2 + mask[:, 1] ** 2)
    phase = torch.atan2(mask[:, 1] / (magnitude + 1e-8), mask[:, 0] / (magnitude + 1e-8))
    level = torch.tanh(magnitude) * torch.sqrt(reference[:, 0] ** 2 + reference[:, 1] ** 2 + 1e-8)
    angle = torch.atan2(reference[:, 1], reference[:, 0]) + phase
    return torch.stack([level * torch.cos(angle), level * torch.sin(angle)], dim=1)


def features(network: DPDCRN, spectrum: Tensor) -> Dict[str, List[Tensor]]:
    """Feature sets of a single-microphone network that is not causal; the decoder's last is the mask ``(B, 2, T, F)``.

    Args:
        network: whose parameters are used.
        spectrum: mixture ``(B, 2, T, F)``.
    """
    if network.causal or network.options.front or network.input_channels != 2:
        raise ValueError("the reference is the published network: one microphone, not causal, nothing before it")
    encoder, dual_path, decoder = network.encoder, network.dual_path, network.decoder
    first = conv_norm_act(encoder.down1, spectrum)
    second = conv_norm_act(encoder.down2, first)
    encoded = [first, second, dense_block(encoder.dense, second)]
    x = dual_path.entry(encoded[-1])
    outputs: List[Tensor] = []
    for block in dual_path.blocks:
        over_frequency, over_time = dual_path_block(block, x)
        x = x + dual_path.gain_frequency * over_frequency + dual_path.gain_time * over_time
        outputs.append(dual_path.exit(x))
    dense = dense_block(decoder.dense, outputs[-1])
    up = conv_norm_act(decoder.up1, dense)
    mask = decoder.mask(up)[..., : decoder.bins]
    return {"encoder": encoded, "dual_path": outputs, "decoder": [dense, up, mask]}


def forward(network: DPDCRN, spectrum: Tensor) -> Tensor:
    """Enhanced spectrum ``(B, 2, T, F)``, with the limits of :func:`features`."""
    return apply_mask(features(network, spectrum)["decoder"][-1], spectrum)
