"""Turn any image name into a tar member name that webdataset reads back as one whole key."""

import re
from urllib.parse import unquote

_UNSAFE_BYTE = re.compile(rb"[^A-Za-z0-9_-]")


def escape_key(key: str) -> str:
    """Return `key` with every byte but ASCII letters, digits, `_` and `-` as `%XX` of its UTF-8.

    Different keys stay different. Why so strict: webdataset cuts a member's name at its first
    dot, skips names that begin with a folder like `__x__/`, and a tar written from `../a` would
    leave the folder it is unpacked in.
    """
    return _UNSAFE_BYTE.sub(lambda match: b"%%%02X" % match[0][0], key.encode()).decode("ascii")


def unescape_key(escaped: str) -> str:
    """Return the key that `escape_key` was given."""
    return unquote(escaped)
