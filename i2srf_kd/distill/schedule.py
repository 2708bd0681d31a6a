"""How much a distillation weighs while a training goes on.

schedule: {rise: 0.1, fall_from: 0.5, fall_to: 0.8, shape: cosine}

All three are shares of the training: the weight rises until ``rise``, is full until ``fall_from``, and is zero from
``fall_to`` on.
"""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """Factor of the distillation's weight by the share of the training that is done; by default always 1.

    Args:
        rise: share at which the factor, which begins at 0, has reached 1.
        fall_from, fall_to: shares at which it begins to fall and at which it is 0; without ``fall_from`` it stays 1.
        shape: of rise and fall, ``linear`` or ``cosine``.

    Raises:
        ValueError: the shares are not in order between 0 and 1.
    """

    rise: float = 0.0
    fall_from: float = 1.0
    fall_to: float = 1.0
    shape: Literal["linear", "cosine"] = "linear"

    def __post_init__(self) -> None:
        if not 0 <= self.rise <= self.fall_from <= self.fall_to <= 1:
            raise ValueError(
                f"schedule: rise {self.rise:g}, fall_from {self.fall_from:g} and fall_to {self.fall_to:g} must be "
                "shares of the training, from 0 to 1 in this order"
            )

    @property
    def is_constant(self) -> bool:
        """Whether the factor is 1 throughout."""
        return self.rise == 0 and self.fall_from == 1

    def factor(self, share: float) -> float:
        """Factor between 0 and 1 after ``share`` of the training."""
        if share < self.rise:
            return self._eased(share / self.rise)
        if share <= self.fall_from:
            return 1.0
        if share < self.fall_to:
            return self._eased((self.fall_to - share) / (self.fall_to - self.fall_from))
        return 0.0

    def _eased(self, part: float) -> float:
        return part if self.shape == "linear" else (1 - math.cos(math.pi * part)) / 2
