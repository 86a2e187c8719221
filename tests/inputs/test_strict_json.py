"""The JSON of tenants: equal to what a plain parser reads, or refused with a code and a path and nothing else."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.files.strict_json import DEPTH_MAX, VALUES_MAX, RequestError, parse_strict

CANARY = "canary5531"


def refused(body: bytes, depth_max: int = DEPTH_MAX) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse_strict(body, depth_max=depth_max)
    return caught.value


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b'{"a":1,"b":{"c":[1,{"d":1,"d":2}]}}', "duplicate_key", "b.c[1].d"),
        (b'{"model":"a","model":"a"}', "duplicate_key", "model"),
        (b'{"m":1,"\\u006d":2}', "duplicate_key", "m"),
        (b'{"a":NaN}', "invalid_value", "a"),
        (b"[1,-Infinity]", "invalid_value", "[1]"),
        (b'{"a":[1e999]}', "invalid_value", "a[0]"),
        (b'{"a":' + b"9" * 5000 + b"}", "invalid_value", "a"),
        (b"18446744073709551616", "invalid_value", None),
        (b"-9223372036854775809", "invalid_value", None),
        (b'{"a":"\\ud800"}', "invalid_value", "a"),
        (b'{"a":["\\udc00\\ud83d"]}', "invalid_value", "a[0]"),
        (b'{"a":"x\\u0000"}', "invalid_value", "a"),
        (b'{"\\ud800":1}', "invalid_value", '["?"]'),
        (b'"a\x00"', "invalid_json", None),
        (b'"a\nb"', "invalid_json", None),
        (b"\xef\xbb\xbf{}", "invalid_json", None),
        ("{}".encode("utf-16"), "invalid_json", None),
        ("{}".encode("utf-16-le"), "invalid_json", None),
        ("{}".encode("utf-32"), "invalid_json", None),
        (b'{"a":"\xff"}', "invalid_json", None),
        (b'"\xed\xa0\x80"', "invalid_json", None),
        (b'"\xc0\xaf"', "invalid_json", None),
        (b"{} {}", "invalid_json", None),
        (b"{}x", "invalid_json", None),
        (b"{}\x0b", "invalid_json", None),
        (b"\xef\xbb\xbf" + b"[" * 40, "invalid_json", None),
        (b"", "invalid_json", None),
        (b" ", "invalid_json", None),
        (b'{"a":1,}', "invalid_json", None),
        (b"[01]", "invalid_json", None),
        (b"[+1]", "invalid_json", None),
        (b"[1.]", "invalid_json", None),
        (b'{"a":NaN,"b":}', "invalid_json", None),
        (b'[{"a":1,"a":2},9e999] x', "invalid_json", None),
        (b'{"a":"\\u0000","b":1e999}', "invalid_value", "a"),
        (b"['a']", "invalid_json", None),
        (b"{a:1}", "invalid_json", None),
        (b"// x\n{}", "invalid_json", None),
        (b"[" * 100_000, "too_deep", None),
        (b'{"a":' * 100_000, "too_deep", None),
        (b"[" * 33 + b"]" * 33, "too_deep", None),
        (b'["' + b"a" * 2000 + b'"' + b",[" * 32 + b"]" * 33, "too_deep", None),
        (b"[" * 33 + b'"\xff"' + b"]" * 33, "invalid_json", None),
    ],
)
def test_each_bad_body_has_its_code_and_its_path(body: bytes, code: str, param: str | None) -> None:
    refusal = refused(body)
    assert (refusal.code, refusal.param) == (code, param)


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b"[" * 32 + b"]" * 32, None),
        (b'{"a":"' + b"[" * 500 + b'"}', {"a": "[" * 500}),
        (b'{"a":"\\"[[[' + b"{" * 500 + b'"}', {"a": '"[[[' + "{" * 500}),
        (b"18446744073709551615", 2**64 - 1),
        (b"-9223372036854775808", -(2**63)),
        (b'["\\ud83d\\ude00"]', ["😀"]),
        (b'{"a":1,"A":2}', {"a": 1, "A": 2}),
        (b" \r\n\t1.5e3 ", 1500.0),
        (b"{\"a\":1} \r\n\t", {"a": 1}),
        ('"字"'.encode(), "字"),
        (b'["' + b"[" * 2000 + b'"]', ["[" * 2000]),
        (b"[" + b"[]," * 40 + b"[]]", [[]] * 41),
    ],
)
def test_good_bodies_are_read(body: bytes, value: object) -> None:
    assert value is None or parse_strict(body) == value


NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20)
TREES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5),
    max_leaves=25,
)


@settings(max_examples=300, deadline=None)
@given(TREES, st.booleans())
def test_any_tree_is_read_back_unchanged(tree: object, ascii_only: bool) -> None:
    body = json.dumps(tree, ensure_ascii=ascii_only).encode()
    assert parse_strict(body, depth_max=64) == json.loads(body)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.text('{}[]",:\\u0d8 1e9-NaN\n', max_size=60).map(str.encode))
def test_any_bytes_are_read_as_a_plain_parser_reads_them_or_refused(body: bytes) -> None:
    try:
        value = parse_strict(body)
    except RequestError:
        return
    assert value == json.loads(body)


SCALARS = st.sampled_from(
    [
        *("null", "true", "0", "-0", "-1", "18446744073709551615", "18446744073709551616", "-9223372036854775809"),
        *("0.5", "-0.0", "1.0", "1.50", "1e16", "1E5", "100000.0", "5e-324", "1e999", "0.1000000000000000055"),
        *('""', '"a"', '"é"', r'"\n"', r'"\/"', r'"\u0000"', r'"\u001b"', '"\x7f"', '"\u2028"', '"😀"', "9" * 5000),
    ]
)
KEYS = st.sampled_from(['"a"', '"b"', '""', '"é"', r'"\n"', r'"\u0061"'])
SPACE = st.sampled_from(["", "", "", " ", "\n\t"])
WRITTEN = st.recursive(
    SCALARS,
    lambda inner: st.builds(
        lambda items, space: f"[{f',{space}'.join(items)}{space}]", st.lists(inner, max_size=4), SPACE
    )
    | st.builds(
        lambda pairs, space: f"{{{f',{space}'.join(f'{key}:{space}{value}' for key, value in pairs)}}}",
        st.lists(st.tuples(KEYS, inner), max_size=4),
        SPACE,
    ),
    max_leaves=12,
)
"""JSON as text: with keys twice, numbers that are too large, and several spellings of one value."""


@settings(max_examples=1000, deadline=None)
@given(WRITTEN)
def test_a_body_is_the_same_to_both_parsers(written: str) -> None:
    """An escape by number leaves the whole body to the slower one."""
    assert told(f'["\\u0041",{written}]'.encode()) == told(f'["A",{written}]'.encode())


def told(body: bytes) -> str:
    try:
        # As text: 1, 1.0 and true are equal.
        return repr(parse_strict(body))
    except RequestError as refusal:
        return f"{refusal.code} {refusal.param}"


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 80), st.integers(1, 60))
def test_depth_is_counted_exactly(depth: int, depth_max: int) -> None:
    body = b'{"]}":[' * (depth // 2) + b"[" * (depth % 2) + b"]" * (depth % 2) + b"]}" * (depth // 2)
    if depth > depth_max:
        assert refused(body, depth_max).code == "too_deep"
    elif depth > 1 or depth % 2:
        parse_strict(body, depth_max=depth_max)


NESTED = st.recursive(
    st.text('\\"[]{}a', max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('\\"[]{}', max_size=3), inner, max_size=3),
    max_leaves=20,
)


def depth_of(tree: object) -> int:
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else None
    return 0 if inner is None else 1 + max((depth_of(one) for one in inner), default=0)


@settings(max_examples=1000, deadline=None)
@given(NESTED, st.integers(1, 4), st.booleans())
def test_brackets_in_strings_are_no_levels(tree: object, depth_max: int, escaped: bool) -> None:
    body = json.dumps({"\u0001": tree} if escaped else {"x": tree}, separators=(",", ":")).encode()
    if 1 + depth_of(tree) > depth_max:
        assert refused(body, depth_max).code == "too_deep"
    else:
        assert parse_strict(body, depth_max=depth_max) == json.loads(body)


def values_of(tree: object) -> int:
    """Brackets that open, and commas."""
    inner = list(tree.values()) if isinstance(tree, dict) else tree if isinstance(tree, list) else None
    return 0 if inner is None else 1 + max(0, len(inner) - 1) + sum(map(values_of, inner))


@settings(max_examples=1000, deadline=None)
@given(
    st.recursive(
        st.text('\\",[]{}a', max_size=6) | st.integers(0, 99),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('\\",[]{}', max_size=3), inner, max_size=3),
        max_leaves=20,
    ),
    st.integers(-2, 2),
    st.sampled_from([None, 1]),
)
def test_values_are_counted_exactly_whatever_stands_in_strings(tree: object, more: int, indent: int | None) -> None:
    body = json.dumps(tree, indent=indent).encode()
    values_max = max(0, values_of(tree) + more)
    if values_of(tree) > values_max:
        with pytest.raises(RequestError, match=f"too_many_values: expected at most {values_max} values"):
            parse_strict(body, values_max=values_max)
    else:
        assert parse_strict(body, values_max=values_max) == json.loads(body)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"[" + b"[]," * 20_000, "too_many_values"),
        (b'{"x":[' + b"[]," * 300_000 + b'"\\ud800"]}', "too_many_values"),
        (b"[" * 100_000, "too_many_values"),
        (b'"' * 200_000, "too_many_values"),
        (b'"\xff",' * 100_000, "invalid_json"),
        (b'{"x":"' + b"[], " * 100_000, "invalid_json"),
        (b"[" + b"[]," * 10_000, "invalid_json"),
    ],
)
def test_values_are_counted_before_anything_is_made_of_them(body: bytes, code: str) -> None:
    """What is no JSON at all is told so only within the bound: beyond it nobody looked."""
    with pytest.raises(RequestError) as caught:
        parse_strict(body, values_max=VALUES_MAX)
    assert caught.value.code == code


class Pairs(list[tuple[str, object]]):
    """An object as it was written, with keys twice."""


def first_odd(node: object, path: str) -> str | None:
    """Code and path of the first refused value, found the slow way."""
    if node is Ellipsis:
        return f"invalid_value {path or None}"
    if isinstance(node, str):
        return f"invalid_value {path or None}" if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in node) else None
    steps: list[tuple[str, object]] = []
    if isinstance(node, Pairs):
        keys = [key for key, _ in node]
        twice = [key for at, key in enumerate(keys) if key in keys[:at]]
        if twice:
            return f"duplicate_key {path}{spell_key(twice[0], path)}"
        for key, inner in node:
            steps += [(f"{path}{spell_key(key, path)}", key), (f"{path}{spell_key(key, path)}", inner)]
    elif isinstance(node, list):
        steps = [(f"{path}[{at}]", inner) for at, inner in enumerate(node)]
    return next((found for step, inner in steps if (found := first_odd(inner, step))), None)


def spell_key(key: str, path: str) -> str:
    if key.isalpha() and key.isascii():
        return f".{key}" if path else key
    return f'["{"".join(c if c.isprintable() else "?" for c in key)}"]'


def number(digits: str) -> object:
    return int(digits) if len(digits) < 21 and -(2**63) <= int(digits) < 2**64 else ...


ODD_KEYS = st.sampled_from(['"a"', '"b"', '"c"', '"d"', r'"\u0000"', r'"\ud800"'])
ODD_TREES = st.recursive(
    SCALARS | st.sampled_from([r'"\ud800"', r'"\ud83d\ude00"', "NaN", "-Infinity"]),
    lambda inner: (
        st.builds(lambda items: f"[{','.join(items)}]", st.lists(inner, max_size=4))
        | st.builds(
            lambda pairs: f"{{{','.join(f'{key}:{value}' for key, value in pairs)}}}",
            st.lists(st.tuples(ODD_KEYS, inner), max_size=4),
        )
    ),
    max_leaves=12,
)


@settings(max_examples=1000, deadline=None)
@given(ODD_TREES)
def test_what_is_refused_is_the_first_such_value_of_the_text(written: str) -> None:
    tree: object = json.loads(
        written,
        object_pairs_hook=Pairs,
        parse_int=number,
        parse_float=lambda digits: float(digits) if abs(float(digits)) < float("inf") else ...,
        parse_constant=lambda _: ...,
    )
    expected, found = first_odd(tree, ""), told(written.encode())
    assert found == expected if expected is not None else not found.startswith(("invalid", "duplicate"))


def test_hostile_bodies_of_a_mebibyte_are_refused_in_linear_time() -> None:
    size = 1 << 20
    bodies = [
        b'"' + b'\\"' * (size // 2),
        b'"' * size,
        b"[" * size,
        b'{"a":' * (size // 5),
        b'["' + b"\\" * size,
        b"[" + b"[]," * (size // 3),
        b"[" + b"1" * size,
        b"[" + b"1e" * (size // 2),
        b"[0." + b"0" * size,
        b"[" * 40 + b'"ab' * (size // 3),
        b"[" * 40 + b'\\"' * (size // 2),
    ]
    started_s = time.process_time()
    for body in bodies:
        refused(body)
    assert time.process_time() - started_s < 5


@pytest.mark.parametrize(
    "body",
    [
        f'{{"{CANARY}":"{CANARY}","a":NaN}}'.encode(),
        f'["{CANARY}'.encode(),
        f'{{"a":"{CANARY}"}} {CANARY}'.encode(),
        f'["{CANARY}\\ud800"]'.encode(),
        f'{{"a":"{CANARY}'.encode() + b"\xff",
        f'{{"a":{{"x":"{CANARY}"}},"a":"{CANARY}"}}'.encode(),
    ],
)
def test_a_refusal_holds_no_content_not_even_in_its_causes(body: bytes) -> None:
    refusal: BaseException | None = refused(body)
    while refusal is not None:
        assert CANARY not in f"{refusal} {refusal!r} {vars(refusal)}"
        refusal = refusal.__cause__ or refusal.__context__


def test_the_checks_are_needed_because_the_plain_parser_would_not_refuse() -> None:
    """Positive control: the parser of the standard library takes all of these."""
    assert json.loads('{"a":1,"a":2}') == {"a": 2}
    assert json.loads("[NaN, Infinity]")[1] == float("inf")
    assert json.loads('"\\ud800"') == "\ud800"
    with pytest.raises(RecursionError):
        json.loads("[" * 100_000)
