"""A session's text is read only as it was written, and only with the same key."""

from hypothesis import given
from hypothesis import strategies as st

from chargegate.keys import Keyring, Session, read_session, sign_session

KEYRING, OTHER = Keyring([b"k" * 32], b"h" * 32), Keyring([b"k" * 32], b"i" * 32)
SESSION = Session.opened(bytes(range(32)), 1_700_000_000_000)
OVER_TLS = Session.opened(bytes(range(32)), 1_700_000_000_000, over_tls=True)
TEXT = sign_session(KEYRING, SESSION)


def test_it_comes_back_as_it_was() -> None:
    assert read_session(KEYRING, TEXT) == SESSION
    assert read_session(KEYRING, sign_session(KEYRING, OVER_TLS)) == OVER_TLS
    assert read_session(OTHER, TEXT) is None


def test_no_two_sessions_have_one_id() -> None:
    assert Session.opened(b"x" * 32, 1).id != Session.opened(b"x" * 32, 1).id


@given(st.text(max_size=500))
def test_no_other_text_is_a_session(text: str) -> None:
    assert read_session(KEYRING, text) is None


@given(st.integers(0, len(TEXT) - 1), st.characters(codec="ascii"))
def test_one_changed_character_makes_it_none(at: int, character: str) -> None:
    changed = TEXT[:at] + character + TEXT[at + 1 :]
    assert (read_session(KEYRING, changed) is not None) == (changed == TEXT)
