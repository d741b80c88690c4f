"""What the command lines share: a user's mistake is a message and exit status 1, a defect of ours a traceback."""
import pathlib
import sys
import traceback

from absl import flags
from absl import logging

_HERE = pathlib.Path(__file__).parent.parent


def call(function, *args):
  """Calls function(*args) and returns what it returns.

  A ValueError or OSError that our own code raised is about the user's input: its message is printed, without the
  traceback (--verbosity=1 shows it), and the process exits with status 1. One from a library keeps its traceback.
  """
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)  # Orbax tells 50 lines a checkpoint otherwise
  try:
    return function(*args)
  except Exception as error:
    if not _is_users(error) or logging.get_verbosity() > logging.INFO:
      _hosts('wait_for_cause')
      raise
    print(f'error: {error}', file=sys.stderr)
    _hosts('leave', error)
    sys.exit(1)
  except KeyboardInterrupt as error:
    _hosts('leave', error)
    sys.exit(130)  # as a shell has it for Ctrl-C


def _is_users(error):
  raised_in = pathlib.Path(traceback.extract_tb(error.__traceback__)[-1].filename)
  return isinstance(error, (ValueError, OSError)) and _HERE in raised_in.parents


def _hosts(function, *args):
  """Calls a function of `hosts`; commands that never import it are alone."""
  if hosts := sys.modules.get('vit_jax.distributed.hosts'):
    getattr(hosts, function)(*args)


def prepare():
  """Readies the process for jax: compiled programs are kept, see `platform`; before jax computes anything."""
  from vit_jax.base import platform  # after the flags: --help need not wait for jax
  platform.keep_programs()


def define_host_flags():
  """Defines the flags that `start_hosts` reads."""
  flags.DEFINE_string('coordinator', None, 'HOST:PORT of process 0, where several processes run this command; by '
                      'default what the TPU pod, SLURM, Open MPI or Kubernetes tells.')
  flags.DEFINE_integer('processes', None, 'How many processes there are; 1 runs alone, whatever a cluster tells.')
  flags.DEFINE_integer('process', None, 'Which of them this is, from 0.')
  flags.DEFINE_float('start_timeout', 300.0, 'Seconds to wait for all processes.')


def start_hosts():
  """Connects this process to the others of its run, as the flags say."""
  from vit_jax.distributed import hosts  # after the flags: --help need not wait for jax
  values = flags.FLAGS
  hosts.start(values.coordinator, values.processes, values.process, timeout=values.start_timeout)
