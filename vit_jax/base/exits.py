"""Exit statuses, and what commands run before they exit with a failure.

Modules that a command may not have imported register what to run: `distributed.hosts.start` does, so that the other
processes of the run learn of the failure. `run.cli.call` runs it.
"""
from collections.abc import Callable
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, NoReturn

from vit_jax.base.errors import RetryError

# Exit statuses. 0: finished; 128 + N: ended by signal N, after saving what there is to save.
EXIT_ERROR = 1  # something that a person must fix
EXIT_RETRY = 75  # a fault of the machine that may pass, EX_TEMPFAIL of sysexits.h: start the same command again
EXIT_INTERRUPTED = 130  # what a shell reports for Ctrl-C
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


def exit_on_interrupt() -> None:
  """Let Ctrl-C end the process at once, unless it is ignored, as in a job that a script put into the background."""
  _handle_interrupt(lambda number, frame: os._exit(EXIT_INTERRUPTED))


def raise_on_interrupt() -> None:
  """Let Ctrl-C raise KeyboardInterrupt, unless it is ignored."""
  _handle_interrupt(signal.default_int_handler)


def _handle_interrupt(handler: Callable[[int, FrameType | None], Any]) -> None:
  # Python lets only the main thread handle signals.
  if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, handler)


def status_of(error: BaseException) -> int:
  """Return the exit status of a command that ends with an error."""
  if isinstance(error, RetryError):
    return EXIT_RETRY
  return EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else EXIT_ERROR


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
