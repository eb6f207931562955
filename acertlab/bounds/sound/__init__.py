"""Bounds that hold in spite of rounding."""

from acertlab.bounds.sound.network import (
    SoundNetwork as SoundNetwork,
    prepare_sound as prepare_sound,
    rounding_example as rounding_example,
)
