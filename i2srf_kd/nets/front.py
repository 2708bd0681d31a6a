"""What may stand between the spectra of several channels and DPDCRN's encoder.

A front maps input planes ``(B, 2 * channels, T, F)`` to planes of the same shape. The mask is still applied to the
unchanged spectrum of the reference channel.
"""

from functools import reduce
from typing import Any, Dict, Optional, Type

import torch
from torch import Tensor, nn

# Below this power a bin counts as empty.
_TINY_POWER = 1e-20
_FIRST_ORDER = 4  # channels of a first-order Ambisonics microphone


class ComplexMix(nn.Module):
    """Linear map of the channels of each bin with complex weights, ``(B, 2 * inputs, T, F)`` to ``2 * outputs``."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.real = nn.Parameter(torch.randn(outputs, inputs) / (2 * inputs) ** 0.5)
        self.imaginary = nn.Parameter(torch.randn(outputs, inputs) / (2 * inputs) ** 0.5)

    def forward(self, planes: Tensor) -> Tensor:
        to_real = torch.stack([self.real, -self.imaginary], dim=-1)
        to_imaginary = torch.stack([self.imaginary, self.real], dim=-1)
        weight = torch.stack([to_real, to_imaginary], dim=1)  # (outputs, 2, inputs, 2)
        return nn.functional.conv2d(planes, weight.flatten(2).flatten(0, 1)[:, :, None, None])


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention over axis 1 of ``(B, N, D, T, F)``, in every bin by itself.

    Token by token: N is 2 to 4, and a matrix product for each bin would take more than twice the time.
    """
    scale = (query.shape[2] / 2) ** -0.5
    keys, values = key.unbind(1), value.unbind(1)
    attended = []
    for one in query.unbind(1):
        weights = torch.stack([(one * other).sum(1) * scale for other in keys], dim=1).softmax(dim=1)
        attended.append(reduce(torch.add, (weights[:, j : j + 1] * other for j, other in enumerate(values))))
    return torch.stack(attended, dim=1)


class ChannelAttention(nn.Module):
    """Attention over the channels of each microphone, then over the microphones, each added with a learned gain.

    Our reading of the group attention over channels with which systems of the L3DAS challenges begin; their code was
    not at hand. A group is one microphone (for first-order Ambisonics W, Y, Z, X). Within a group the channels are the
    tokens: an attention-weighted sum of mixed W, Y, Z, X is a virtual microphone whose pattern follows the sound field
    from bin to bin. Across groups whole microphones are the tokens.

    Queries and keys are complex and see the directions of the bin's channel vectors; the match of two is the real part
    of their inner product, a linear function of the bin's normalised spatial covariance. What is attended to therefore
    depends neither on the level of the mixture nor on a phase that all channels share.

    - The gains start at zero: the front begins as the identity, and DPDCRN as it is without it.
    - All groups share their weights: exchanging microphones exchanges the outputs.
    - A frame is mapped by itself: no look-ahead and no state for streaming.

    Args:
        channels: of the mixture.
        groups: microphones, one after the other with ``channels / groups`` channels each. By default 4 channels are
            one microphone (first-order Ambisonics), and any number that is no multiple of 4 as well.
        width: complex entries of a query.

    Shape: ``(B, 2 * channels, T, F)`` to the same.

    Raises:
        ValueError: for sizes it cannot be built with.
    """

    def __init__(self, channels: int, groups: Optional[int] = None, width: int = 4):
        super().__init__()
        if groups is None:
            groups = 1 if channels % _FIRST_ORDER else channels // _FIRST_ORDER
        if groups < 1 or channels % groups:
            raise ValueError(f"front: {channels} channels cannot be split into {groups} groups of equal size")
        if channels // groups == 1:
            raise ValueError(f"front: {channels} channels in {groups} groups leave one each: attention needs several")
        if width < 1:
            raise ValueError(f"front: width must be at least 1, not {width}")
        self.groups, self.size, self.width = groups, channels // groups, width
        size = self.size
        self.query, self.key, self.value = (ComplexMix(size, n) for n in (size * width, size * width, size))
        self.gain = nn.Parameter(torch.zeros(1))
        if groups > 1:
            self.group_query, self.group_key, self.group_value = (ComplexMix(size, n) for n in (width, width, size))
            self.group_gain = nn.Parameter(torch.zeros(1))

    def forward(self, planes: Tensor) -> Tensor:
        planes = self._within_groups(planes)
        return planes if self.groups == 1 else self._across_groups(planes)

    def _within_groups(self, planes: Tensor) -> Tensor:
        batch, _, frames, bins = planes.shape
        groups = planes.reshape(batch * self.groups, 2 * self.size, frames, bins)
        direction = _direction(groups)
        tokens = (batch * self.groups, self.size, -1, frames, bins)
        query, key, value = self.query(direction), self.key(direction), self.value(groups)
        attended = _attend(query.reshape(tokens), key.reshape(tokens), value.reshape(tokens))
        return planes + self.gain * attended.reshape(planes.shape)

    def _across_groups(self, planes: Tensor) -> Tensor:
        batch, _, frames, bins = planes.shape
        single = (batch * self.groups, 2 * self.size, frames, bins)
        groups, direction = planes.reshape(single), _direction(planes).reshape(single)
        tokens = (batch, self.groups, -1, frames, bins)
        query, key, value = self.group_query(direction), self.group_key(direction), self.group_value(groups)
        attended = _attend(query.reshape(tokens), key.reshape(tokens), value.reshape(tokens))
        return planes + self.group_gain * attended.reshape(planes.shape)


def _direction(planes: Tensor) -> Tensor:
    """Channel vectors ``(B, P, T, F)`` of unit length, zero where a bin is empty."""
    power = planes.square().sum(1, keepdim=True)
    return planes * power.clamp_min(_TINY_POWER).rsqrt()


FRONTS: Dict[str, Type[nn.Module]] = {"channel_attention": ChannelAttention}


def build_front(name: Optional[str], channels: int, conf: Optional[Dict[str, Any]] = None) -> nn.Module:
    """Build a front by name.

    Args:
        name: a key of ``FRONTS``; None gives the identity.
        channels: of the mixture.
        conf: further options of the front.

    Raises:
        ValueError: unknown name, unknown options, or sizes that do not fit.
    """
    if not name:
        if conf:
            raise ValueError(f"front_conf {conf} without front: choose one of {', '.join(FRONTS)}")
        return nn.Identity()
    if name not in FRONTS:
        raise ValueError(f"no front {name!r}: choose one of {', '.join(FRONTS)}")
    try:
        return FRONTS[name](channels, **(conf or {}))
    except TypeError as error:
        raise ValueError(f"front_conf does not fit {name}: {error}") from None
