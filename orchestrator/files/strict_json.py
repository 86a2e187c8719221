"""Strict JSON: the bytes of a request as plain values, or a refusal that names the field and repeats no content.

Refused beyond what RFC 8259 refuses: anything but UTF-8 without a byte order mark, a key twice in one object (two
parsers would see two requests), NaN and Infinity, numbers outside 64 bits or outside a double, half of a surrogate
pair, U+0000, and nesting deeper than a bound, which is checked before any recursive parser sees the bytes. Where there
is a bound of values, these are counted before anything else looks at the bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from math import isfinite
from typing import Final, Literal

import msgspec

from orchestrator.files.typed import FieldPath, spell

RequestCode = Literal[
    "invalid_json",
    "duplicate_key",
    "invalid_type",
    "invalid_value",
    "unknown_field",
    "missing_field",
    "too_deep",
    "too_many_messages",
    "too_many_values",
    "unsupported_value",
]
"""Codes of refusals of a request's body, all of them HTTP 400."""

DEPTH_MAX: Final = 32
INT_MIN: Final = -(2**63)
INT_MAX: Final = 2**64 - 1
VALUES_MAX: Final = 32_768
"""Values of one request: what 128 tools have at 256 values each, and 16 times what 1,024 plain messages have."""
_INT_DIGITS_MAX = 20
_SPACE = " \t\n\r"

# Possessive: an unclosed string runs to the end once, so the scan is linear for every input.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_BACKSLASH = ord("\\")
_SHORT_BYTES = 512
"""In more than so many the few brackets are found sooner one by one."""
_STEP_OF = [0] * 256
for _opening, _closing in (b"[]", b"{}"):
    _STEP_OF[_opening], _STEP_OF[_closing] = 1, -1
# Only an escape can bring one of these into a text that was decoded as UTF-8.
_ODD_ESCAPE = re.compile(r"\\u(?:[dD][89abcdefABCDEF]|0000)")
_MANY_VALUES = 1_024
"""With more commas in a body, large numbers are looked for at once and not in each one."""
# At most 18 digits are 64 bits, and with an exponent of two digits a double.
_MANY_DIGITS = re.compile(rb"[0-9]{19}")
_LARGE_EXPONENT = re.compile(rb"[eE]\+?[0-9]{3}")
_ODD_CHAR = re.compile("[\x00\ud800-\udfff]")


class RequestError(Exception):
    """A request cannot be accepted as it is written. The message holds no content of the request."""

    def __init__(self, code: RequestCode, message: str, param: str | None = None) -> None:
        super().__init__(f"{code}: {message}" if param is None else f"{code}: {param}: {message}")
        self.code: RequestCode = code
        self.message = message
        """One sentence for the tenant."""
        self.param = param
        """Path of the field, such as `messages[2].content`; None where no field can be named."""


@dataclass(frozen=True, slots=True)
class _Odd:
    """Stands in the tree for a value that is refused, so that its path can be found once parsing is over."""

    code: RequestCode
    message: str
    key: str | None = None


_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_check_bounds = msgspec.msgpack.Encoder().encode
"""Raises OverflowError for a whole number of more than 64 bits: this format has none. Its bytes are not used."""
_NOT_FINITE = _Odd("invalid_value", "expected a finite number")
_TOO_LARGE = _Odd("invalid_value", "expected a whole number of at most 64 bits")
_ODD_TEXT = _Odd("invalid_value", "expected text without U+0000 and without half surrogate pairs")


def parse_strict(body: bytes, *, depth_max: int = DEPTH_MAX, values_max: int | None = None) -> object:
    """The value of a JSON body as None, bool, int, float, str, list and dict. Raises RequestError.

    `values_max` bounds what a short body can cost: each bracket that opens and each comma outside of strings counts as
    one value.

    Most clients write as we write JSON, space aside. What becomes the same bytes again holds a key once, as the tree
    does, and no number that was rounded. Whatever else it is, and what has an escape by number, is left to another
    parser, which also has the words for what is refused.
    """
    outside: bytes | None = None
    if values_max is not None and len(body) > values_max:
        # A value takes two quotes at most, and its key two more.
        outside = _outside(body, 4 * values_max + 4)
        _check_values(body, outside, values_max)
    plain = _BACKSLASH not in body or b"\\u" not in body
    # Two lists of n parts show 2n - 2 brackets.
    if plain and (len(body) > _SHORT_BYTES or len(body.split(b"{")) + len(body.split(b"[")) - 2 > depth_max):
        plain = not _looks_deep(body, outside, depth_max)
    if plain:
        try:
            value: object = _decode(body)
            _check_bounds(value)
            written = _encode(value)
            if written == body or written == msgspec.json.format(body, indent=-1):
                return value
        except (ValueError, OverflowError, RecursionError):
            pass
    return _parse_any(body, outside, depth_max)


def _parse_any(body: bytes, outside: bytes | None, depth_max: int) -> object:
    """Return the value of any body. Raises RequestError. `outside` is what stands outside of strings, if it is known.

    The text is read once, whatever is wrong with it: a refusal costs about as much as what it refuses.
    """
    text = _text(body)
    if _opens_more(body, depth_max):
        _check_depth(body, depth_max)
    if outside is None and body.count(b",") > _MANY_VALUES:
        outside = _outside(body)
    whole = outside is None or _MANY_DIGITS.search(outside) is not None
    fractions = whole or outside is None or _LARGE_EXPONENT.search(outside) is not None
    marks = _Marks()
    value = _parse(text, marks.decoder(whole, fractions))
    odd_text = "\\u" in text and _ODD_ESCAPE.search(text) is not None
    # Odd values are rare; the walk that finds their path is paid only when there can be one.
    found = _find_odd(value, texts=odd_text) if marks.any or odd_text else None
    if found is not None:
        path, odd = found
        raise RequestError(odd.code, odd.message, spell(path) or None)
    return value


def _text(body: bytes) -> str:
    text: str | None = None
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        text = None
    if text is None or text[:1] == "\ufeff":
        # Raised outside the handler: the error of the codec holds the whole body.
        raise RequestError("invalid_json", "expected JSON in UTF-8 without a byte order mark")
    return text


def _check_values(body: bytes, outside: bytes | None, values_max: int) -> None:
    """Refuse more values than the bound. `outside` is what stands outside of strings, None where these are too many."""
    if outside is None or outside.count(b",") + outside.count(b"[") + outside.count(b"{") > values_max:
        _text(body)
        needs = "send shorter lists, or the data as text"
        raise RequestError("too_many_values", f"expected at most {values_max} values in one body: {needs}")


def _outside(body: bytes, quotes_max: int = -1) -> bytes | None:
    """Return what stands outside of the strings of JSON; None where there are more quotes round them than the bound."""
    if b'\\"' in body:
        # Pairs first: what is left before a quote makes it a part of the string.
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    parts = body.split(b'"', quotes_max + 1 if quotes_max >= 0 else -1)
    return None if 0 <= quotes_max < len(parts) - 1 else b"".join(parts[::2])


def _opens_more(body: bytes, depth_max: int) -> bool:
    """Whether more brackets open, in strings or not, than there may be levels."""
    opened = 0
    for bracket in (b"[", b"{"):
        at = body.find(bracket)
        while at >= 0 and opened <= depth_max:
            opened += 1
            at = body.find(bracket, at + 1)
    return opened > depth_max


def _looks_deep(body: bytes, outside: bytes | None, depth_max: int) -> bool:
    """Whether JSON is too deep. Of what is none, it is true at least where it would be by the first error.

    `outside` is what stands outside of strings, None where nobody looked yet.
    """
    if not _opens_more(body, depth_max):
        return False
    if outside is None:
        outside = _outside(body)
    return outside is None or _levels(outside) > depth_max


def _check_depth(body: bytes, depth_max: int) -> None:
    if _levels(_STRING.sub(b"", body)) > depth_max:
        raise RequestError("too_deep", f"expected at most {depth_max} levels of arrays and objects")


def _levels(outside: bytes) -> int:
    """Return how deep what stands outside of strings is."""
    return max(accumulate(map(_STEP_OF.__getitem__, outside.translate(None, _NOT_BRACKETS))), default=0)


class _Marks:
    """Makes the trees of one body, with an `_Odd` in place of each value that is refused."""

    __slots__ = ("any",)

    def __init__(self) -> None:
        self.any = False
        """Whether there is such a value."""

    def decoder(self, whole: bool, fractions: bool) -> json.JSONDecoder:
        """Return what reads the body, where `whole` numbers or `fractions` may be large."""
        return json.JSONDecoder(
            object_pairs_hook=self._members,
            parse_int=self._whole if whole else None,
            parse_float=self._fraction if fractions else None,
            parse_constant=self._constant,
        )

    def _mark(self, odd: _Odd) -> _Odd:
        self.any = True
        return odd

    def _whole(self, digits: str) -> object:
        if len(digits) > _INT_DIGITS_MAX:
            return self._mark(_TOO_LARGE)
        number = int(digits)
        return number if INT_MIN <= number <= INT_MAX else self._mark(_TOO_LARGE)

    def _fraction(self, digits: str) -> object:
        number = float(digits)
        return number if isfinite(number) else self._mark(_NOT_FINITE)

    def _constant(self, _: str) -> object:
        return self._mark(_NOT_FINITE)

    def _members(self, pairs: list[tuple[str, object]]) -> object:
        container = dict(pairs)
        if len(container) == len(pairs):
            return container
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                return self._mark(_Odd("duplicate_key", "expected each key once in an object", key))
            seen.add(key)
        return container


def _parse(text: str, decoder: json.JSONDecoder) -> object:
    try:
        value: object = decoder.decode(text)
    except json.JSONDecodeError as failure:
        line, column = failure.lineno, failure.colno
    else:
        return value
    # Raised outside the handler: the error of the decoder holds the whole text.
    raise RequestError("invalid_json", f"expected well-formed JSON; the error is at line {line}, column {column}")


def _find_odd(value: object, *, texts: bool) -> tuple[FieldPath, _Odd] | None:
    """The first refused value of the tree in the order of the text, without recursion. `texts` may be odd as well."""
    odd_char = _ODD_CHAR.search
    steps: list[str | int] = []
    levels: list[Iterator[tuple[str | int, object]]] = [iter(((0, value),))]
    while levels:
        for step, node in levels[-1]:
            if texts and type(step) is str and odd_char(step):
                return (*steps[1:], step), _ODD_TEXT
            if type(node) is list or type(node) is dict:
                steps.append(step)
                levels.append(_members(node))
                break
            if type(node) is _Odd:
                path = (*steps, step)[1:]
                return (path if node.key is None else (*path, node.key)), node
            if texts and type(node) is str and odd_char(node):
                return (*steps, step)[1:], _ODD_TEXT
        else:
            levels.pop()
            if steps:
                steps.pop()
    return None


def _members(node: object) -> Iterator[tuple[str | int, object]]:
    """Return what a value holds, each with its step of the path."""
    if type(node) is dict:
        return iter(node.items())
    return iter(enumerate(node)) if type(node) is list else iter(())
