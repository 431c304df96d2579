"""Reading the turns of a conversation: checking them, and finding worked examples among them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from acclimate.errors import DataError
from acclimate.language.examples import MAX_EXAMPLE_CHARACTERS, Example, cleaned
from acclimate.language.prompts import Message

_ROLES: Final = ("system", "developer", "user", "assistant")
#: Answers of an ordinary conversation are sentences; those of worked examples are labels, values or short texts. Longer
#: ones are taken for examples only where the user says that they are.
_MOST_ANSWER_WORDS: Final = 6
#: Fewer turns are too little to tell a series of examples from a conversation that happens to have short replies.
_LEAST_TURNS: Final = 3


def read_turns(messages: Iterable[Message]) -> tuple[Message, ...]:
    """Return the messages with role and content alone; ``developer`` becomes ``system``, as chat templates know it.

    Raises:
        DataError: there is none, a role is unknown, a content is no text, or the last one is not the user's.
    """
    turns: list[Message] = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise DataError(f"message {number} is {message!r}; it needs 'role' and 'content'")
        role, content = message["role"], message["content"]
        if role not in _ROLES:
            raise DataError(f"message {number} has the role {role!r}; give one of {', '.join(_ROLES)}")
        if not isinstance(content, str):
            raise DataError(f"message {number} has a content that is no text: {content!r}")
        # Half of a surrogate pair, which JSON can carry, is no text and cannot be encoded.
        text = "".join(c for c in content if unicodedata.category(c) != "Cs")
        turns.append({"role": "system" if role == "developer" else role, "content": text})
    if not turns:
        raise DataError("there are no messages; give at least one of the user")
    if turns[-1]["role"] != "user" or not cleaned(turns[-1]["content"]):
        raise DataError(f"the last message must be a text of the user, got the role {turns[-1]['role']!r}")
    return tuple(turns)


def examples_in_turns(turns: Sequence[Message], *, even_if_unlike: bool = False) -> tuple[Example, ...]:
    """Return the worked examples that earlier turns are: each question of the user with the reply to it.

    Turns are worked examples where user and assistant alternate and every reply is short, on one line, and no sentence
    that ends in a full stop, unless all of them do.

    Args:
        turns: as :func:`read_turns` returns them.
        even_if_unlike: take all earlier turns for examples, whatever they look like.

    Returns:
        Nothing where they are an ordinary conversation.
    """
    earlier = [turn for turn in turns[:-1] if turn["role"] != "system"]
    asked, replies = earlier[::2], earlier[1::2]
    alternate = len(asked) == len(replies) and all(
        one["role"] == "user" and other["role"] == "assistant" for one, other in zip(asked, replies, strict=True)
    )
    if not alternate:
        return ()
    pairs = [
        Example(cleaned(one["content"]), cleaned(other["content"])) for one, other in zip(asked, replies, strict=True)
    ]
    if not all(_is_usable(text) for pair in pairs for text in (pair.input, pair.output)):
        return ()
    if even_if_unlike:
        return tuple(pairs)
    short = all("\n" not in p.output and len(p.output.split()) <= _MOST_ANSWER_WORDS for p in pairs)
    ends = {p.output[-1] in ".!?" for p in pairs}
    return tuple(pairs) if short and len(pairs) >= _LEAST_TURNS and len(ends) == 1 else ()


def _is_usable(text: str) -> bool:
    return 0 < len(text) <= MAX_EXAMPLE_CHARACTERS
