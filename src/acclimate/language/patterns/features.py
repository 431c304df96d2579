"""The features of the prompt classifier."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Final

from acclimate.language.patterns.items import ARROWS, Reading
from acclimate.language.patterns.labelled import is_role_pair

_CUES: Final[Mapping[str, str]] = {
    "rule": r"\b(?:rules?|regla|regel|règle|law|hypothes\w+|machine|black box|secret|code|cipher|puzzle|mystery|function|"
    r"mapping|pattern|transformation|grammar|encod\w+|decod\w+|crack|coded|formula|operation|operator|algorithm|mechanism)\b",
    "find_rule": r"\b(?:figure out|work out|find|infer|deduce|discover|learn|guess|determine|induce|identify|derive|spot|"
    r"reverse.engineer|understand|generali[sz]e)\b[^.\n]{0,40}\b(?:rule|pattern|mapping|function|transform\w*|law|box|grammar|"
    r"cipher|code|relation\w*|logic|how|what|operation|formula|system)\b",
    "same_rule": r"\b(?:same|apply the|this|following the|by the|the hidden)\s+(?:\w+\s+)?(?:rule|pattern|transformation|logic|code|way|mapping)\b",
    "if_then": r"\b(?:if|when|whenever|given)\b[^\n.]{1,60}\b(?:then|it returns|the code is|gives|becomes|get|got|says)\b",
    "goes_in": r"\b(?:goes in|comes out|put in|went in|came out|returns|returned|spits? out|outputs?)\b",
    "analogy": r"\b(?:analog\w+|relat(?:es|ion\w*|ed)|in the same way|counterpart|corresponds?|stands? to)\b",
    "is_to_as": r"\b(?:is|are|be|es|ist|est)\s+(?:to|2|a|zu|à)\b[^.\n]{1,90}\b(?:as|like|como|wie|comme)\b",
    "double_colon": r"(?:::|∷)",
    "is_to_often": r"\b(?:is|are|est|ist|es) (?:to|à|zu|a)\b[\s\S]{1,200}\b(?:is|are|est|ist|es) (?:to|à|zu|a)\b",
    "proportion": r"\b(?:proportion|parallel|counterpart|same relation\w*|relates?|goes with|pairs? with|belongs? to|partner)\b",
    "what_becomes": r"\bwhat (?:does|do|is|will|would|happens|becomes|comes)\b[^?\n]*\b(?:become|give|return|mean|do to|produce|written|"
    r"out|show|say|get|turn into|under)\b",
    "written_as": r"\b(?:(?:is|are|was) (?:written|coded|encoded|encrypted|called|said|mapped)|changes?|transforms?|turns?|converts?)\b"
    r"[^\n]{1,60}\b(?:as|to|into)\b",
    "you_get": r"\b(?:i|you|we|they|it) (?:say|says|said|type|typed|press|pressed|get|got|put|saw|see|send|answer|answers|shows?)\b",
    "example": r"\b(?:examples?|exemples?|ejemplos?|beispiele?|esemp\w+|samples?|e\.?g\b|instances?|demonstrations?|demos?|ex\b|shots?|for instance)",
    "like_this": r"\b(?:like (?:this|these|so|that)|same (?:way|style|format|thing)|as above|do the same|in the style|as i did|follow the)\b",
    "next": r"\b(?:comes? next|next (?:number|term|letter|one|item|in|row|two|element|day|word)|continue|sequence|series|missing|"
    r"extend|follows?|sigue|weiter|keep (?:going|counting))\b",
    "apply": r"\b(?:now|your turn|what about|how about|then|next|last (?:one|line)|complete|fill|finish|and for)\b",
    "create": r"\b(?:give me|write|create|generate|make|list|come up with|suggest|provide|brainstorm|show me)\b[^.\n]{0,50}\b(?:examples?|pairs?|list|"
    r"samples?|sentences|ideas|names|questions)\b",
    "work_on": r"\b(?:summari[sz]e|proofread|plot|explain|translate the following|rewrite|review|debug|check|sort|average|sum|total|format|"
    r"parse|convert this|improve|shorten|tl;?dr|analy[sz]e|correct|spell.?check|alphabeti[sz]e|describe|fix)\b",
    "thanks": r"\b(?:please|thanks|thank you|hi|hello|hey|dear)\b",
    "why_question": r"(?:^|[.\n])\s*(?:why|how|who|when|where|is|are|can|could|should|does|do|did|which|what)\b[^\n]*\?",
    "function_call": r"\b[a-zA-Z]\w?\(\s*[^()\n]{1,40}\)\s*(?:=|->|→|↦)",
    "number_list": r"^\s*[(\[#]?(?:\d{1,2}|[a-z]|[ivx]+)(?:[.)\]:]|\s+\S+\s*->)",
    "code": r"[{};]\s*$|\bdef |\breturn\b|\bimport\b|\bconst\b|\bselect\b.*\bfrom\b|\bclass \w+",
    "url": r"https?://|www\.|@\w+\.",
    "time": r"\b\d{1,2}:\d{2}\b",
    "log": r"\b(?:INFO|ERROR|WARN|DEBUG|Traceback)\b",
    "quantity": r"\b\d+\s?(?:g|kg|ml|l|pcs|eggs?|cups?|tbsp|tsp)\b",
    "json": r"[\[{]\s*[\"{\[]",
    "tags": r"</?\w+>|<\|\w+\|>|\[/?INST\]",
    "table": r"^\s*\|?.*\|.*\|?\s*$",
    "role_word": r"(?im)^[\W\d]*(?:input|in|q|question|text|sentence|review|user|prompt|source|english|message|x)\s*\d*\W*[:=>-]",
    "answer_word": r"(?im)(?:^|[\s|/(])(?:output|out|a|answer|label|sentiment|assistant|completion|target|response|y)\s*\d*\W{0,3}[:=>]",
}
_COMPILED: Final = {name: re.compile(cue, re.IGNORECASE | re.MULTILINE) for name, cue in _CUES.items()}
_ENDS: Final[Mapping[str, re.Pattern[str]]] = {
    "separator": re.compile(rf"(?:{ARROWS}|[:=|~→/]|\s-|::|—|–)\s*[\"'`]*\s*(?:```)?\s*$"),
    "gap": re.compile(r"(?:_{2,}|\.{3,}|…|\(\?\)|[=:>→|-]\s*\?+)[\s.\"'`|)\]}]*$"),
    "question": re.compile(r"\?[\s\"')]*$"),
    "stop": re.compile(r"[.!]\s*$"),
    "tag": re.compile(r"(?:<[\w|]+>|\[/INST\]|<\|assistant\|>)\s*(?:</\w+>|<\|\w+\|>)?\s*$"),
    "open_inside": re.compile(rf"(?:{ARROWS}|[:=|])\s*(?:\?+|_{{2,}}|…|\.{{3}})", re.MULTILINE),
}
_LEAST_WORD: Final = 2
_MOST_SHAPED: Final = 3000


def _shapes(text: str) -> set[str]:
    """Return n-grams (n from 3 to 6) of the prompt's word shape: each run of words is ``w``, each number ``9``."""
    signs = re.findall(r"[^\W\d_]+(?:[ ]+[^\W\d_]+)*|\d+(?:[.,]\d+)*|\n+|[^\w\s]|_+", text[:_MOST_SHAPED] + "\n")
    shape = ["9" if s[0].isdigit() else "/" if s[0] == "\n" else "w" if s[0].isalpha() else s[0] for s in signs]
    start, end = ["^", *shape[:8]], [*shape[-8:], "$"]
    found = {"".join(shape[i : i + n]) for n in (3, 4, 5, 6) for i in range(len(shape) - n + 1)}
    found |= {"".join(start[:n]) for n in (3, 4, 5)} | {"".join(end[-n:]) for n in (3, 4, 5, 6)}
    return found


def features(text: str, found: Mapping[str, Reading]) -> dict[str, float]:
    """Return the features of a prompt that are not zero: from the parsers' readings, cue phrases, its end, words."""
    given: dict[str, float] = {"bias": 1.0}
    for name, reading in found.items():
        count = len(reading.pairs)
        has_query = reading.query is not None
        given[f"{name}"] = 1.0
        given[f"{name}:query"] = float(has_query)
        given[f"{name}:open"] = float(reading.query_in_slot)
        given[f"{name}:open_two"] = float(reading.query_in_slot and count >= 2)
        given[f"{name}:two"] = float(count >= 2 and has_query)
        given[f"{name}:three"] = float(count >= 3 and has_query)
        given[f"{name}:numbered"] = float(reading.numbered)
        given[f"{name}:numbered_query"] = float(reading.numbered and has_query)
        given[f"{name}:examples"] = float(reading.announced_as_examples)
        given[f"{name}:form:{reading.form}"] = float(has_query)
        if reading.labels is not None:
            given[f"{name}:roles"] = float(is_role_pair(reading))
            given[f"{name}:roles_query"] = float(is_role_pair(reading) and has_query)
        if count:
            longest = max(len(a) for a, _ in reading.pairs)
            given[f"{name}:short"] = float(longest <= 40 and has_query)
    hits = {name: 1.0 for name, cue in _COMPILED.items() if cue.search(text)}
    given |= {f"cue:{name}": value for name, value in hits.items()}
    given |= {f"end:{name}": 1.0 for name, end in _ENDS.items() if end.search(text)}
    rows = [line for line in text.splitlines() if line.strip()]
    given["one_line"] = float(len(rows) == 1)
    given["long"] = float(len(text) > 600)
    given["any_query"] = float(any(r.query is not None and r.pairs for r in found.values()))
    given["any_two"] = float(any(r.query is not None and len(r.pairs) >= 2 for r in found.values()))
    given["nothing_read"] = float(not found)
    asked = [r for r in found.values() if r.query is not None and r.pairs]
    last = max((text.rfind(r.query) + len(r.query) for r in asked if r.query), default=0)
    given["strong:query_ends"] = float(bool(asked) and len(text.strip()) - last <= 12)
    given["strong:query_only_ends"] = float(given["strong:query_ends"] == 1 and given["any_two"] == 1)
    given["strong:roles"] = float(any(is_role_pair(r) and r.query is not None for r in found.values()))
    slots = [r for r in asked if r.query_in_slot]
    given["strong:open_slot"] = float(bool(slots))
    given["strong:open_two"] = float(any(len(r.pairs) >= 2 for r in slots))
    end = max((text.rfind(r.query) + len(r.query) for r in slots if r.query), default=0)
    given["strong:open_ends"] = float(bool(slots) and len(text.strip()) - end <= 16)
    given["strong:open_two_ends"] = float(given["strong:open_ends"] == 1 and given["strong:open_two"] == 1)
    given["strong:asked_apart"] = float(bool(asked) and not slots)
    quoted = re.search(r"\b(?:do|about|for|with|is|of|to|like)\s+[\"'“‘][^\"'”’]+[\"'”’]", text)
    given["strong:asked_quoted"] = float(bool(asked) and quoted is not None)
    given["strong:examples_asked"] = float("cue:example" in given and any(len(r.pairs) >= 2 for r in asked))
    given["strong:like_asked"] = float("cue:like_this" in given and any(len(r.pairs) >= 2 for r in asked))
    given["strong:work_on"] = float("cue:work_on" in given and not slots)
    given["strong:told"] = float(
        "told" in found and any(f"cue:{c}" in given for c in ("what_becomes", "written_as", "you_get"))
    )
    analogy = re.search(
        r"analog|\bis to\b[\s\S]{1,120}\bis to\b|\bis to\b[^.\n]{1,80}\b(?:as|like)\b|::|same relation",
        text,
        re.IGNORECASE,
    )
    given["strong:analogy"] = float(analogy is not None and bool(found))
    rule = any(
        f"cue:{cue}" in given for cue in ("rule", "find_rule", "same_rule", "if_then", "function_call", "goes_in")
    )
    given["strong:rule"] = float(rule and bool(asked) and not analogy)
    given["strong:rule_pairs"] = float(rule and given["any_two"] == 1 and not analogy)
    given["strong:plain_pairs"] = float(
        given["any_two"] == 1
        and not rule
        and not analogy
        and not given["strong:roles"]
        and not any(r.numbered for r in asked)
    )
    given["strong:numbered"] = float(any(r.numbered and len(r.pairs) >= 2 for r in asked) and not rule and not analogy)
    given["strong:called_examples"] = float(any(r.announced_as_examples for r in asked))
    given["strong:sequence"] = float("sequences" in found and not given["any_two"])
    given["strong:frame"] = float("repeated" in found and found["repeated"].query is not None)
    for cue in (
        "rule",
        "find_rule",
        "same_rule",
        "if_then",
        "goes_in",
        "analogy",
        "example",
        "next",
        "work_on",
        "function_call",
    ):
        if f"cue:{cue}" in given:
            given[f"cue:{cue}&query"] = given["any_query"]
    for piece in _shapes(text):
        given[f"shape:{piece}"] = 1.0
    spoken = re.findall(r"[^\W\d_]+", text.lower())
    for first, second in set(pairwise(spoken)):
        given[f"words:{first} {second}"] = 1.0
    for word in set(spoken):
        if len(word) >= _LEAST_WORD:
            given[f"word:{word}"] = 1.0
    return {name: value for name, value in given.items() if value}
