"""Commands one after another in one process that stays connected to Ray, as in a notebook: its workers stay, too."""

import io
import json
import subprocess
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout


@contextmanager
def session(environment):
    """Start such a process; yield a function that runs a command in it and returns (exit status, what it printed).

    Args:
        environment: the process's, with RAY_ADDRESS.
    """
    command = [sys.executable, __file__]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(*arguments):
        process.stdin.write(json.dumps([str(argument) for argument in arguments]) + "\n")
        process.stdin.flush()
        return tuple(json.loads(process.stdout.readline()))

    try:
        yield run
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def answer_commands():
    """Read commands from the standard input, a line of JSON each; answer each with a line."""
    import ray

    from exemplar_ray.cli import main

    ray.init(log_to_driver=False, logging_level="ERROR")
    for line in sys.stdin:
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            status = main(json.loads(line))
        print(json.dumps([status, said.getvalue()]), flush=True)


if __name__ == "__main__":
    answer_commands()
