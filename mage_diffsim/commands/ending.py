"""How a command or script ends: the exit code, and one sentence on stderr."""

import os
import sys
from collections.abc import Callable

from mage_diffsim.errors import InputError, MissingExtra


def exit_code(
    program: str,
    body: Callable[[], int],
    interrupted: str = "interrupted",
    refused: tuple[type[Exception], ...] = (InputError, MissingExtra),
) -> int:
    """Run a body and turn what ends it early into an exit code.

    Args:
        program: the name that begins every sentence.
        body: returns the exit code; SystemExit, which tyro raises for ``--help`` and bad flags, passes through.
        interrupted: the sentence for Ctrl-C.
        refused: errors whose text is a sentence for the user.

    Returns:
        the body's; 2 for refused input; 130 if it was interrupted; 141 if nobody reads the output any more.
    """
    try:
        try:
            return body()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        return 141  # as a shell reports a process that SIGPIPE ended
    except KeyboardInterrupt:
        print(f"{program}: {interrupted}", file=sys.stderr)
        return 130
    except refused as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
