"""What is wrong with a command line, in our words: one line, and the mend."""

from __future__ import annotations

from difflib import get_close_matches
from functools import singledispatch
from typing import Literal, get_args, get_origin

from cyclopts import (
    Argument,
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    RepeatArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

WORDS = {int: "a whole number", float: "a number", str: "text"}
PROMPTED = {"txt2img", "img2img", "grid"}
"""Commands whose first words are a prompt."""


@singledispatch
def explain(mistake: CycloptsError) -> str:
    """One line for a command line that cannot be understood."""
    text = " ".join(str(mistake).split()).rstrip(".")
    return f"{text[:1].lower()}{text[1:]}: {_see(mistake)}"


@explain.register
def _(mistake: UnknownCommandError) -> str:
    given = mistake.unused_tokens[0] if mistake.unused_tokens else ""
    known = [n for n in mistake.app if not n.startswith("-") and mistake.app[n].show] if mistake.app is not None else []
    close = get_close_matches(given, known, n=1)
    did = f"did you mean {close[0]}? " if close else ""
    return f"there is no command {given!r}: {did}the commands are {', '.join(known)}"


@explain.register
def _(mistake: UnknownOptionError) -> str:
    given = mistake.token.keyword if mistake.token.keyword is not None else mistake.token.value
    names = [name for argument in mistake.argument_collection for name in argument.names]
    close = get_close_matches(given, names, n=1)
    did = f"did you mean {close[0]}? " if close else ""
    return f"there is no option {given}: {did}{_see(mistake)}"


@explain.register
def _(mistake: UnusedCliTokensError) -> str:
    words = " ".join(mistake.unused_tokens) if mistake.unused_tokens is not None else ""
    if _command(mistake) in PROMPTED:
        return f'{words!r} is too much: put the prompt in quotes, like "a red apple"'
    return f"{words!r} is too much: {_see(mistake)}"


@explain.register
def _(mistake: MissingArgumentError) -> str:
    assert mistake.argument is not None
    if mistake.keyword is not None:
        count = mistake.argument.token_count()[0]
        return f"{mistake.keyword} needs {'a value' if count == 1 else f'{count} values'}: {_see(mistake)}"
    return f"{_name(mistake.argument)} is missing: {_usage(mistake)}"


@explain.register
def _(mistake: CoercionError) -> str:
    if mistake.token is None or mistake.argument is None:
        return explain.dispatch(CycloptsError)(mistake)
    name = mistake.token.keyword if mistake.token.keyword is not None else _name(mistake.argument)
    kind = mistake.target_type
    if get_origin(kind) is Literal:
        wanted = f"choose {' or '.join(', '.join(map(str, get_args(kind))).rsplit(', ', 1))}"
    elif kind is bool:
        wanted = "give it without a value"
    else:
        wanted = f"give {WORDS[kind]}" if kind in WORDS else _see(mistake)
    return f"{name} cannot be {mistake.token.value!r}: {wanted}"


@explain.register
def _(mistake: RepeatArgumentError) -> str:
    return f"{mistake.token.keyword} is given more than once: give it once"


def _command(mistake: CycloptsError) -> str:
    return " ".join(mistake.command_chain) if mistake.command_chain is not None else ""


def _see(mistake: CycloptsError) -> str:
    return f"see `{' '.join(['safelight', *_command(mistake).split(), '--help'])}`"


def _name(argument: Argument) -> str:
    """As help calls it: an option by its name, a place by its name in capitals."""
    return argument.name if argument.index is None else argument.name.lstrip("-").upper()


def _usage(mistake: CycloptsError) -> str:
    """What must be given, in the order of the help."""
    if mistake.app is None:
        return _see(mistake)
    needed = []
    for argument in mistake.app.assemble_argument_collection():
        if argument.required and not argument.children:  # else a config, whose fields come by themselves
            name = _name(argument)
            needed.append(name if argument.index is not None else f"{name} {_metavar(argument)}")
    return f"the usage is `{' '.join(['safelight', *_command(mistake).split(), *needed])} [OPTIONS]`"


def _metavar(argument: Argument) -> str:
    hint = argument.hint
    return hint.__name__.upper() if isinstance(hint, type) else "VALUE"
