"""The error that a user's mistake raises, and how it is shown."""


class InputError(ValueError):
    """A mistake in what the user gave. The text says what was given, what is allowed, what to do next."""


def one_line(text: str) -> str:
    """Text for a terminal: on one line, and without the control characters that a file's name may hold."""
    text = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
