"""Adaptation methods: one paper, one file."""

from acclimate.methods.align import Align
from acclimate.methods.blend import Blend
from acclimate.methods.bn import BatchNormStats
from acclimate.methods.cotta import Cotta
from acclimate.methods.deyo import Deyo
from acclimate.methods.eata import Eata, fisher_information
from acclimate.methods.lame import Lame
from acclimate.methods.memo import Memo
from acclimate.methods.mim import Mim
from acclimate.methods.roid import Roid
from acclimate.methods.rotta import Rotta
from acclimate.methods.sar import Sar
from acclimate.methods.spectrum import SpectrumFilter
from acclimate.methods.tent import Tent

__all__ = [
    "Align",
    "BatchNormStats",
    "Blend",
    "Cotta",
    "Deyo",
    "Eata",
    "Lame",
    "Memo",
    "Mim",
    "Roid",
    "Rotta",
    "Sar",
    "SpectrumFilter",
    "Tent",
    "fisher_information",
]
