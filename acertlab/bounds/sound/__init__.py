"""Bounds that hold in spite of rounding."""

from acertlab.bounds.sound.network import (
    SoundNetwork as SoundNetwork,
)
from acertlab.bounds.sound.network import (
    prepare_sound as prepare_sound,
)
from acertlab.bounds.sound.network import (
    rounding_example as rounding_example,
)
