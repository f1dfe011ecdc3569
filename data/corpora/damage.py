"""Say which file of a corpus cannot be decoded."""

from collections.abc import Generator
from contextlib import contextmanager

import pyarrow as pa

from data.errors import InputError


@contextmanager
def naming_damage(name: str) -> Generator[None]:
    """Raise `InputError` with the file's name for what pyarrow cannot decode or convert inside the block.

    It raises a plain `OSError` for some damage; the store's faults are subclasses and pass through.
    """
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        if isinstance(error, OSError) and type(error) is not OSError:
            raise
        reason = " ".join(str(error).split())
        raise InputError(f"{name} cannot be read: {reason}; correct it, or copy it again") from None
