"""Names that people give to inputs and outputs of worked examples, in several languages."""

from __future__ import annotations

from typing import Final

#: Labels of inputs, and labels of outputs.
ASKING: Final = frozenset(
    """input in inputs q question query prompt user human customer me student text sentence review comment tweet message
    source src original before word words singular present problem x given premise headline title article passage phrase
    raw from en english country number term item statement claim instruction old expression email ticket request name
    example_input context document observation stimulus frage eingabe entrada entrée pregunta question_text eng verb
    noun adjective formula element celsius product dish animal company city date string code snippet utterance speaker
    req cmd command task case obs trigger signal mot phrase palabra wort domanda vraag ask demande plaintext plain
    key left lhs infinitive symptom species wrong messy informal subject sample data line value start
    paragraph post note notes description abstract story background entity topic dialogue conversation docstring
    função texto satz texte tekst вопрос текст 文 问题 問題 質問 输入 入力 原文 评论 評論 문제 입력 질문
    """.split()
)
ANSWERING: Final = frozenset(
    """output out outputs a answer ans response completion reply assistant ai bot agent model system label sentiment class
    category tag topic target tgt translation result after plural past solution y return intent emotion tone rating
    french german spanish italian dutch latin portuguese swedish fr de es it language capital symbol summary corrected
    correction fix to becomes conclusion hypothesis entity entities verdict decision score type genre antonym synonym
    opposite rewrite rewritten formal normalized normalised parsed abbreviation acronym value antwort ausgabe salida
    sortie réponse respuesta gpt teacher res result_text polarity new spam priority department gender part_of_speech
    fahrenheit right clean lemma expected expansion definition cipher ciphertext encoded coded decoded group
    family rhs number name english date code currency unit color colour sound risposta antwoord resp
    diagnosis fixed tidy roman binary hex emoji rhyme kind pos ner key
    sql json tl;dr keywords explanation thought rationale function meaning gloss judgement judgment severity action
    ответ тема 判定 答案 回答 出力 输出 情感 标签 翻译 译文 답변 출력 답
    """.split()
)
#: Labels of the turns of a conversation: of who asks, and of who answers.
TURNS: Final = frozenset(
    {"user", "human", "customer", "me", "student", "prompt", "client", "visitor", "caller", "guest"}
)
REPLIES: Final = frozenset({"assistant", "ai", "bot", "agent", "model", "gpt", "chatbot", "support"})


def is_asking(name: str) -> bool:
    """Return whether ``name`` is a common label of an input."""
    return name.replace(" ", "_") in ASKING or name.rpartition(" ")[2] in ASKING


def is_answering(name: str) -> bool:
    """Return whether ``name`` is a common label of an output."""
    return name.replace(" ", "_") in ANSWERING or name.rpartition(" ")[2] in ANSWERING
