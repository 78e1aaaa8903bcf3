"""The `safelight` command: thin. Every option comes from a request's fields or a recipe's config.

Results go to stdout, progress and complaints to stderr. Exit codes: 0; 2 for a user's mistake, with one line
that says what is wrong and the mend; 1 for a fault of ours, with its traceback; 130 when interrupted.
Nothing here imports torch before a command runs.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from cyclopts import App, CycloptsError, Parameter

from safelight import __version__
from safelight.cli import drawing, grid, merging, metadata, models, prompt, training
from safelight.cli.options import RequiredFirst, shown_default
from safelight.errors import RequestError, SafelightError
from safelight.mistakes import explain

app = App(
    name="safelight",
    help="Draw, train and measure latent diffusion models. Results on stdout, progress on stderr.",
    help_epilogue="`safelight COMMAND --help` explains every option of a command.",
    version=__version__,
    version_flags=["--version", "-v"],
    help_formatter=RequiredFirst(),
    default_parameter=Parameter(negative=(), show_default=shown_default),
    suppress_keyboard_interrupt=False,
)
for _room in (drawing, grid, prompt, metadata, models, merging, training):
    _room.register(app)


@app.command(name="help", show=False)
def show_help(*command: str) -> None:
    """The help of safelight, or of one command."""
    _, _, unknown = app.parse_commands(command)
    if unknown:
        raise RequestError(f"there is no command {unknown[0]!r}: see `safelight --help`")
    app.help_print(command)


for _place, _name in enumerate(n for n in app if not n.startswith("-")):
    app[_name].sort_key = _place  # as they were added, and not by the alphabet
    app[_name].help_epilogue = ""  # else they would have that of safelight itself


def _note(message: Warning | str, *_: object, **__: object) -> None:
    """A warning as the one line that it is."""
    print(f"note: {message}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name; None: this process's) and return its exit code."""
    warnings.showwarning = _note
    try:
        app(
            None if arguments is None else list(arguments),
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
    except (CycloptsError, SafelightError) as mistake:
        line = explain(mistake) if isinstance(mistake, CycloptsError) else str(mistake)
        print(f"safelight: {' '.join(line.split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our results has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def run() -> NoReturn:
    """The command as a process of its own: `main`, and out.

    Networks are not taken apart object by object, which took 0.6 seconds of Stable Diffusion 1's size: the system takes
    all memory back at once. What others want done at the end is done before.
    """
    code = main()
    others = [thread for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()]
    if "torch" in sys.modules and not others:
        atexit._run_exitfuncs()
        with suppress(OSError):  # it is said below, as Python says it
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    sys.exit(code)
