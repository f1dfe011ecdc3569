"""The one exception that is shown to a user as a single line."""


class InputError(ValueError):
    """Bad input, found before work starts.

    The message is one line: what is wrong, the value found, what is allowed, what to do.
    Entry points print it as ``error: ...`` and exit with code 2.
    """
