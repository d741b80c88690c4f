"""Errors of the operating system: their numbers and what they mean, also as TensorStore reports them."""
import errno
import os
import re


def number(error: BaseException) -> int | None:
  """Return the errno of an error of the system, of Python's or TensorStore's kind; None if it is of another kind."""
  if isinstance(error, OSError) and error.errno is not None:
    return error.errno
  if isinstance(error, MemoryError):
    return errno.ENOMEM
  found = re.search(r"os_error_code='(\d+)'", str(error))
  return int(found[1]) if found else None


def reason(error: BaseException) -> str:
  """Return why something failed, as one line, without the stack of messages that TensorStore adds."""
  if (found := number(error)) is not None:
    return os.strerror(found)
  return f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'
