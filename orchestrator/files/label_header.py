"""The header `x-tidegate-labels`: what a request declares of its payload.

It is a Dictionary of RFC 9651. The keys `personal`, `grade`, `domestic` and `clean` are tokens; `categories`, `purpose`
and `asset` are a token or an inner list of tokens; `origin`, `located` and `collected` are a string or an inner list of
strings: `personal=sensitive, categories=(health), origin=("DE" "FR")`. A set may be the one token `unknown`; the empty
list of categories says that there are none. Nothing in the header is skipped: an unknown key, a parameter or a key
given twice is refused, because a label that was not understood would be a label that is lower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import http_sf

from orchestrator.files.fields import ASSET_WORDS, CATEGORY_WORDS, PURPOSE_WORDS
from orchestrator.policy.jurisdictions import Jurisdiction, parse_jurisdiction
from orchestrator.policy.labels import CLEAN_WORDS, DOMESTIC_WORDS, GRADE_WORDS, PERSONAL_WORDS, Labels, Personal
from orchestrator.policy.vocabulary import UNKNOWN

Word = TypeVar("Word")

HEADER = "x-tidegate-labels"
LENGTH_MAX = 1024
SHORTHAND = "personal"
"""`grade=personal` is accepted for `personal=personal`; the grade itself is then undeclared."""

_SHOWN_CHARS = 64
_CODES_ALLOWED = 'assigned ISO 3166-1 alpha-2 codes in capitals, such as "DE" or ("DE" "FR"), or the token unknown'
_ALLOWED = {
    "personal": " or ".join(PERSONAL_WORDS),
    "grade": " or ".join((*GRADE_WORDS, SHORTHAND)),
    "domestic": " or ".join(DOMESTIC_WORDS),
    "clean": " or ".join(CLEAN_WORDS),
    "categories": "any of " + ", ".join(CATEGORY_WORDS),
    "origin": _CODES_ALLOWED,
    "located": _CODES_ALLOWED,
    "collected": _CODES_ALLOWED,
    "purpose": "any of " + ", ".join(PURPOSE_WORDS),
    "asset": "any of " + ", ".join(ASSET_WORDS),
}


class LabelHeaderError(ValueError):
    """The header is not valid. Its text names the key and what is allowed, and repeats no value."""

    def __init__(self, key: str, allowed: str) -> None:
        super().__init__(f"{key}: expected {allowed}")
        self.key = key
        """The key that is wrong, or the name of the header where none can be named."""
        self.allowed = allowed
        """What may be written there."""


def parse_label_header(text: str) -> Labels:
    """Return what the value of one header line declares; what it does not name stays undeclared.

    More than one header line is the caller's matter. Raises LabelHeaderError.
    """
    members = _members(text)
    grade_word = _token("grade", members, {**{word: word for word in GRADE_WORDS}, SHORTHAND: SHORTHAND})
    personal = _token("personal", members, PERSONAL_WORDS)
    if grade_word == SHORTHAND:
        personal = Personal.PERSONAL if personal is None else max(personal, Personal.PERSONAL)
        grade_word = None
    return Labels(
        personal=personal,
        grade=None if grade_word is None else GRADE_WORDS[grade_word],
        domestic=_token("domestic", members, DOMESTIC_WORDS),
        origin=_codes("origin", members) or frozenset(),
        clean=_token("clean", members, CLEAN_WORDS),
        categories=_tokens("categories", members, CATEGORY_WORDS),
        located=_codes("located", members),
        collected=_codes("collected", members),
        purpose=_tokens("purpose", members, PURPOSE_WORDS),
        asset=_tokens("asset", members, ASSET_WORDS),
    )


def write_label_header(labels: Labels) -> str:
    """Return the header that declares just this: `parse_label_header` reads it back. Empty when nothing is declared."""
    words = {
        "personal": _word(PERSONAL_WORDS, labels.personal),
        "grade": _word(GRADE_WORDS, labels.grade),
        "domestic": _word(DOMESTIC_WORDS, labels.domestic),
        "clean": _word(CLEAN_WORDS, labels.clean),
    }
    sets = {
        "categories": _inner(labels.categories, ""),
        "origin": _inner(labels.origin or None, '"'),
        "located": _inner(labels.located, '"'),
        "collected": _inner(labels.collected, '"'),
        "purpose": _inner(labels.purpose, ""),
        "asset": _inner(labels.asset, ""),
    }
    return ", ".join(f"{key}={value}" for key, value in (words | sets).items() if value is not None)


def _word(words: Mapping[str, Word], value: Word | None) -> str | None:
    return None if value is None else next(word for word, meaning in words.items() if meaning == value)


def _inner(items: frozenset[str] | frozenset[Jurisdiction] | None, quote: str) -> str | None:
    """Return a set as the header writes it; `unknown` alone is a token."""
    if items is None:
        return None
    if items == {UNKNOWN}:
        return UNKNOWN
    return f"({' '.join(f'{quote}{item}{quote}' for item in sorted(items))})"


def _members(text: str) -> Mapping[str, object]:
    """Return the values of the known keys, without their parameters, of which there are none."""
    if len(text) > LENGTH_MAX:
        raise LabelHeaderError(HEADER, f"at most {LENGTH_MAX} characters")
    if not text.isascii():
        raise LabelHeaderError(HEADER, "ASCII characters only")
    try:
        parsed = http_sf.parse(text.encode("ascii"), tltype="dictionary", on_duplicate_key=_refuse_repeat)
    except http_sf.StructuredFieldError as failure:
        key = failure.context
        # The parser's frames name their own failure: as cycles they would keep whoever asked until they are looked for.
        failure.__traceback__ = None
    else:
        return {key: _bare(key, member) for key, member in parsed.items()}
    # Raised outside the handler: the parser's message repeats what it read and must not travel as the context.
    if key in _ALLOWED:
        raise LabelHeaderError(key, _ALLOWED[key])
    raise LabelHeaderError(HEADER, "a Dictionary of RFC 9651, such as personal=none, grade=general")


def _refuse_repeat(key: str, within: str) -> None:
    # RFC 9651 lets the last one win: with two proxies, which one is last is anyone's guess.
    if within == "parameter":
        raise LabelHeaderError(HEADER, "no parameters")
    raise LabelHeaderError(key[:_SHOWN_CHARS], f"it only once, with {_allowed(key)}")


def _allowed(key: str) -> str:
    return _ALLOWED.get(key, "one of the keys " + ", ".join(_ALLOWED))


def _bare(key: str, member: object) -> object:
    if key not in _ALLOWED:
        raise LabelHeaderError(key[:_SHOWN_CHARS], _allowed(key))
    if not isinstance(member, tuple) or len(member) != 2 or member[1]:
        raise LabelHeaderError(key, f"{_ALLOWED[key]}, without parameters")
    return member[0]


def _token(key: str, members: Mapping[str, object], words: Mapping[str, Word]) -> Word | None:
    if key not in members:
        return None
    value = members[key]
    if not isinstance(value, http_sf.Token) or str(value) not in words:
        raise LabelHeaderError(key, f"{_ALLOWED[key]}, as a token without quotes")
    return words[str(value)]


def _items(key: str, members: Mapping[str, object]) -> list[object] | None:
    """Return the items of a set, written as one value or as an inner list; None when the key is not there."""
    if key not in members:
        return None
    value = members[key]
    items = value if isinstance(value, list) else [(value, {})]
    if any(parameters for _, parameters in items):
        raise LabelHeaderError(key, f"{_ALLOWED[key]}, without parameters")
    return [item for item, _ in items]


def _tokens(key: str, members: Mapping[str, object], words: Sequence[str]) -> frozenset[str] | None:
    items = _items(key, members)
    if items is None:
        return None
    if not items and key != "categories":
        raise LabelHeaderError(key, f"at least one: {_ALLOWED[key]}")
    for item in items:
        if not isinstance(item, http_sf.Token) or str(item) not in words:
            raise LabelHeaderError(key, f"{_ALLOWED[key]}, as tokens without quotes")
    return frozenset(str(item) for item in items)


def _codes(key: str, members: Mapping[str, object]) -> frozenset[Jurisdiction] | None:
    items = _items(key, members)
    if items is None:
        return None
    if not items:
        raise LabelHeaderError(key, _CODES_ALLOWED)
    found: set[Jurisdiction] = set()
    for item in items:
        if isinstance(item, http_sf.Token) and str(item) == UNKNOWN and len(items) == 1:
            return frozenset({Jurisdiction(UNKNOWN)})
        if type(item) is not str:
            raise LabelHeaderError(key, f"{_CODES_ALLOWED}, as strings in quotes")
        try:
            found.add(parse_jurisdiction(item))
        except ValueError:
            raise LabelHeaderError(key, _CODES_ALLOWED) from None
    return frozenset(found)
