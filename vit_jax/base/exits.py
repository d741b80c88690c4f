"""What commands run before they exit with a failure, registered by modules that a command may not have imported.

`run.cli.call` runs the callbacks; `distributed.hosts.start` registers its own, so that the other processes of the run
learn of the failure.
"""
from collections.abc import Callable
import os
import sys
from typing import NoReturn

EXIT_PIPE = 141  # what a shell reports for a process that SIGPIPE ended

_before_traceback: list[Callable[[], None]] = []
_on_failure: list[Callable[[BaseException], None]] = []


def before_traceback(callback: Callable[[], None]) -> None:
  """Register `callback()` to run before an unexpected error is raised and its traceback printed."""
  if callback not in _before_traceback:
    _before_traceback.append(callback)


def on_failure(callback: Callable[[BaseException], None]) -> None:
  """Register `callback(error)` to run after a user's mistake was printed, or after Ctrl-C, before the process exits."""
  if callback not in _on_failure:
    _on_failure.append(callback)


def run_before_traceback() -> None:
  """Run the callbacks of `before_traceback`, in the order they were registered."""
  for callback in _before_traceback:
    callback()


def run_on_failure(error: BaseException) -> None:
  """Run the callbacks of `on_failure`, in the order they were registered; one may end the process."""
  for callback in _on_failure:
    callback(error)


def close_output() -> NoReturn:
  """Exit after a broken pipe, without the error that Python prints when it flushes the output."""
  os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  sys.exit(EXIT_PIPE)
