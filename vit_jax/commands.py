"""What the command lines share: a user's mistake is a message and exit status 1, a defect of ours a traceback."""
import pathlib
import sys
import traceback

from absl import flags
from absl import logging

_HERE = pathlib.Path(__file__).parent


def call(function, *args):
  """Calls function(*args) and returns what it returns.

  A ValueError or OSError that our own code raised is about the user's input: its message is printed, without the
  traceback (--verbosity=1 shows it), and the process exits with status 1. One from a library keeps its traceback.
  """
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)  # Orbax tells 50 lines a checkpoint otherwise
  try:
    return function(*args)
  except (ValueError, OSError) as error:
    raised_in = pathlib.Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    if _HERE not in raised_in.parents or logging.get_verbosity() > logging.INFO:
      raise
    print(f'error: {error}', file=sys.stderr)
    sys.exit(1)
  except KeyboardInterrupt:
    sys.exit(130)  # as a shell has it for Ctrl-C
