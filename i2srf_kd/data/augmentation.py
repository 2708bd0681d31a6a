"""Random changes of training signals that leave mixture and reference a pair.

    augmentation: {rotation: true, mirror: true, level_db: [-6, 6]}

What is drawn depends on the seed that is passed alone, so a resumed or differently parallel run sees the same signals.

=================== ======================================= ======================================================
option              one first-order microphone (4 channels) two (8 channels, the second beside the first along x)
=================== ======================================= ======================================================
``rotation: true``  any angle about the vertical            half a turn, which exchanges them: with ``swap_mics``
``mirror: true``    left and right                          left and right; front and back, which exchanges them:
                                                            with ``swap_mics``
``swap_mics: true`` an error                                allows what exchanges the microphones
``mirror_vertical`` up and down                             up and down
``level_db``        a gain, any number of channels          likewise
=================== ======================================= ======================================================

All of these are exact: the changed mixture is what the same microphones record when everything around them moves.
``rotation: any_angle`` turns two microphones by any angle as well, which is no recordable field, since the delays
between them still tell the old direction.

After an exchange the mixture begins with what the second microphone recorded. That fits references that belong to the
source (dry speech, as in L3DAS), not those that belong to the first microphone (its direct sound), whose delay and
level would be off by the distance of the microphones; hence ``swap_mics: false`` by default.
"""

import math
from typing import Any, Dict, Mapping, NamedTuple, Sequence, Tuple, Union

import numpy as np

from i2srf_kd.audio import ambisonics
from i2srf_kd.system.config import refuse_unknown
from i2srf_kd.system.errors import UserError

MIXTURE = "speech_mix"
ANY_ANGLE = "any_angle"
_STREAM = 0x617567  # sets these draws apart from others that are seeded by the same numbers
_SPATIAL = ("rotation", "mirror", "mirror_vertical", "swap_mics")


class Augmentation(NamedTuple):
    """What is drawn for each chunk; see the module for the options."""

    rotation: Union[bool, str] = False
    mirror: bool = False
    mirror_vertical: bool = False
    swap_mics: bool = False
    level_db: Tuple[float, float] = (0.0, 0.0)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "Augmentation":
        """Read the options of a configuration.

        Raises:
            UserError: names the option that is unknown or has a wrong value.
        """
        refuse_unknown(options, cls._fields, "augmentation")
        given = dict(options)
        for name in _SPATIAL:
            value = given.get(name, False)
            if not isinstance(value, bool) and (name, value) != ("rotation", ANY_ANGLE):
                more = f" or {ANY_ANGLE}" if name == "rotation" else ""
                raise UserError(f"augmentation: {name} must be true or false{more}, not {value!r}")
        if "level_db" in given:
            given["level_db"] = _read_range(given["level_db"])
        return cls(**given)

    @property
    def spatial(self) -> bool:
        """Whether anything but the level changes."""
        return any(getattr(self, name) for name in _SPATIAL)

    def check(self, channels: int) -> None:
        """Make sure that mixtures of so many channels can be changed like this.

        Raises:
            UserError: says which option does not fit.
        """
        if not self.spatial:
            return
        wanted = next(name for name in _SPATIAL if getattr(self, name))
        try:
            mics = ambisonics.count_microphones(channels)
        except ValueError as error:
            raise UserError(f"augmentation: {wanted} does not fit these mixtures: {error}") from None
        if mics > 2:
            raise UserError(f"augmentation: {wanted} knows one or two microphones, {channels} channels are {mics}")
        if self.swap_mics and mics == 1:
            raise UserError("augmentation: swap_mics needs two microphones (8 channels): set it to false")
        if self.swap_mics and not (self.rotation or self.mirror):
            raise UserError(
                "augmentation: swap_mics alone is no move of the sound field; it allows rotation and mirror to "
                "exchange the microphones: set one of them to true"
            )

    def describe(self, channels: int) -> str:
        """One line on what is drawn for mixtures of so many channels."""
        pair = channels == 2 * ambisonics.CHANNELS
        parts = []
        if self.rotation == ANY_ANGLE and pair:
            parts.append("rotation of each microphone by any angle (no field that two microphones could record)")
        elif self.rotation and not pair:
            parts.append("rotation by any angle")
        elif self.rotation and self.swap_mics:
            parts.append("half a turn with the microphones exchanged")
        elif self.rotation:
            parts.append("no rotation (two microphones: only half a turn is exact, and needs swap_mics)")
        if self.mirror:
            parts.append("left and right mirrored")
            if self.swap_mics:
                parts.append("front and back mirrored with the microphones exchanged")
        if self.mirror_vertical:
            parts.append("up and down mirrored")
        if self.level_db != (0.0, 0.0):
            parts.append(f"level {self.level_db[0]:g} to {self.level_db[1]:g} dB")
        return "; ".join(parts) or "nothing"

    def __call__(self, signals: Mapping[str, np.ndarray], seed: Sequence[int]) -> Dict[str, np.ndarray]:
        """Change the signals of a chunk.

        Args:
            signals: by name, ``(samples,)`` or ``(samples, channels)``. Those with as many channels as ``speech_mix``
                move with it, others change their level alone.
            seed: of the draws.

        Raises:
            UserError: as for :meth:`check`.
        """
        random = np.random.default_rng([_STREAM, *seed])
        # Drawn in a fixed number and order: an option more does not change what the others draw.
        coins = random.random(5)
        angle = 2 * math.pi * coins[0]
        gain = 10 ** ((self.level_db[0] + coins[1] * (self.level_db[1] - self.level_db[0])) / 20)
        flips = tuple(bool(coin < 0.5) for coin in coins[2:])
        shape = signals[MIXTURE].shape[1:]
        self.check(shape[0] if shape else 1)
        return {
            name: (np.float32(gain) * (self._move(wave, angle, flips) if wave.shape[1:] == shape else wave)).astype(
                wave.dtype, copy=False
            )
            for name, wave in signals.items()
        }

    def _move(self, wave: np.ndarray, angle: float, flips: Sequence[bool]) -> np.ndarray:
        if not self.spatial:
            return wave
        pair = wave.shape[1] > ambisonics.CHANNELS
        left_right, up_down, exchange = flips
        if self.rotation and (not pair or self.rotation == ANY_ANGLE):
            wave = ambisonics.rotate(wave, angle)
        if self.mirror and left_right:
            wave = ambisonics.mirror_left_right(wave)
        if self.mirror_vertical and up_down:
            wave = ambisonics.mirror_up_down(wave)
        if self.swap_mics and exchange:
            # Half a turn is front and back mirrored, then left and right.
            wave = ambisonics.exchange_microphones(ambisonics.mirror_front_back(wave))
            if not self.mirror:
                wave = ambisonics.mirror_left_right(wave)
        return wave


def _read_range(value: Any) -> Tuple[float, float]:
    numbers = [value] if isinstance(value, (int, float)) else value
    try:
        low, high = (float(number) for number in numbers)
    except (TypeError, ValueError):
        raise UserError(f"augmentation: level_db must be [lowest, highest] in dB, not {value!r}") from None
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise UserError(f"augmentation: level_db must rise from the lowest to the highest value, not {value!r}")
    return low, high
