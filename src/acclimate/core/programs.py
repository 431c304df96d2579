"""Models whose weights cannot be trained: TorchScript and exported programs, and passes that record no gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from acclimate.core import norm
from acclimate.errors import ConfigError, TTTNotSupportedError, first_line


class Program(nn.Module):
    """A module around a TorchScript or exported program, which shows none of the program's layers and weights.

    Programs take neither hooks nor modes nor other weights. The module takes hooks, so that methods which change only
    images or outputs work.

    Args:
        program: called with the module's arguments.
        kind: ``TorchScript`` or ``torch.export``, for messages.
    """

    def __init__(self, program: Callable[..., Any], kind: str) -> None:
        super().__init__()
        # In a tuple, so that torch does not take it for a child.
        self._program = (program,)
        self.kind = kind

    @classmethod
    def of(cls, model: Any) -> Program | None:
        """Return a module around ``model`` if it is a program (also an ``ExportedProgram``); None if it is not."""
        if isinstance(model, torch.export.ExportedProgram):
            return cls(model.module(), "torch.export")
        kind = _kind(model)
        return None if kind is None else cls(model, kind)

    @property
    def program(self) -> Any:
        """The program."""
        return self._program[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the program's outputs.

        Raises:
            ConfigError: the program was exported for inputs of another shape.
        """
        try:
            return self.program(*args, **kwargs)
        except AssertionError as error:
            # The guards of exported programs.
            raise ConfigError(
                f"the {self.kind} program does not take this batch: {first_line(error)}; export it with a dynamic "
                "batch dimension, or use the batch size that it was exported with"
            ) from error


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside ``DataParallel`` and ``DistributedDataParallel`` wrappers; other modules unchanged.

    The wrappers are for training on several devices: they copy the module, or synchronise gradients in the background,
    which does not fit weights that are exchanged and restored between passes.
    """
    while isinstance(model, DataParallel | DistributedDataParallel):
        model = model.module
    return model


def refuse_programs(model: nn.Module, *, changes_layers: bool) -> None:
    """Check that a model takes hooks, and if ``changes_layers`` is true that its layers can be changed.

    Raises:
        TTTNotSupportedError: it is a program.
    """
    kind = model.kind if isinstance(model, Program) else _kind(model)
    if kind is None:
        return
    if changes_layers:
        raise TTTNotSupportedError(
            f"the model is a {kind} program, whose layers and weights cannot be changed; adapt the module that it was "
            "made from, or use spectrum or blend with source images, which change only the images"
        )
    if not isinstance(model, Program):
        raise TTTNotSupportedError(
            f"the model is a {kind} program, which takes no hooks; wrap it with acclimate.core.programs.Program.of"
        )


def refuse_inference_parameters(model: nn.Module) -> None:
    """Check that the parameters of a model can be trained.

    Raises:
        TTTNotSupportedError: they were created in inference mode.
    """
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise TTTNotSupportedError(
            f"the parameters of {type(model).__name__} were created in torch.inference_mode, and cannot be trained; "
            f"create the model outside of it, or {gradient_free(model)}"
        )


def gradient_free(model: nn.Module) -> str:
    """Return an advice that names the methods without gradient that work on ``model``."""
    if norm.batch_norms(model):
        return "use bn or blend, which compute no gradient"
    return "use spectrum or blend with source images, which compute no gradient"


def no_gradient(model: nn.Module, method: str) -> str:
    """Return the message for a model whose outputs record no gradient."""
    return (
        f"{method} learns from gradients, and the outputs of {type(model).__name__} have none: its forward pass runs "
        "under torch.no_grad or torch.inference_mode, or the outputs do not depend on the trainable parameters; take "
        f"that out of the forward pass, or {gradient_free(model)}"
    )


def _kind(model: Any) -> str | None:
    if isinstance(model, torch.jit.ScriptModule | torch.jit.ScriptFunction):
        return "TorchScript"
    # Modules of exported programs have functions eval and train of their own, which raise.
    if isinstance(model, torch.fx.GraphModule) and "eval" in vars(model):
        return "torch.export"
    return None
