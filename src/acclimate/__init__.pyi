from .core.budget import Budget as Budget
from .core.report import SessionReport as SessionReport
from .core.selection import TensorFilter as TensorFilter
from .core.session import Session as Session
from .core.task import Classification as Classification
from .methods.blend import Blend as Blend
from .methods.bn import BatchNormStats as BatchNormStats
from .methods.cotta import Cotta as Cotta
from .methods.eata import Eata as Eata
from .methods.mim import Mim as Mim
from .methods.sar import Sar as Sar
from .methods.spectrum import SpectrumFilter as SpectrumFilter
from .methods.tent import Tent as Tent
from .vision.run.config import TTTConfig as TTTConfig
from .vision.run.runners import run_ttt as run_ttt
from .vision.run.ttt import TTTRun as TTTRun

__version__: str
