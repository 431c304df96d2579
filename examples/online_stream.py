"""A camera whose sensor turns noisy: adapt while predicting, and see what every step did.

python examples/online_stream.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from acclimate import Classification, Eata, Session
from acclimate.vision.data.corruptions import corrupt
from acclimate.vision.demos import digits
from acclimate.vision.models.torch_adapter import load_checkpoint


def main() -> None:
    checkpoint = Path(tempfile.mkdtemp()) / "digits.safetensors"
    print(f"trained on clean digits: {100 * digits.train(checkpoint, epochs=8):.1f} % right")
    model = digits.DigitNetwork().eval()
    load_checkpoint(model, checkpoint, trust_pickle=False)

    images, classes = (part[digits.TRAINING_IMAGES :] for part in digits.digit_images())
    noisy = np.stack([corrupt(image, "gaussian_noise", severity=5, seed=number) for number, image in enumerate(images)])
    stream = torch.from_numpy(noisy).permute(0, 3, 1, 2).float().div(255)
    labels = torch.from_numpy(classes)  # for the score alone: the session never sees them

    with torch.no_grad():
        print(f"in the noise, as it is: {100 * float((model(stream).argmax(1) == labels).float().mean()):.1f} % right")

    right = 0
    # Mirrored digits are other digits, so views must not be mirrored.
    with Session(model, Eata(), task=Classification(flips=False), restore=True) as session:
        for batch, truth in zip(stream.split(64), labels.split(64), strict=True):
            logits, step = session.adapt_and_predict(batch)
            right += int((logits.argmax(1) == truth).sum())
            loss = "-" if step.loss is None else f"{step.loss:.3f}"
            print(f"  step {step.index:2d}  {step.verdict:8s} loss {loss}  learned from {step.used} of {step.samples}")
    print(f"in the noise, adapting: {100 * right / len(labels):.1f} % right")


if __name__ == "__main__":
    main()
