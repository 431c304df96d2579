"""A reimplementation of the official CoTTA step in plain torch, for processors that round differently.

In CoTTA's first step student and teacher are the same network, so the gradient consists of rounding errors (2e-8 here),
and Adam divides by their magnitude: each weight changes by the full learning rate, in a direction that depends on the
processor. So a recorded run can be reproduced to 1e-5 only on processors that round in the same way. This
reimplementation runs on the same processor as the code under test, and is itself compared with the recording where that
is possible.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def official_cotta(
    network: nn.Module, batches: Sequence[Tensor], *, lr: float, ema: float
) -> tuple[list[Tensor], nn.Module]:
    """Return the outputs for each batch and the final teacher; no views and no restoration, as in the recording."""
    student = network.train()
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = None
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.Adam(student.parameters(), lr=lr, betas=(0.9, 0.999), weight_decay=0.0)
    outputs = []
    for batch in batches:
        learned, taught = student(batch), teacher(batch)
        (-(taught.softmax(1) * learned.log_softmax(1)).sum(1)).mean(0).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for kept, new in zip(teacher.parameters(), student.parameters(), strict=True):
                kept[:] = ema * kept[:] + (1 - ema) * new[:]
        outputs.append(taught.detach())
    return outputs, teacher
