"""How this program was started, and how a command is written that can be given in the same place."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Set where Ray's job server started the program.
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
# The working folder has a flag of its own; Ray adds the others itself.
_NOT_ASKED_FOR = ("working_dir", "_ray_commit", "config")

_COMMAND = "exemplar-ray"
_SHELL, _PYTHON, _SUBMITTED = "shell", "python", "submitted"


@dataclass(frozen=True)
class Invocation:
    """How this program was started: from a shell, from Python, or as a job that was submitted to a cluster.

    Args:
        arguments: those of the command line.
        words: what the process was started with; None where Python called, whose process's own words say nothing.
    """

    arguments: tuple[str, ...]
    words: tuple[str, ...] | None

    @property
    def again(self) -> str:
        """The command that does the same once more."""
        if self._place == _PYTHON:
            return self.command(self.arguments)
        return self._written(_short(self.words or sys.orig_argv))

    def command(self, arguments: Sequence[str]) -> str:
        """Return the command for other arguments of `exemplar-ray`, as it is given in the same place."""
        if self._place == _PYTHON:
            return f"from exemplar_ray.cli import main; main({list(arguments)!r})"
        return self._written([*_program(), *arguments])

    @property
    def beside(self) -> str:
        """What the commands lack: a submitted job's environment variables may be secrets, so they are not written."""
        lacking = [key for key, value in (_job() or {}).items() if value and key not in _NOT_ASKED_FOR]
        return f", with the --runtime-env-json of this job ({', '.join(lacking)})" if lacking else ""

    @property
    def is_submitted(self) -> bool:
        """Whether it runs where nobody types."""
        return self._place == _SUBMITTED

    @property
    def _place(self) -> str:
        if _job() is not None:
            return _SUBMITTED
        return _PYTHON if self.words is None else _SHELL

    def _written(self, words: Sequence[str]) -> str:
        job = _job()
        if job is None:
            return shlex.join(words)
        # The job's own folder is a copy of the one that was submitted, which is the one to be in when submitting again.
        folder = ["--working-dir", "."] if "working_dir" in job else []
        return shlex.join(["ray", "job", "submit", *folder, "--", *words])


def invocation_of(arguments: Sequence[str] | None, script: Sequence[str] = ()) -> Invocation:
    """Find out how this program was started.

    Args:
        arguments: those that Python called with; None where they are the process's own.
        script: the words that a program which calls from Python was started with, if giving these again does the same.
    """
    words = tuple(sys.orig_argv if arguments is None else script)
    return Invocation(tuple(sys.argv[1:] if arguments is None else arguments), words or None)


def _short(words: Sequence[str]) -> list[str]:
    """Return what people type: a script that starts by itself without the Python that it names."""
    if len(words) > 1 and Path(words[1]).name == _COMMAND:
        return [_typed(words[1]), *words[2:]]
    return list(words)


def _program() -> list[str]:
    """Return the words that `exemplar-ray` is started with here."""
    started = sys.argv[0] if sys.argv else ""
    if Path(started).name == _COMMAND:
        return [_typed(started)]
    return [sys.orig_argv[0] or sys.executable, "-m", "exemplar_ray"]


def _typed(script: str) -> str:
    """Return a script's bare name where a shell finds this very one by it."""
    found = shutil.which(_COMMAND)
    return _COMMAND if found is not None and os.path.realpath(found) == os.path.realpath(script) else script


def _job() -> dict[str, Any] | None:
    """Return the environment of the submitted job that this program is; None if it is none."""
    try:
        config = json.loads(os.environ[_JOB])
        return dict(config["runtime_env"]) if "job_submission_id" in config["metadata"] else None
    except (KeyError, TypeError, ValueError):
        return None
