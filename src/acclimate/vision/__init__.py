"""The vision door: unlabelled images in, adapted predictions out."""

from acclimate.vision.data.records import Record, load_dataset
from acclimate.vision.run.config import PRESETS, TTTConfig
from acclimate.vision.run.export import ExportJob, export
from acclimate.vision.run.runners import TentRunner, TTTMIMResult, run_ttt_mim
from acclimate.vision.run.ttt import TTTReport, TTTRun, run_ttt

__all__ = [
    "PRESETS",
    "ExportJob",
    "Record",
    "TTTConfig",
    "TTTMIMResult",
    "TTTReport",
    "TTTRun",
    "TentRunner",
    "export",
    "load_dataset",
    "run_ttt",
    "run_ttt_mim",
]
