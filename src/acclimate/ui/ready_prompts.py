"""Prompts that can be tried at once: all of them work on spark, which ships with the package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class ReadyPrompt:
    """A prompt to try.

    Attributes:
        name: in addresses.
        title: in the list.
        prompt: with examples and question.
        answer: that is right; None where there is none.
        adapts: whether adapting is worth it; where it is not, the gate declines.
    """

    name: str
    title: str
    prompt: str
    answer: str | None
    adapts: bool = True


READY: Final = (
    ReadyPrompt(
        "quotes",
        "Put words into a tag",
        "stone -> <q>stone</q>\nlamp -> <q>lamp</q>\nriver -> <q>river</q>\ncabin -> <q>cabin</q>\nmelon ->",
        "<q>melon</q>",
    ),
    ReadyPrompt(
        "log-lines",
        "Take the message out of log lines",
        "2026-01-03 error disk full => disk full\n2026-01-04 error no route => no route\n"
        "2026-02-11 error bad key => bad key\n2026-03-02 error lost link => lost link\n2026-04-19 error cold boot =>",
        "cold boot",
    ),
    ReadyPrompt(
        "dates",
        "Turn dates into ISO 8601",
        "03/11/2024 -> 2024-11-03\n21/07/2019 -> 2019-07-21\n14/02/2022 -> 2022-02-14\n30/09/2018 -> 2018-09-30\n"
        "08/12/2021 -> 2021-12-08\n26/04/2023 -> 2023-04-26\n12/01/2017 -> 2017-01-12\n17/05/2020 ->",
        "2020-05-17",
    ),
    ReadyPrompt(
        "initials",
        "Make initials of names",
        "ada stone -> A.S.\nbela moor -> B.M.\ncora flint -> C.F.\ndora hale -> D.H.\nemil ward -> E.W.\nfinn marsh ->",
        "F.M.",
    ),
    ReadyPrompt(
        "json",
        "Write settings as JSON",
        'name=kettle -> {"name": "kettle"}\nname=spoon -> {"name": "spoon"}\nname=plate -> {"name": "plate"}\n'
        'name=glass -> {"name": "glass"}\nname=knife ->',
        '{"name": "knife"}',
    ),
    ReadyPrompt(
        "telephone",
        "Mask telephone numbers",
        "call 555-0143 -> call ###-####\ncall 555-0187 -> call ###-####\nring 555-0121 -> ring ###-####\n"
        "text 555-0166 -> text ###-####\ncall 555-0199 ->",
        "call ###-####",
    ),
    ReadyPrompt(
        "columns",
        "Put columns into another order",
        "kettle,4,blue -> blue: 4 kettle\nspoon,7,grey -> grey: 7 spoon\nplate,2,white -> white: 2 plate\n"
        "glass,9,green -> green: 9 glass\nknife,3,black ->",
        "black: 3 knife",
    ),
    ReadyPrompt(
        "list-items",
        "Write a numbered list as HTML",
        "1. kettle => <li>kettle</li>\n2. spoon => <li>spoon</li>\n3. plate => <li>plate</li>\n"
        "4. glass => <li>glass</li>\n5. knife =>",
        "<li>knife</li>",
    ),
    ReadyPrompt(
        "capitals",
        "Declined: the model can do this already",
        "Input: stone\nOutput: STONE!\n\nInput: lamp\nOutput: LAMP!\n\nInput: river\nOutput: RIVER!\n\n"
        "Input: cabin\nOutput: CABIN!\n\nInput: melon\nOutput:",
        "MELON!",
        adapts=False,
    ),
    ReadyPrompt(
        "coins",
        "Declined: there is no rule to learn",
        "a1 -> heads\nb7 -> tails\nc3 -> tails\nd9 -> heads\ne4 -> heads\nf2 ->",
        None,
        adapts=False,
    ),
)


def ready_prompt(name: str) -> ReadyPrompt | None:
    """Return the prompt with this name, or None."""
    return next((prompt for prompt in READY if prompt.name == name), None)
