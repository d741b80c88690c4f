"""Try again what may fail now and then: reads from network disks and object stores, a machine short of memory."""
from collections.abc import Callable, Sequence
import errno
import os
import random
import time
from typing import TypeVar

from absl import logging

from vit_jax.base import text
from vit_jax.base.errors import RetryError

T = TypeVar('T')

# Seconds before each further try: a minute in total, which outlasts a server that restarts or a mount that comes back.
DELAYS = (0.2, 1.0, 3.0, 8.0, 20.0, 30.0)

_JITTER = 0.2  # processes that failed at the same moment should not all come back at the same moment


def may_pass(error: BaseException) -> bool:
  """Return whether an error is of a kind that may be gone at the next try.

  True for connection errors and time-outs; for an OSError with one of `_PASSING`; for one of those inside another
  error (its `__cause__`); for an answer of a server with an HTTP status of `_PASSING_HTTP`; for an error of a C++
  library, such as ArrayRecord's or TensorStore's, whose text holds the system's words for one of these; and for a lack
  of memory. False for everything else: a missing file, a denied permission, a full disk, damaged bytes; and a
  RetryError, as that was tried again already.
  """
  if isinstance(error, RetryError):
    return False
  if isinstance(error, ConnectionError | TimeoutError | MemoryError):
    return True
  if error.__cause__ is not None and may_pass(error.__cause__):
    return True
  if isinstance(error, OSError) and error.errno is not None:
    return error.errno in _PASSING
  for name in ('code', 'status', 'status_code'):  # gcsfs, aiohttp, requests; they do not share a base class
    value = getattr(error, name, None)
    if isinstance(value, int) and value in _PASSING_HTTP:
      return True
  words = str(error)
  return isinstance(error, RuntimeError | ValueError) and any(
      reason in words for reason in (*map(os.strerror, _PASSING), *_PASSING_STATUS))


def call(function: Callable[[], T], what: str, *, delays: Sequence[float] | None = None,
         passing: Callable[[BaseException], bool] = may_pass, failed: Exception | None = None) -> T:
  """Return `function()`; after an error that may pass, wait and try again, with a warning each time.

  Args:
    function: does the work; it must be harmless to call it again.
    what: what it does, for messages, such as 'reading /data/1.jpg'.
    delays: seconds before each further try, each changed at random by up to a fifth; () tries once, None is `DELAYS`.
    passing: which errors may pass; all others are raised at once, as they are.
    failed: the error of a try that was made before the call, which counts as the first.

  Raises:
    RetryError: the last try failed, too; its `__cause__` is the last error.
  """
  delays = DELAYS if delays is None else delays
  start, tries = time.monotonic(), len(delays) + 1
  for number in range(tries):
    try:
      if failed is not None and number == 0:
        raise failed
      return function()
    except Exception as error:
      if not passing(error):
        raise
      reason = explain(_cause(error))
      if number == tries - 1:
        seconds = time.monotonic() - start
        raise RetryError(f'{what}: {reason}; tried {text.count(tries, "time")} in {seconds:,.0f} s. Start the same '
                         'command again when the reason has passed') from error
    delay = delays[number] * random.SystemRandom().uniform(1.0 - _JITTER, 1.0 + _JITTER)
    logging.warning('%s: %s; trying again in %.1f s (try %d of %d)', what, reason, delay, number + 2, tries)
    time.sleep(delay)
  raise AssertionError('the last try returns or raises')


def _cause(error: BaseException) -> BaseException:
  """Return the error that may pass inside another, whose own advice is for one that does not."""
  while error.__cause__ is not None and (isinstance(error, RetryError) or may_pass(error.__cause__)):
    error = error.__cause__
  return error


def explain(error: BaseException) -> str:
  """Return what an error says on one line, with its type if its text is empty."""
  words = ' '.join(str(error).split())
  return words[:300] or type(error).__name__


# What network and overlay file systems, and a machine under pressure, report for what may work a moment later.
_PASSING = frozenset(getattr(errno, name) for name in (
    'EAGAIN', 'EBUSY', 'ECONNABORTED', 'ECONNREFUSED', 'ECONNRESET', 'EHOSTDOWN', 'EHOSTUNREACH', 'EINTR', 'EIO',
    'EMFILE', 'ENETDOWN', 'ENETRESET', 'ENETUNREACH', 'ENFILE', 'ENOBUFS', 'ENOLCK', 'ENOMEM', 'ENOTCONN', 'EPIPE',
    'EPROTO', 'EREMOTEIO', 'ESHUTDOWN', 'ESTALE', 'ETIMEDOUT') if hasattr(errno, name))  # not all systems have all

# RFC 9110: request timeout, too early, too many requests, and what servers and gateways say when they are overloaded.
_PASSING_HTTP = frozenset({408, 425, 429, 500, 502, 503, 504})

# Names of gRPC's and Abseil's statuses of the same meaning, in the text of C++ libraries' errors.
_PASSING_STATUS = ('UNAVAILABLE', 'DEADLINE_EXCEEDED', 'RESOURCE_EXHAUSTED', 'ABORTED')
