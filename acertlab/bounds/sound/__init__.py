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
from acertlab.bounds.sound.rounding import ROUNDINGS as ROUNDINGS
from acertlab.bounds.sound.rounding import Rounding as Rounding
from acertlab.bounds.sound.rounding import sound_rule as sound_rule
