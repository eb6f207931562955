"""Bounds that hold in spite of rounding."""

from acertlab.bounds.sound.network import (
    SoundNetwork as SoundNetwork,
    prepare_sound as prepare_sound,
    rounding_example as rounding_example,
)
from acertlab.bounds.sound.rounding import ROUNDINGS as ROUNDINGS, Rounding as Rounding, sound_rule as sound_rule
