"""Linear relaxations: CROWN-IBP for training, the CROWN family through auto_LiRPA."""

from acertlab.bounds.crown.auto_lirpa import AutoLirpaNetwork as AutoLirpaNetwork
from acertlab.bounds.crown.crown_ibp import crown_ibp_margins as crown_ibp_margins
