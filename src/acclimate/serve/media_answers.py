"""The model ``media``: conversations whose turns are images or sounds, and their labels.

A user's turn holds one image or sound, the assistant's turn after it is its label; the last turn is the open one.
"""

from __future__ import annotations

import base64
import binascii
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

from acclimate.errors import DataError
from acclimate.media import (
    Item,
    Limits,
    MediaEngine,
    MediaExample,
    MediaReport,
    image_from_bytes,
    sound_from_bytes,
)
from acclimate.serve.schemas import MEDIA_MODEL, AudioPart, ChatRequest, ImagePart, Message
from acclimate.serve.settings import ServerSettings
from acclimate.serve.worker import BusyError

_RETRY_AFTER_S: Final = 5.0


class MediaAnswers:
    """Answers conversations of images and sounds, one at a time; may be called from several threads.

    Args:
        settings: of the server.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.limits = Limits(
            max_bytes=int(settings.max_body_mib * 2**20),
            max_pixels=settings.max_image_pixels,
            max_seconds=settings.max_sound_s,
            max_examples=settings.max_examples,
        )
        self._engine = MediaEngine(limits=self.limits, device=settings.device)
        self._one_at_a_time = threading.Lock()
        self._counting = threading.Lock()
        self._max_waiting = settings.max_waiting
        self._there = 0

    def answer(self, body: ChatRequest) -> MediaReport:
        """Return the answer to a conversation.

        Raises:
            DataError: a turn holds no readable image or sound, or the examples cannot be learned from.
            BusyError: as many requests wait as may.
        """
        with self._counting:
            if self._there > self._max_waiting:
                raise BusyError("too many requests with images or sounds; try again later", _RETRY_AFTER_S)
            self._there += 1
        try:
            # Decoding too: many images of the largest size at a time would take the memory.
            with self._one_at_a_time:
                examples, query = self._read(body.messages)
                return self._engine.ask(examples, query)
        finally:
            with self._counting:
                self._there -= 1

    def _read(self, messages: Sequence[Message]) -> tuple[list[MediaExample], Item]:
        turns = [turn for turn in messages if turn.role not in ("system", "developer")]
        shape = "let turns alternate: the user's with one image or sound, the assistant's with its label, and end with "
        if len(turns) % 2 == 0 or any(turn.role != ("user", "assistant")[k % 2] for k, turn in enumerate(turns)):
            raise DataError(
                f"the conversation has {len(turns)} turns that cannot be read as examples; {shape}the user's"
            )
        if len(turns) // 2 > self.limits.max_examples:
            raise DataError(f"{len(turns) // 2} examples given, at most {self.limits.max_examples} are used")
        items = [self._item(turn, number) for number, turn in enumerate(turns[::2], 1)]
        examples = [MediaExample(item, turn.text) for item, turn in zip(items, turns[1::2], strict=False)]
        return examples, items[-1]

    def _item(self, turn: Message, number: int) -> Item:
        parts = [part for part in turn.parts if isinstance(part, ImagePart | AudioPart)]
        if len(parts) != 1:
            raise DataError(f"turn {number} of the user holds {len(parts)} images and sounds; give one")
        (part,), name = parts, f"turn {number}"
        if isinstance(part, AudioPart):
            return sound_from_bytes(_decoded(part.input_audio.data, name), name=name, limits=self.limits)
        head, comma, data = part.image_url.url.partition(",")
        if not comma or not head.startswith("data:") or not head.endswith(";base64"):
            raise DataError(f"{name}: give the image as a data URL (data:image/png;base64,...); no address is fetched")
        return image_from_bytes(_decoded(data, name), name=name, limits=self.limits)

    @staticmethod
    def completion(report: MediaReport, request_id: str) -> dict[str, Any]:
        """Return OpenAI's shape of an answer, with the report beside it."""
        return {
            "id": f"chatcmpl-{request_id}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": MEDIA_MODEL,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": report.answer},
                    "finish_reason": "stop",
                    "logprobs": None,
                }
            ],
            "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
            "media": report.to_dict(),
        }


def _decoded(data: str, name: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{name}: the content is not base64 ({error})") from error
