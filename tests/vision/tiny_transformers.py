"""Tiny, randomly initialised transformers models, saved as folders that the real loading code reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as hf

LABELS = {0: "cat", 1: "dog", 2: "bird"}
DETECTORS = ("rt_detr", "rt_detr_v2", "d_fine", "detr", "yolos")
CLASSIFIERS = ("vit", "resnet")
SEGMENTERS = ("segformer", "upernet")


def save(family: str, folder: Path, *, seed: int = 0) -> Path:
    """Write model and image processor of one family; return the folder."""
    torch.manual_seed(seed)
    model = {
        "rt_detr": lambda: hf.RTDetrForObjectDetection(hf.RTDetrConfig(**_rt_detr())),
        "rt_detr_v2": lambda: hf.RTDetrV2ForObjectDetection(hf.RTDetrV2Config(**_rt_detr())),
        "d_fine": lambda: hf.DFineForObjectDetection(hf.DFineConfig(**_d_fine())),
        "detr": lambda: hf.DetrForObjectDetection(_detr()),
        "yolos": lambda: hf.YolosForObjectDetection(_yolos()),
        "vit": lambda: hf.ViTForImageClassification(_vit()),
        "resnet": lambda: hf.ResNetForImageClassification(_resnet()),
        "segformer": lambda: hf.SegformerForSemanticSegmentation(_segformer()),
        "upernet": lambda: hf.UperNetForSemanticSegmentation(_upernet()),
    }[family]()
    for module in model.modules():
        # With the small default weights, activations vanish in such a narrow backbone, and gradients explode.
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    model.eval().save_pretrained(folder)
    _processor(family).save_pretrained(folder)
    return folder


def _labels() -> dict[str, Any]:
    return {"id2label": LABELS, "label2id": {name: index for index, name in LABELS.items()}}


def _rt_detr() -> dict[str, Any]:
    backbone = hf.RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    return {
        "backbone_config": backbone,
        "encoder_hidden_dim": 16,
        "encoder_in_channels": [8, 16, 16],
        "encoder_ffn_dim": 16,
        "encoder_attention_heads": 2,
        "encode_proj_layers": [2],
        "d_model": 16,
        "num_queries": 12,
        "decoder_in_channels": [16, 16, 16],
        "decoder_ffn_dim": 16,
        "decoder_layers": 2,
        "decoder_attention_heads": 2,
        "num_denoising": 0,
        "num_feature_levels": 3,
        **_labels(),
    }


def _d_fine() -> dict[str, Any]:
    backbone = hf.HGNetV2Config(
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 8, 8, 16],
        stage_mid_channels=[8, 8, 8, 8],
        stage_out_channels=[8, 8, 16, 16],
        stage_num_blocks=[1, 1, 1, 1],
        stage_downsample=[False, True, True, True],
        stage_light_block=[False, False, True, True],
        stage_kernel_size=[3, 3, 3, 3],
        stage_numb_of_layers=[1, 1, 1, 1],
        embedding_size=8,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )
    return {**_rt_detr(), "backbone_config": backbone, "max_num_bins": 8, "decoder_n_points": [2, 2, 2]}


def _detr() -> Any:
    backbone = hf.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"]
    )
    return hf.DetrConfig(
        backbone_config=backbone,
        d_model=16,
        num_queries=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        **_labels(),
    )


def _yolos() -> Any:
    return hf.YolosConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[64, 64],
        patch_size=16,
        num_detection_tokens=8,
        **_labels(),
    )


def _vit() -> Any:
    return hf.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
        **_labels(),
    )


def _resnet() -> Any:
    return hf.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic", **_labels()
    )


def _segformer() -> Any:
    return hf.SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        **_labels(),
    )


def _upernet() -> Any:
    backbone = hf.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return hf.UperNetConfig(
        backbone_config=backbone,
        hidden_size=16,
        pool_scales=[1, 2],
        auxiliary_in_channels=16,
        auxiliary_channels=8,
        **_labels(),
    )


def _processor(family: str) -> Any:
    square = {"height": 64, "width": 64}
    if family in ("rt_detr", "rt_detr_v2", "d_fine"):
        return hf.RTDetrImageProcessorPil(size=square)
    if family == "detr":
        return hf.DetrImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96})
    if family == "yolos":
        return hf.YolosImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96})
    if family in SEGMENTERS:
        return hf.SegformerImageProcessorPil(size=square)
    return hf.ViTImageProcessorPil(size={"height": 32, "width": 32})
