"""What requests and answers look like: OpenAI's shapes, and the ``ttt`` object for adaptation."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from acclimate.language.examples import MAX_EXAMPLE_CHARACTERS

#: The model that answers about images and sounds.
MEDIA_MODEL: Final = "media"
#: Longest text of a message or prompt; requests are limited in bytes before.
_MAX_TEXT = 2_000_000
Text = Annotated[str, Field(max_length=_MAX_TEXT)]
ExampleText = Annotated[str, Field(min_length=1, max_length=MAX_EXAMPLE_CHARACTERS)]
#: Name of an adapter: one component of a path at most, on every system.
AdapterName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


class Strict(BaseModel):
    """Refuses unknown fields and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())


class ExampleItem(Strict):
    """An input with its answer."""

    input: ExampleText
    output: ExampleText


class TTTOptions(Strict):
    """How a request is adapted to its examples.

    ``mode``: ``auto`` lets the gate decide; ``off`` answers without adapting, the prompt as it stands; ``force`` adapts
    wherever that is possible.
    """

    mode: Literal["auto", "off", "force"] = "auto"
    examples: list[ExampleItem] | None = Field(None, description="Given directly; nothing is detected then.")
    rank: int | None = Field(None, ge=1, le=64, description="Of the low-rank weights.")
    steps: int | None = Field(None, ge=1, le=64, description="Training steps.")
    confidence_threshold: float | None = Field(None, ge=0, le=1, description="Below it the base model answers.")
    votes: int = Field(1, ge=1, le=16, description="Orders of the examples that are asked; the majority answers.")
    budget_s: float | None = Field(None, ge=0, description="Most seconds of computing for gate and training.")


class TextPart(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class ImageUrl(BaseModel):
    """An image, as a data URL."""

    model_config = ConfigDict(extra="ignore")

    url: str


class ImagePart(Strict):
    """An image in a message, for the model media."""

    type: Literal["image_url"]
    image_url: ImageUrl


class InputAudio(BaseModel):
    """A sound, in base64."""

    model_config = ConfigDict(extra="ignore")

    data: str


class AudioPart(Strict):
    """A sound in a message, for the model media."""

    type: Literal["input_audio"]
    input_audio: InputAudio


class Message(BaseModel):
    """A turn of a conversation."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[Annotated[TextPart | ImagePart | AudioPart, Field(discriminator="type")]]

    @property
    def parts(self) -> list[TextPart | ImagePart | AudioPart]:
        """The content in parts."""
        return [TextPart(type="text", text=self.content)] if isinstance(self.content, str) else self.content

    @property
    def text(self) -> str:
        """The content as one text."""
        return "\n".join(part.text for part in self.parts if isinstance(part, TextPart))


class StreamOptions(BaseModel):
    """What a stream carries."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


class ResponseFormat(BaseModel):
    """Only text can be asked for."""

    model_config = ConfigDict(extra="allow")

    type: str = "text"


class GenerationRequest(Strict):
    """What both kinds of request have in common."""

    model: str = Field(max_length=4096)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, description="0, the default, takes the likeliest token.")
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1)
    stop: (
        Annotated[str, Field(min_length=1, max_length=1000)]
        | list[Annotated[str, Field(min_length=1, max_length=1000)]]
        | None
    ) = Field(None, description="At most 16 texts.")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    ttt: TTTOptions | None = None
    # What clients send and what changes nothing here.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    # What would change the answer, and is refused.
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    @field_validator("stop")
    @classmethod
    def _few(cls, value: Any) -> Any:
        if isinstance(value, list) and len(value) > 16:
            raise ValueError("at most 16 stop texts are supported")
        return value

    @model_validator(mode="after")
    def _supported(self) -> GenerationRequest:
        for name in ("frequency_penalty", "presence_penalty", "logit_bias"):
            if getattr(self, name):
                raise ValueError(f"{name} is not supported; leave it out")
        return self

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """The stop texts as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class ChatRequest(GenerationRequest):
    """The body of ``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1, max_length=2048)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _chat_supported(self) -> ChatRequest:
        if self.response_format is not None and self.response_format.type != "text":
            raise ValueError(
                f"response_format {self.response_format.type!r} is not supported: answers are text; leave it out, and "
                f"show the format in examples"
            )
        if self.tools or self.tool_choice not in (None, "none", "auto"):
            raise ValueError("tools are not supported; leave out tools and tool_choice")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self

    @property
    def has_media(self) -> bool:
        """Whether a message holds an image or a sound."""
        return any(not isinstance(part, TextPart) for message in self.messages for part in message.parts)


class CompletionRequest(GenerationRequest):
    """The body of ``POST /v1/completions``."""

    prompt: Text | list[Text]
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None

    @model_validator(mode="after")
    def _completion_supported(self) -> CompletionRequest:
        if isinstance(self.prompt, list) and len(self.prompt) != 1:
            raise ValueError(f"one prompt a request is supported, got {len(self.prompt)}; send one request for each")
        if self.echo or self.suffix or (self.best_of or 1) > 1:
            raise ValueError("echo, suffix and best_of are not supported; leave them out")
        return self

    @property
    def text(self) -> str:
        """The prompt."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]


class AdapterRequest(Strict):
    """The body of ``POST /v1/adapters``."""

    name: AdapterName
    model: str | None = Field(None, max_length=4096, description="Base model; unset takes the first one served.")
    examples: list[ExampleItem] = Field(min_length=2)
    rank: int | None = Field(None, ge=1, le=64)
    steps: int | None = Field(None, ge=1, le=64)


class LoadRequest(BaseModel):
    """The body of ``POST /v1/load_lora_adapter``, as vLLM has it."""

    model_config = ConfigDict(extra="forbid")

    lora_name: AdapterName
    lora_path: str = Field(min_length=1, max_length=4096, description="Below the configured folder.")
    load_inplace: bool = Field(False, description="Replace an adapter of this name.")
    base_model_name: str | None = Field(None, max_length=4096)


class UnloadRequest(BaseModel):
    """The body of ``POST /v1/unload_lora_adapter``, as vLLM has it."""

    model_config = ConfigDict(extra="forbid")

    lora_name: AdapterName
    lora_int_id: int | None = None


class Usage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    trained_tokens: int = Field(0, description="That went through the model in training steps; not in the total.")


class TTTReport(BaseModel):
    """What was done about the examples of a request."""

    used: bool = Field(description="Whether the adapted model answered.")
    status: str = Field(description="adapted, declined, fallback or plain.")
    reason: str | None = Field(None, description="Why the base model answered.")
    pattern: str | None = Field(None, description="Kind of examples that was found.")
    examples: int = 0
    steps: int = 0
    confidence: float | None = Field(None, description="Probability that the adapted model is exactly right.")
    base_confidence: float | None = None
    held_out_before: float | None = Field(None, description="Share of held-out examples that the base model answers.")
    held_out_after: float | None = Field(None, description="The same with adapters trained on the other examples.")
    cached: bool = False
    seconds: dict[str, float] = Field(default_factory=dict)
    adapter_id: str | None = None
    experiment: str | None = None
    arm: str | None = None
    warnings: list[str] = Field(default_factory=list)


class AdapterInfo(BaseModel):
    """An adapter that can be asked as a model."""

    id: str = Field(description="base:name, the model to ask for.")
    object: Literal["adapter"] = "adapter"
    name: str
    base_model: str
    created: int
    examples: int
    rank: int
    bytes: int
    source: Literal["examples", "folder"]
