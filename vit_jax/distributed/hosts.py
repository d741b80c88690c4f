"""The processes of one run, on one host or many: started together, alike, and ended together."""
import atexit
import hashlib
import os
import pathlib
import socket
import sys
import time
import warnings

import jax
from jax._src import clusters  # jax offers its detection of clusters only together with connecting

from vit_jax.distributed import control_channel as roll_call

_roll = None  # of this process; like jax's own connection it is one for the process's life

# Exit status where another process was lost: sysexits.h has it for "try again", and so have the scripts that launch us.
LOST = 75

_ECHO = 1.0  # seconds; a collective fails at once where another process died, and so does the line to it

_AGAIN = ('This process ends too; nothing is half-written. Start all processes again: they go on from the last '
          'checkpoint, if there is one.')


class NotAlike(ValueError):
  """The processes are not one run; all of them raise it at once."""


def start(coordinator=None, processes=None, process=None, *, timeout=300.0):
  """Connects this process to the others of its run; to be called before jax is used. Alone, it does nothing.

  What is not given is what jax finds: a TPU pod's metadata, SLURM, Open MPI or Kubernetes. A single machine, a job of
  one task and a notebook wait for nothing. From here on all end within a minute, with a message, where one dies.

  Args:
    coordinator: 'HOST:PORT' of process 0, reachable from all; jax needs other ports besides, which the system chooses.
    processes: how many there are; 1 runs alone whatever the cluster says.
    process: which this is, 0..processes - 1.
    timeout: seconds to wait for all.

  Raises:
    TimeoutError: some did not come; the message names them.
    ValueError: arguments that are incomplete or contradict each other.
  """
  global _roll
  place = None if _roll else _find_place(coordinator, processes, process, timeout)
  if place is None:
    return
  coordinator, processes, process, local_devices = place
  _roll = roll_call.RollCall(coordinator, processes, process, timeout)
  _roll.watch(_end)
  atexit.register(leave)
  # The coordinator's port has open connections: jax gets another.
  port = gather(_free_port() if process == 0 else None)[0]
  if _roll.hosts.count(_roll.hosts[process]) == 1:
    local_devices = None  # alone on its host: all of its devices, also under SLURM, where jax would take the first
  jax.config.update('jax_enable_preemption_service', False)  # not before there is something to save, see `training.stop`
  jax.distributed.initialize(
      f'{coordinator.rpartition(":")[0]}:{port}', processes, process, local_devices,
      cluster_detection_method='deactivate', coordinator_bind_address=f'[::]:{port}',
      initialization_timeout=int(timeout),
      # Where our own line sees nothing (a process that is stopped, not dead), jax's heartbeats end the run.
      heartbeat_timeout_seconds=45, shutdown_timeout_seconds=60)


def gather(value):
  """The JSON values that all processes give, by process; all must call it, in the same order."""
  if _roll:
    return _roll.gather(value)
  if jax.distributed.is_initialized():
    raise ValueError('several processes are started with vit_jax.hosts.start(), which calls '
                     'jax.distributed.initialize() itself')
  return [value]


def wait_for_cause():
  """Gives the line time to end this process and say why: an error here may be the echo of another process's death."""
  if _roll:
    time.sleep(_ECHO)


def leave(error=None):
  """Ends this process's part. With an error, or after one that nobody caught, all the others end now and show it."""
  global _roll
  roll, _roll = _roll, None
  if roll is None:
    return
  error = error or getattr(sys, 'last_value', None)
  if error is None or isinstance(error, NotAlike):
    return roll.leave()
  time.sleep(_ECHO)
  text = f'{roll.name(roll.index)} ended: {type(error).__name__}: {error}'
  roll.leave(text[:2000])
  sys.stderr.flush()
  sys.stdout.flush()
  os._exit(1)  # jax would wait for the others, which wait for this one


def check_alike(facts, differences):
  """Checks that all processes are one run, and prints a line for this one.

  Args:
    facts: dict for JSON, what must be the same: the config, sizes of the data.
    differences: (process 0's facts, another's) → lines that say where they differ, or ''.

  Raises:
    NotAlike: they differ; the message names the processes, their hosts and what differs.
  """
  if not _roll and not jax.distributed.is_initialized():
    return
  devices = [device.device_kind for device in jax.local_devices()]
  facts = dict(facts, devices=devices, code=_hash_of_sources())
  everybody = gather(facts)
  print(f'process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}: '
        f'{len(devices)} × {devices[0]} ({jax.default_backend()})', flush=True)
  wrong = [f'{_roll.name(index)}:\n{lines}' for index, other in enumerate(everybody)
           if (lines := differences(everybody[0], other))]
  if wrong:
    raise NotAlike('the processes are not alike; "there" is process 0, "here" is\n' + '\n'.join(wrong))


def each_says(problem):
  """Raises NotAlike on all processes if one has a problem, text, or None; the message names it and its host."""
  wrong = [f'{_roll.name(index)}: {text}' for index, text in enumerate(gather(problem)) if text]
  if wrong:
    raise NotAlike('\n'.join(wrong))


def check_equal(value, what):
  """Raises NotAlike on all processes unless all give the same JSON value."""
  values = gather(value)
  if any(other != values[0] for other in values):
    told = ', '.join(f'{other} on {_roll.name(index)}' for index, other in enumerate(values))
    raise NotAlike(f'the processes see different {what}: {told}')


def _end(text, lost):
  print(f'error: {text}.\n{_AGAIN}', file=sys.stderr, flush=True)
  sys.stdout.flush()
  os._exit(LOST if lost else 1)  # the main thread may be inside a collective that never ends


def _find_place(coordinator, processes, process, timeout):
  """(coordinator, processes, process, local device ids or None) of this process; None if it is alone."""
  if processes == 1:
    return None
  given = coordinator, processes, process
  if None in given:
    found = _detect(*given, timeout)
    if found[1] in (None, 1) and given == (None, None, None):
      return None
    coordinator, processes, process, local_devices = found
  else:
    local_devices = None
  if None in (coordinator, processes, process):
    raise ValueError(f'several processes need coordinator=HOST:PORT, processes and process; got {coordinator}, '
                     f'{processes} and {process}, and no cluster tells the rest')
  if not 0 <= process < processes:
    raise ValueError(f'expected 0 <= process < processes, got process {process} of {processes}')
  return coordinator, processes, process, local_devices


def _detect(coordinator, processes, process, timeout):
  """What is given, completed by jax's detection of clusters: (coordinator, processes, process, local device ids).

  Each is None where it is neither given nor found. Open MPI 5's own numbers stand before what is given.
  """
  environ = os.environ
  if 'OMPI_COMM_WORLD_SIZE' in environ and 'OMPI_MCA_orte_hnp_uri' not in environ:
    # Open MPI 5 no longer tells where process 0 is.
    processes, process = int(environ['OMPI_COMM_WORLD_SIZE']), int(environ['OMPI_COMM_WORLD_RANK'])
    return coordinator, processes, process, [int(environ['OMPI_COMM_WORLD_LOCAL_RANK'])]
  try:
    place = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        coordinator, processes, process, None, None, int(timeout))
    why = 'jax asks Kubernetes only where the package kubernetes is installed'
  except Exception as error:  # of any kind: requests, kubernetes, key and runtime errors
    place, why = (coordinator, processes, process, None), f'{type(error).__name__}: {error}'
    warnings.warn(f'found no cluster ({why})')
  if None in place[:3] and 'JOB_COMPLETION_INDEX' in environ:  # not silently alone, each in the workdir of all
    raise ValueError(f'this is a pod of a Kubernetes job, but which others there are cannot be told ({why}). Give '
                     'coordinator=HOST:PORT, processes and process; or processes=1 if it is the only one')
  return place


def _free_port():
  with socket.socket() as probe:
    probe.bind(('', 0))
    return probe.getsockname()[1]


def _hash_of_sources():
  """12 digits that change with any source of this package."""
  here, digest = pathlib.Path(__file__).parent.parent, hashlib.sha256()
  for path in sorted(here.rglob('*.py')):
    digest.update(str(path.relative_to(here)).encode() + b'\0' + path.read_bytes())
  return digest.hexdigest()[:12]
