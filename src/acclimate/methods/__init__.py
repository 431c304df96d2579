"""Adaptation methods: one paper, one file."""

from acclimate.methods.align import Align
from acclimate.methods.blend import Blend
from acclimate.methods.bn import Bn
from acclimate.methods.cotta import Cotta
from acclimate.methods.eata import Eata, fisher_information
from acclimate.methods.mim import Mim
from acclimate.methods.sar import Sar
from acclimate.methods.spectrum import Spectrum
from acclimate.methods.tent import Tent

__all__ = ["Align", "Blend", "Bn", "Cotta", "Eata", "Mim", "Sar", "Spectrum", "Tent", "fisher_information"]
