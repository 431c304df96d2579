"""The vision door: unlabelled images in, adapted predictions out."""

from acclimate.vision.config import PRESETS, TTTConfig
from acclimate.vision.export import ExportJob, export
from acclimate.vision.records import Record, load_dataset
from acclimate.vision.ttt import TTTReport, TTTRun, run_ttt

__all__ = ["PRESETS", "ExportJob", "Record", "TTTConfig", "TTTReport", "TTTRun", "export", "load_dataset", "run_ttt"]
