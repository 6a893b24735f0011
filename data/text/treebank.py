"""English words as the Penn Treebank's tokenizer has them in captions, where the field takes them from (pycocoevalcap's Java program).

The text is lower-case already. What that program leaves out as punctuation is no word here; brackets are words in its spelling, and
so are marks of several signs. Letters of other scripts follow the same rules.
"""

from __future__ import annotations

from collections.abc import Iterator

import regex

_ABBREVIATED = (
    "adj|adm|al|apr|ariz|ala|assn|asst|atty|aug|ave|bldg|blvd|bros|calif|capt|cf|cmdr|co|col|colo|conn|corp|cos|cpl|ct|dec|"
    "dept|det|dr|drs|est|etc|feb|fig|fla|fri|ft|ga|gen|gov|hon|inc|ind|insp|jan|jr|jul|jun|kan|ky|lt|ltd|maj|mar|md|messrs|"
    "mfg|mich|minn|mlle|mme|mo|mon|mont|mr|mrs|ms|msgr|mt|neb|nev|nos|nov|oct|okla|pp|pres|prof|pvt|rd|rep|rev|rt|sen|sep|"
    "sept|sgt|spc|sq|sr|st|ste|supt|tel|tenn|thu|thurs|tue|tues|univ|va|vs|vt|wed|wis|wyo"
)
ABBREVIATIONS = rf"(?<![\p{{L}}\p{{N}}'])(?:{_ABBREVIATED})"

_LETTERS = r"[\p{L}\p{N}][\p{L}\p{M}\p{N}]*"
_NO_WORD_BEFORE = r"(?<![\p{L}\p{N}])"
WORD = regex.compile(
    rf"""-[lr][rsc]b-                                                          # brackets, as they are spelled
       | (?:https?://|www\.)[^\s,;"<>()]*[\p{{L}}\p{{N}}/]
       | [\w.+-]+@[\w-]+(?:\.[\w-]+)+ | [@\#][\p{{L}}_]\w* | </?[a-z]+> | {_NO_WORD_BEFORE}c(?:\+\+|\#)
       | {_NO_WORD_BEFORE}(?:ph\.d\.|\p{{L}}(?:\.\p{{L}}(?!\p{{L}}))+\.?|[a-z]\.(?!\p{{L}}))   # u.s. b.
       | {ABBREVIATIONS}\.(?![\p{{L}}\p{{N}}]) | {_NO_WORD_BEFORE}no\.(?=\s?\p{{N}})
       | (?:{_NO_WORD_BEFORE}|(?<=\p{{N}}:\p{{N}}\p{{N}})-|\+)\p{{N}}+(?::\p{{N}}+)+      # 2:30-3:30
       | (?:(?<![-'\p{{L}}\p{{N}}])-|\+|{_NO_WORD_BEFORE}(?=\p{{N}}+[.,]\p{{N}}))\p{{N}}+(?:[.,]\p{{N}}+)*(?:-{_LETTERS})*   # -5 3.5-inch
       | \.\p{{N}}+
       | '(?:s|re|ve|ll|d|m|\p{{N}}{{2}}s?(?!'s))(?![\p{{L}}\p{{N}}])                   # the man 's, the '70s
       | {_NO_WORD_BEFORE}'(?:n'|n|em|til|cause|tis|twas)(?![\p{{L}}\p{{N}}])
       | {_NO_WORD_BEFORE}ol'(?!\p{{L}})
       | (?<![-'/\p{{L}}\p{{N}}])[a-z]{{2,}}(?:\.[a-z]+)+(?![-/])                    # no space behind a full stop
       | {_LETTERS}(?:(?:[-/_]|(?<=\p{{L}})'(?=\p{{L}})|(?<=\p{{N}})'(?=s(?!\p{{L}}))){_LETTERS})*
       | [!?]{{2,}} | \*+ | _+ | \#+ | [][(){{}}/\\%&@]
       | [^\s\p{{P}}\p{{C}}\p{{Z}}\p{{M}}`\u2800]                              # signs that stand for words: $, + and emoji""",
    regex.VERBOSE,
)
_BREAKS = regex.compile(r"(n't|'(?:s|re|ve|m|ll|d)(?=$|['-])|^y'(?=all)|'n'(?=\p{L})|'(?:n|em)$)")
_SPELLED = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
    "\u20ac": "$", "\u00a3": "#", "\u00a2": "cents", "\u00bd": "1/2", "\u00bc": "1/4", "\u00be": "3/4",
}  # fmt: skip
_TWO_WORDS = {
    "cannot": ("can", "not"),
    "gimme": ("gim", "me"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "lemme": ("lem", "me"),
    "wanna": ("wan", "na"),
    "'tis": ("'t", "is"),
    "'twas": ("'t", "was"),
}


def treebank_words(text: str) -> Iterator[str]:
    """Words of a text in lower case. A letter of a script without spaces is not told from the next one."""
    for word in WORD.findall(text):
        if word in _TWO_WORDS:
            yield from _TWO_WORDS[word]
        elif "'" in word[1:]:
            yield from (part for part in (part.strip("-") for part in _BREAKS.split(word)) if part)
        else:
            yield _SPELLED.get(word, word)
