"""What captioners are asked, and what is made of their answers."""

from __future__ import annotations

import re

# What a LoRA learns is what its captions leave unsaid: said things stay under the prompt's control.
CAPTION_PRESETS = {
    "style": (
        "Describe what can be seen: who or what is there, what they look like and wear, what they do and how they "
        "move, the place, the time of day, the framing and what the camera does. Say nothing about how the pictures "
        "are made or look: no style, medium, technique, colour grading, lighting mood, quality or film terms, and no "
        "names of artists or films."
    ),
    "subject": (
        "The main subject is {subject}. Call it that and nothing else. Say nothing about what always belongs to it: "
        "not its face, hair, build, age, materials, colours or markings. Describe all the rest exactly: what it does "
        "and how it moves, its expression and pose, clothes and things that it could take off or put down, others "
        "around it, the place, the light, the framing and what the camera does."
    ),
    "motion": (
        "Describe movement exactly and in the order it happens: who or what moves, which part of it, in which "
        "direction, how fast, how far, how it starts and ends, and what moves with it or in answer to it. Then what "
        "the camera does: still, pan, tilt, dolly, crane, orbit, handheld or zoom, in which direction and how fast. "
        "Name subject, place and light in a few plain words only."
    ),
    "general": (
        "Describe what can be seen: the main subject and what it looks like, what it does and how it moves, the "
        "others, the place, the light and colours, the style of the pictures, the framing and what the camera does."
    ),
}
"""By what the LoRA is to learn. `{subject}` is put in by `instruction_for`."""

FORM = (
    "Write one paragraph of 50 to 100 words in plain English, in the present tense. Begin with the subject itself, not "
    "with 'The video'. Say only what is certain. No introduction, no headings, no lists, no guesses about feelings or "
    "meaning, no remarks about what is not there."
)
STILL = "It is a single still picture: describe no movement and no camera."
HEARD = "Also say what is heard: speech word for word, who speaks and how, music and other sounds."

THINKING = re.compile(r"<(think|thinking|reasoning)>.*?(</\1>|\Z)", re.DOTALL | re.IGNORECASE)
TOKENS = re.compile(r"<\|[^|<>]{1,40}\|>|</?(?:answer|caption|s|end_of_turn|eos|pad)>", re.IGNORECASE)
OPENINGS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(?:sure|certainly|of course|okay|ok|absolutely)\b[^.:!\n]{0,40}[.:!,]\s*",
        r"(?:here(?:['’]s| is| are)|below is|this is)\b[^.:\n]{0,80}"
        r"\b(?:caption|description|paragraph)\b[^.:\n]{0,60}:\s*",
        r"(?:the |video |image |final )*(?:caption|description|answer)\s*:\s*",
        r"(?:in )?(?:the|this) (?:short )?(?:video(?: clip)?|clip|footage|image|picture|scene)"
        r" (?:shows|depicts|features|captures|presents|displays|is of|opens with|begins with|starts with)\s+",
        r"(?:in|throughout) (?:the|this) (?:short )?(?:video(?: clip)?|clip|footage|image|picture|scene),\s*",
    )
)
REFUSAL = re.compile(
    r"(?:i['’]?m sorry|sorry,|i apologi[sz]e|i (?:can(?:['’]t|not)|am unable|['’]m unable|am not able)|"
    r"i['’]m (?:unable|not able)|as an ai\b|unable to (?:describe|assist|help|process))",
    re.IGNORECASE,
)
PAIRS = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "„": "“", "(": ")", "[": "]"}


def instruction_for(preset: str, own: str = "", *, trigger: str = "", still: bool = False, heard: bool = False) -> str:
    """What to ask of one clip: the preset, or an instruction of one's own, which may hold `{trigger}`."""
    if own.strip():
        asked = " ".join(own.split()).replace("{trigger}", trigger)
    else:
        subject = f"called {trigger}" if trigger else "the person or thing seen most"
        asked = f"{CAPTION_PRESETS[preset].replace('{subject}', subject)} {FORM}"
        if not trigger:
            asked = asked.replace("Call it that and nothing else.", "Call it by one plain word, such as man or robot.")
    return " ".join([asked, *[STILL] * still, *[HEARD] * heard])


def clean_caption(answer: str) -> str:
    """The caption in an answer, on one line: without thinking, mark-up, introduction, quotation marks or a cut end.

    Empty where nothing is left.
    """
    text = answer.encode("utf-8", errors="ignore").decode().replace("\ufeff", "")  # what no file could hold
    text = THINKING.sub(" ", text)
    text = re.split(r"</(?:think|thinking|reasoning)>", text, flags=re.IGNORECASE)[-1]
    text = _without_markup(TOKENS.sub(" ", text))
    before = None
    while text != before:
        before = text
        text = _without_quotes(text.strip())
        for opening in OPENINGS:
            if (found := opening.match(text)) and found.end() < len(text):
                text = text[found.end() :]
    text = _without_cut_end(" ".join(text.split()))
    return text[:1].upper() + text[1:]


def is_refusal(caption: str) -> bool:
    """Whether a model says that it will not, or cannot, instead of describing."""
    return bool(REFUSAL.match(caption))


def _without_markup(text: str) -> str:
    text = re.sub(r"^[^\S\n]*```\w*[^\S\n]*$", " ", text, flags=re.MULTILINE)
    if re.search(r"^[^\S\n]*[^#\s]", text, re.MULTILINE):  # headings, where they are not all there is
        text = re.sub(r"^[^\S\n]*#{1,6}\s+.*$", " ", text, flags=re.MULTILINE)
    text = re.sub(r"^[^\S\n]*(?:#{1,6}|[-*•]|\d{1,2}[.)])\s+", "", text, flags=re.MULTILINE)
    text = re.sub(r"^[^\S\n]*-{3,}[^\S\n]*$", " ", text, flags=re.MULTILINE)
    return re.sub(r"\*{1,3}|__|`", "", text)


def _without_quotes(text: str) -> str:
    """Without the quotation marks around the whole of it."""
    if len(text) > 1 and PAIRS.get(text[0]) == text[-1]:
        inner = text[1:-1]
        if text[0] not in inner and text[-1] not in inner:
            return inner.strip()
    return text


def _without_cut_end(text: str) -> str:
    """Without a last sentence that breaks off, where there are whole ones before it."""
    if re.search(r"[.!?…。！？][\"'”’)\]]*$", text):
        return text
    ends = list(re.finditer(r"[.!?…。！？][\"'”’)\]]*(?=\s|$)|[。！？]", text))
    return text[: ends[-1].end()] if ends else text
