"""What every command has in common: its flags from a dataclass, one line for a mistake, and exit codes."""

import argparse
import contextlib
import dataclasses
import difflib
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from sqs_jax import compile_cache, display
from sqs_jax.messages import InputError, one_line, quoted
from sqs_jax.options import plain_type, types_of, value_of
from sqs_jax.start import missing

ANALYSIS = ("python", "-m", "sqs_jax.analysis")
"""The command that reads and writes pages, as it works from any folder."""

_HELP = {"-h", "--help"}
_QUIET = {"-q", "--quiet"}
_EARLY = {compile_cache.FLAG}  # what counts before flags are read
_VERSION = "--version"


def read(kind: Any, args: Sequence[str], *, prog: str, description: str = "") -> Any:
    """The dataclass that a command line describes; its fields are declared by `option`.

    Prints the flags and exits where --help is asked for. Raises InputError for a flag that is unknown, a value of the
    wrong type, and a required one that is missing.
    """
    if asks_help([kind], args):
        print_help([kind], prog=prog, description=description or kind.__doc__)
    values = given([kind], args, prog=prog)
    for field in dataclasses.fields(kind):
        if field.default is dataclasses.MISSING and field.name not in values:
            raise InputError(f"{field.name} is missing: {field.metadata['help']} ({prog} --help lists the flags)")
    return kind(**values)


def asks_help(kinds: Sequence[Any], args: Sequence[str]) -> bool:
    """Whether a command line asks for help, and not as the value of a flag."""
    return not _HELP.isdisjoint(_joined(args, _parser(kinds, "")[0]))


def given(kinds: Sequence[Any], args: Sequence[str], *, prog: str) -> dict[str, Any]:
    """The fields of several dataclasses that a command line sets, by name; fields of one name are one flag.

    Raises InputError as `read`, except for what is missing.
    """
    parser, positionals = _parser(kinds, prog)
    joined = _joined(args, parser)
    if _VERSION in joined:
        print_version()
    display.quiet(not _QUIET.isdisjoint(joined))
    options, rest = parser.parse_known_args([word for word in joined if word not in _HELP | _QUIET | _EARLY])
    words = [word for word in rest if not _is_flag(word)]
    unknown = [word for word in rest if _is_flag(word)]
    values = vars(options)
    for name, annotation in positionals.items():
        count = len(words) if get_origin(plain_type(annotation)) is tuple else 1
        taken, words = words[:count], words[count:]
        if taken:
            values[name] = _positional(name, taken, annotation, prog)
    if unknown or words:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        likely = difflib.get_close_matches((unknown or words)[0], flags, 1)
        hint = f"; did you mean {likely[0]}?" if likely else ""
        parser.error(f"unrecognized: {', '.join([*unknown, *words])}{hint}")
    return values


def print_help(groups: Sequence[Any], *, prog: str, description: str) -> NoReturn:
    """Prints the flags of dataclasses, or of instances whose values are the defaults, and exits."""
    parser, _ = _parser(groups, prog, description)
    display.end()
    print(parser.format_help(), end="")
    sys.exit(0)


def print_version() -> NoReturn:
    """Prints the versions of this package and of what it stands on, and exits."""
    from sqs_jax.versions import versions

    display.end()
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    sys.exit(0)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=28, width=110)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} ({self.prog} --help lists the flags)")


def _parser(groups: Sequence[Any], prog: str, description: str = "") -> tuple[_Parser, dict[str, Any]]:
    """A parser of the flags of all groups, and the annotations of what stands without a flag."""
    parser = _Parser(
        prog=prog,
        description=description,
        formatter_class=_Formatter,
        add_help=False,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        usage=f"{prog} [flags]",
    )
    parser.add_argument("-h", "--help", action="store_true", help="Show this help.")
    parser.add_argument("-q", "--quiet", action="store_true", help="Show results alone, no progress.")
    parser.add_argument(compile_cache.FLAG, action="store_true", help=compile_cache.HELP)
    parser.add_argument(_VERSION, action="store_true", help="Show the versions of this package and of JAX.")
    positionals, names = {}, set()
    for group in groups:
        kind = group if isinstance(group, type) else type(group)
        title = (kind.__doc__ or kind.__name__).partition("\n")[0].partition(". ")[0]
        section = parser.add_argument_group(title.rstrip("."))
        for field in dataclasses.fields(kind):
            if field.name in names:
                continue
            names.add(field.name)
            annotation = types_of(kind)[field.name]
            default = field.default if isinstance(group, type) else getattr(group, field.name)
            if field.metadata["positional"]:
                positionals[field.name] = annotation
                parser.usage = f"{prog} [{field.name}] [flags]"
                if description:
                    section.add_argument(field.name, nargs="?", help=_help(field, default))
            else:
                section.add_argument(_flag(field.name), **_settings(field, annotation, default))
    return parser, positionals


def _settings(field: dataclasses.Field, annotation: Any, default: Any) -> dict[str, Any]:
    """How argparse takes a field."""
    kind = plain_type(annotation)
    settings: dict[str, Any] = {"dest": field.name, "help": _help(field, default)}
    if kind is bool:
        return settings | {"action": argparse.BooleanOptionalAction}
    if get_origin(kind) is tuple:
        return settings | {"type": _reader(get_args(kind)[0]), "nargs": "*", "action": _Tuple, "metavar": "VALUE"}
    is_choice = get_origin(kind) is Literal
    metavar = "{" + ",".join(get_args(kind)) + "}" if is_choice else kind.__name__.upper().replace("STR", "TEXT")
    return settings | {"type": _reader(kind), "metavar": field.metadata["metavar"] or metavar}


class _Tuple(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, tuple(values or ()))


def _help(field: dataclasses.Field, default: Any) -> str:
    text = field.metadata["help"]
    if isinstance(default, bool):
        text += f" (default: {str(default).lower()})"
    elif default not in (None, "", (), dataclasses.MISSING):
        text += f" (default: {' '.join(map(str, default)) if isinstance(default, tuple) else default})"
    return text.replace("%", "%%")  # argparse formats it


def _reader(kind: Any):
    def read_value(text: str) -> Any:
        try:
            return value_of(text, kind)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{quoted(text)}: {error}") from None

    return read_value


def _positional(name: str, words: list[str], annotation: Any, prog: str) -> Any:
    kind = plain_type(annotation)
    many = get_origin(kind) is tuple
    try:
        values = tuple(value_of(word, get_args(kind)[0] if many else kind) for word in words)
    except ValueError as error:
        raise InputError(f"{name} is {quoted(words[0])}: {error} ({prog} --help lists the flags)") from None
    return values if many else values[0]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _joined(args: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """The arguments, flags spelled with dashes, a value that begins with a dash joined to its flag by an =.

    argparse would take such a value, say -1e-3, for a flag.
    """
    flags = {flag: action for action in parser._actions for flag in action.option_strings}
    joined: list[str] = []
    for arg in args:
        name, equals, value = arg.partition("=")
        word = name.replace("_", "-") + equals + value if arg.startswith("--") else arg
        before = flags.get(joined[-1]) if joined else None
        takes_one = isinstance(before, argparse._StoreAction) and before.nargs is None
        if takes_one and word.startswith("-") and name.replace("_", "-") not in flags.keys() - {"-h", "-q"}:
            joined[-1] += f"={arg}"
        else:
            joined.append(word)
    return joined


def _is_flag(word: str) -> bool:
    return word.startswith("-") and len(word) > 1


@contextlib.contextmanager
def one_line_errors(*mistakes: type[Exception], interrupted: str = "interrupted") -> Iterator[None]:
    """Turns these errors and OSError into one line and exit code 2, Ctrl-C into a line of its own and 130."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # σ and λ on a terminal that has no such letters
    try:
        yield
    except KeyboardInterrupt:
        fail(interrupted, 130)
    except mistakes as error:
        fail(str(error), 2)
    except ModuleNotFoundError as error:
        fail(missing(error), 2)
    except ImportError as error:  # as `start.extra` tells of a missing package
        fail(str(error), 2)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), 2)


def fail(message: str, code: int) -> NoReturn:
    """Says it on stderr, in one line, and exits."""
    line = one_line(message)
    display.end()
    print(f"error: {line}" if code in (1, 2) else line, file=sys.stderr, flush=True)
    sys.exit(code)


def program(folder: str, installed: str | None = None) -> str:
    """How `folder`'s command was called: from a clone's root, as an installed module, or by its installed name."""
    main_module = getattr(sys.modules["__main__"], "__spec__", None)
    if main_module and main_module.name == f"sqs_jax.{folder}.__main__":
        return f"python -m sqs_jax.{folder}"
    return installed if installed and Path(sys.argv[0]).stem == installed else f"python -m {folder}"
