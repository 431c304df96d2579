"""Where and how a model computes: transfers of batches to a GPU, automatic mixed precision, and memory layout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from acclimate.core.determinism import device_of


def sent(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Return a tensor on ``device``, converted there; a transfer to a GPU does not wait for its end.

    The copy goes through page-locked memory, from which a GPU reads by itself at twice the rate and more, while the
    program prepares the next batch. Operations on the result wait for the transfer, as all work on the GPU does.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device, dtype)


def compute_in(model: nn.Module, *, autocast: torch.dtype | None = None, channels_last: bool = False) -> None:
    """Let every call of ``model`` compute in another number format, or its convolutions in another memory layout.

    Args:
        model: on its device. Its weights keep their number format, and so do updates of them.
        autocast: the format of matrix products and convolutions in torch's automatic mixed precision; losses and what
            follows the model stay in float32. With float16, gradients below 6e-8 become zero, because losses are not
            scaled; bfloat16 has the range of float32.
        channels_last: whether to keep convolution weights with the channels last, from which activations take their
            layout. On a GPU, half precision is fastest in it. Sums are rounded in another order, so logits differ by
            about one part in a million in float32 and one in a hundred in bfloat16.
    """
    if channels_last:
        for parameter in model.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    if autocast is None:
        return
    device_type = device_of(model).type
    entered: list[torch.autocast] = []

    def enter(_model: nn.Module, _inputs: Any) -> None:
        entered.append(torch.autocast(device_type, dtype=autocast))
        entered[-1].__enter__()

    def leave(_model: nn.Module, _inputs: Any, _outputs: Any) -> None:
        if entered:
            entered.pop().__exit__(None, None, None)

    model.register_forward_pre_hook(enter)
    model.register_forward_hook(leave, always_call=True)
