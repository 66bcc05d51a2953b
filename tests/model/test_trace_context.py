"""W3C Trace Context by its grammar."""

from hypothesis import given
from hypothesis import strategies as st

from chargegate.model import parent_of, trace_context, trace_headers, valid_traceparent, within
from chargegate.model.trace_context import MAX_TRACESTATE, valid_tracestate

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
TOKEN = "driver-0123456789-0123456789"

key = st.from_regex(r"[a-z0-9][a-z0-9_*/@-]{0,20}", fullmatch=True)
value = st.from_regex(r"[ -+\--<>-~]{0,20}[!-+\--<>-~]", fullmatch=True)


@given(st.text("0123456789abcdef-", max_size=20) | st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_a_later_version_with_further_fields_goes_on_as_ours(more: str) -> None:
    for flags, known in (("00", "00"), ("01", "01"), ("fe", "00"), ("ff", "01")):
        assert valid_traceparent(f"cc-{TRACE}-{SPAN}-{flags}-{more}") == f"00-{TRACE}-{SPAN}-{known}"
        assert valid_traceparent(f"00-{TRACE}-{SPAN}-{flags}-{more}") == ""
        assert valid_traceparent(f"ff-{TRACE}-{SPAN}-{flags}-{more}") == ""
    assert valid_traceparent(f"cc-{'0' * 32}-{SPAN}-01-{more}") == ""
    assert valid_traceparent(f"cc-{TRACE}-{SPAN}-01{more}x") in ("", f"00-{TRACE}-{SPAN}-01")


def test_a_later_version_needs_a_dash_before_its_further_fields() -> None:
    later = f"cc-{TRACE}-{SPAN}-01"
    for text in (f"{later}.x", f"{later}2", f"{later.upper()}-x", f"{later}-\n"):
        assert valid_traceparent(text) == ""
    assert valid_traceparent(f"cc-{TRACE}-{SPAN}-01-") == PARENT


@given(st.dictionaries(key, value, min_size=1, max_size=10), st.sampled_from([",", " , ", "\t,,", ", ,"]))
def test_a_list_of_members_is_carried(members: dict[str, str], separator: str) -> None:
    whole = ",".join(f"{name}={each}".strip() for name, each in members.items())
    written = separator.join(f"{name}={each}" for name, each in members.items())
    assert valid_tracestate(written) == (whole if len(written) <= MAX_TRACESTATE else "")
    assert valid_tracestate(whole) in ("", whole)


@given(st.text(st.characters(max_codepoint=255), max_size=600))
def test_whatever_is_said_makes_no_other_header(text: str) -> None:
    state = valid_tracestate(text)
    assert len(state) <= MAX_TRACESTATE
    assert state.isascii()
    assert not set(state) & set("\r\n\0")
    context = trace_context([PARENT.encode()], [text.encode("latin-1")], TOKEN)
    head = trace_headers(context).decode()
    assert head.count("\r\n") == head.count(": ") if " " not in state else head.count("\r\n") in (1, 2)
    assert parent_of(context) == PARENT
    assert within("", context) == context
    ours = PARENT.replace("b7", "00")
    assert trace_headers(within(ours, context)).decode() == head.replace(PARENT, ours)


def test_states_that_break_the_grammar_are_dropped() -> None:
    long = ",".join(f"{name}=" + "x" * 200 for name in "abc")
    many = ",".join(f"k{n}=1" for n in range(33))
    for text in (
        "", "=1", "a", "a=", "A=1", "a=1=2", "a=1,a=2", "a b=1", "a@B=1", "@a=1", "a=\u00e9", "a=1\r\nx: y",
        "a=1;b=2,c", "a=" + "x" * 257, "a" * 257 + "=1", many, long,
    ):  # fmt: skip
        assert valid_tracestate(text) == "", text
    assert valid_tracestate(",".join(f"k{n}=1" for n in range(32)))
    assert valid_tracestate("fw529a3039@dt=FfhxBVNi, congo=t61rcWkgMzE") == "fw529a3039@dt=FfhxBVNi,congo=t61rcWkgMzE"


def test_a_state_needs_one_parent_and_no_token() -> None:
    state = b"a=1"
    assert trace_context([PARENT.encode()], [state, b"b=2"], TOKEN) == f"{PARENT} a=1,b=2"
    assert trace_context([PARENT.encode()], [f"a={TOKEN.upper()}".encode()], TOKEN) == PARENT
    assert trace_context([], [state], TOKEN) == ""
    assert trace_context([b"nonsense"], [state], TOKEN) == ""
    assert trace_context([PARENT.encode()] * 2, [state], TOKEN) == ""
    assert trace_headers("") == b""
    assert trace_headers(f"{PARENT} a=1\r\nx: y") == f"traceparent: {PARENT}\r\n".encode()
