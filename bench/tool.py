"""Asks the command-line tool, which owns the text form of a case, the suites, and what cards sustain.

It is $FOVEAL_TOOL, else the one built in this checkout (build/release or build/cpu-only), else the one on PATH.
"""

import functools
import json
import os
import pathlib
import shutil
import subprocess

BUILDS = ("release", "cpu-only")
_BUILD_FOLDER = pathlib.Path(__file__).resolve().parents[1] / "build"


class ToolError(RuntimeError):
    """There is no tool, or it refused; the message says what it said."""


def program():
    named = os.environ.get("FOVEAL_TOOL")
    built = [str(_BUILD_FOLDER / build / "bin" / "foveal") for build in BUILDS]
    for path in [named] if named else [*built, shutil.which("foveal")]:
        if path and os.access(path, os.X_OK):
            return path
    looked = f"$FOVEAL_TOOL, {named}," if named else f"$FOVEAL_TOOL is not set; {' and '.join(built)} and PATH"
    raise ToolError(
        f"the command-line tool foveal is not there: {looked} have no program of that name; "
        "`cmake --preset release && cmake --build --preset release --target foveal_tool` builds it"
    )


@functools.cache
def ask(*arguments):
    """What `foveal ARGUMENTS… --json` prints."""
    done = subprocess.run([program(), *arguments, "--json"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise ToolError(f"{program()} {' '.join(arguments)}: {(done.stderr or done.stdout).strip()}")
    return json.loads(done.stdout)
