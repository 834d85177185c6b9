"""Messages: one line, with control characters from foreign text spelled out."""

_MOST = 1200


class InputError(ValueError):
    """A mistake of the caller. The message is one line that is safe to show in a terminal."""

    def __init__(self, message: object):
        super().__init__(one_line(message))


def one_line(text: object, most: int = _MOST) -> str:
    """Text as one line that is safe in a terminal: control characters spelled out, its middle cut beyond `most`.

    >>> one_line("no array 'a\\x1b[2J'\\nin the file")
    "no array 'a\\\\x1b[2J' in the file"
    """
    return _spelled(cut(str(text), most).replace("\n", " "))


def shown(text: str) -> str:
    """Text of several lines that is safe in a terminal: control characters spelled out, except newline and tab."""
    return _spelled(text, kept="\n\t")


def _spelled(text: str, kept: str = "") -> str:
    return "".join(
        letter if letter.isprintable() or letter in kept else letter.encode("unicode_escape").decode()
        for letter in text
    )


def quoted(value: object, most: int = 100) -> str:
    """A value as errors quote it: its repr, cut in the middle where it is long.

    >>> quoted("a" * 1000, 20)
    "'aaaaaaaaa … aaaaaa'"
    """
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 4 * most:
        return f"a whole number of {value.bit_length()} bits"  # Python writes no number of more than 4300 digits
    return cut(repr(value), most)


def cut(text: str, most: int) -> str:
    """Text with its middle left out where it is longer than `most`."""
    if len(text) <= most:
        return text
    head = (most - 3) * 3 // 5
    return f"{text[:head]} … {text[len(text) - (most - 3 - head) :]}"


def is_text(text: str) -> bool:
    """Whether a string is UTF-8 without a NUL, so that it can be a path or be written to a file."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:  # a lone surrogate: what Python makes of bytes that are no UTF-8
        return False


def first_line(error: BaseException) -> str:
    """The message of another library's error as one line; its type where it has none."""
    return one_line((str(error).strip().splitlines() or [type(error).__name__])[0], 300)
