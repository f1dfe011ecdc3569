from hypothesis import given
from hypothesis import strategies as st

from data.webdataset_key import escape_key, unescape_key


@given(st.text())
def test_escaping_loses_nothing_and_leaves_plain_characters(key: str) -> None:
    escaped = escape_key(key)
    assert unescape_key(escaped) == key
    assert escaped.isascii()
    assert not set(escaped) & set("./\\ \0")


def test_examples() -> None:
    assert escape_key("train/cat/a.b c.png") == "train%2Fcat%2Fa%2Eb%20c%2Epng"
    assert escape_key("été") == "%C3%A9t%C3%A9"
    assert escape_key("a%2Eb") != escape_key("a.b")
