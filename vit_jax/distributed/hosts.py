"""The processes of one run, on one host or many: connect them, check that they match, and end them together."""
import atexit
from collections.abc import Callable, Mapping, Sequence
import hashlib
import os
import pathlib
import socket
import sys
import time
from typing import Any, NamedTuple
import warnings

import jax

from vit_jax.base import exits
from vit_jax.base.errors import RetryError, UserError
from vit_jax.base.text import printable
from vit_jax.distributed import jax_internals
from vit_jax.distributed.control_channel import ControlChannel
from vit_jax.distributed.heartbeat import Heartbeat

# Seconds. If a peer dies, a collective fails at once; so does the control channel, which knows which peer it was.
_CAUSE_DELAY = 1.0

_RESTART_HINT = ('This process ends too; no file is half-written. Start all processes again to resume from the last '
                 'checkpoint, if there is one.')

_channel: ControlChannel | None = None  # of this process; like jax's own connection, one for the process's lifetime
_heartbeat: Heartbeat | None = None  # on it


class ProcessMismatchError(UserError):
  """The processes differ in something that must be the same; raised on all of them at once."""


class Placement(NamedTuple):
  """Where a process stands in its run; a field is None if it is neither given nor detected.

  Attributes:
    coordinator: 'HOST:PORT' of process 0.
    processes: number of processes.
    process: index of this process, 0..processes - 1.
    local_devices: ids of the devices it may use; None is all of its host.
  """
  coordinator: str | None
  processes: int | None
  process: int | None
  local_devices: Sequence[int] | None


def start(coordinator: str | None = None, processes: int | None = None, process: int | None = None, *,
          timeout: float = 300.0) -> None:
  """Connect this process to the others of its run, if there are any; call it before jax is used.

  Arguments left out are detected by jax: from a TPU pod's metadata, SLURM, Open MPI or Kubernetes. A single machine, a
  SLURM job of one task and a notebook do not wait. From here on, if one process dies, all others exit within a minute
  and say which one it was.

  Args:
    coordinator: 'HOST:PORT' of process 0, reachable from all; jax also needs other ports, which the system chooses.
    processes: number of processes; 1 runs alone, whatever cluster is detected.
    process: index of this process, 0..processes - 1.
    timeout: seconds to wait for all processes.

  Raises:
    StartTimeoutError: some processes did not connect; the message lists them.
    UserError: arguments that are incomplete or contradict each other.
  """
  global _channel, _heartbeat
  placement = None if _channel else _find_placement(coordinator, processes, process, timeout)
  if placement is None:
    return
  address, count, index, local_devices = placement
  assert address is not None and count is not None and index is not None
  _channel = ControlChannel(address, count, index, timeout)
  _channel.watch(_exit_with_peer)
  _heartbeat = Heartbeat(_channel, _exit_with_peer)
  atexit.register(leave)
  exits.before_traceback(wait_for_cause)
  exits.on_failure(leave)
  # The coordinator's port has open connections, so jax gets another.
  port = exchange(_free_port() if index == 0 else None)[0]
  if _channel.hosts.count(_channel.hosts[index]) == 1:
    local_devices = None  # alone on its host: all of its devices, also under SLURM, where jax would take only the first
  jax.config.update('jax_enable_preemption_service', False)  # not before there is a step to save, see `guards.signals`
  jax.distributed.initialize(
      f'{address.rpartition(":")[0]}:{port}', count, index, local_devices,
      cluster_detection_method='deactivate', coordinator_bind_address=f'[::]:{port}',
      initialization_timeout=int(timeout),
      # Our heartbeats come first: they say which process does not answer, and end the others with a status.
      heartbeat_timeout_seconds=150, shutdown_timeout_seconds=60)


def exchange(value: Any) -> list[Any]:
  """Return the JSON values of all processes, by process; all must call it, in the same order."""
  if _channel:
    return _channel.exchange(value)
  if jax.distributed.is_initialized():
    raise UserError('jax.distributed.initialize: must not be called; start several processes with '
                    'vit_jax.hosts.start(), which calls it')
  return [value]


def report(describe: Callable[[], str]) -> None:
  """Let the other processes know what this one does, if there are any; `describe()` is called every few seconds."""
  if _heartbeat:
    _heartbeat.describe = describe


def describe_peers() -> str:
  """Return a line for each process that this one hears of: all for process 0, that one for the others; '' if alone."""
  channel = _channel
  reports = sorted(channel.reports.items()) if channel else []
  return '\n'.join(f'{channel.name(index)}: {text}' for index, text in reports if channel)


def announce(problem: str) -> None:
  """Tell the other processes why this one ends, if there are any, so that they end too and can be started again."""
  if _channel:
    time.sleep(_CAUSE_DELAY)
    _channel.leave(f'{_channel.name(_channel.index)} ended: {problem}'[:2000], retry=True)


def wait_for_cause() -> None:
  """Wait briefly in case a peer's death caused this error: the control channel then ends this process and says so."""
  if _channel:
    time.sleep(_CAUSE_DELAY)


def leave(error: BaseException | None = None) -> None:
  """End this process's part in the run. After an error, given or uncaught, all other processes end too and print it."""
  global _channel
  channel, _channel = _channel, None
  if channel is None:
    return
  if _heartbeat:
    _heartbeat.end()
  error = error or getattr(sys, 'last_value', None)
  if error is None or isinstance(error, ProcessMismatchError):
    return channel.leave()
  time.sleep(_CAUSE_DELAY)
  text = f'{channel.name(channel.index)} ended: {type(error).__name__}: {error}'
  channel.leave(text[:2000], retry=isinstance(error, RetryError))
  sys.stderr.flush()
  sys.stdout.flush()
  os._exit(exits.status_of(error))  # jax would wait for the others, which wait for this one


def check_processes_match(properties: Mapping[str, Any],
                          differences: Callable[[Mapping[str, Any], Mapping[str, Any]], str]) -> None:
  """Check that all processes belong to one run, and print a line about this one.

  Args:
    properties: {name: JSON value} of what must be the same: config, versions, sizes of the data. Devices and source
      code are added.
    differences: (process 0's properties, another's) → lines that say where they differ, or ''.

  Raises:
    ProcessMismatchError: they differ; the message lists the processes, their hosts and the differences.
  """
  if not _channel and not jax.distributed.is_initialized():
    return
  devices = [device.device_kind for device in jax.local_devices()]
  everyone = exchange(dict(properties, devices=devices, code=_hash_sources()))
  print(f'process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}: '
        f'{len(devices)} × {devices[0]} ({jax.default_backend()})', flush=True)
  problems = [f'{_name(index)}:\n{lines}' for index, other in enumerate(everyone)
              if (lines := differences(everyone[0], other))]
  if problems:
    raise ProcessMismatchError('the processes differ; "there" is process 0, "here" is\n' + '\n'.join(problems))


def raise_together(problem: str | None) -> None:
  """Raise ProcessMismatchError on all processes if any passes a problem; the message lists them and their hosts."""
  problems = [f'{_name(index)}: {text}' for index, text in enumerate(exchange(problem)) if text]
  if problems:
    raise ProcessMismatchError('\n'.join(problems))


def check_equal(value: Any, what: str) -> None:
  """Raise ProcessMismatchError on all processes unless all pass the same JSON value; `what` is what it is, in words."""
  values = exchange(value)
  if any(other != values[0] for other in values):
    listed = ', '.join(f'{other} on {_name(index)}' for index, other in enumerate(values))
    raise ProcessMismatchError(f'the processes see different {what}: {listed}')


def _name(index: int) -> str:
  return _channel.name(index) if _channel else f'process {index} on {socket.gethostname()}'


def _exit_with_peer(text: str, retry: bool) -> None:
  print(f'error: {printable(text)}.\n{_RESTART_HINT}', file=sys.stderr, flush=True)
  sys.stdout.flush()
  # The main thread may be inside a collective that never ends.
  os._exit(exits.EXIT_RETRY if retry else exits.EXIT_ERROR)


def _find_placement(coordinator: str | None, processes: int | None, process: int | None, timeout: float
                    ) -> Placement | None:
  """Return the complete placement of this process; None if it is alone."""
  if processes == 1:
    return None
  given = found = Placement(coordinator, processes, process, None)
  if None in given[:3]:
    found = _detect_placement(given, timeout)
    if found.processes in (None, 1) and given[:3] == (None, None, None):
      return None
  if None in found[:3]:
    raise UserError('--coordinator, --processes, --process: all are needed for several processes; got '
                    f'{found.coordinator}, {found.processes} and {found.process}, and no cluster provides the rest. '
                    'Give coordinator=HOST:PORT, processes and process')
  assert found.processes is not None and found.process is not None
  if not 0 <= found.process < found.processes:
    raise UserError(f'--process: must be at least 0 and less than --processes={found.processes}; got {found.process}')
  return found


def _detect_placement(given: Placement, timeout: float) -> Placement:
  """Complete what is given by jax's cluster detection. Open MPI 5's own numbers override what is given."""
  environ = os.environ
  if 'OMPI_COMM_WORLD_SIZE' in environ and 'OMPI_MCA_orte_hnp_uri' not in environ:
    # Open MPI 5 no longer provides process 0's address.
    return Placement(given.coordinator, int(environ['OMPI_COMM_WORLD_SIZE']), int(environ['OMPI_COMM_WORLD_RANK']),
                     [int(environ['OMPI_COMM_WORLD_LOCAL_RANK'])])
  try:
    found = Placement(*jax_internals.detect_cluster(*given[:3], timeout))
    reason = 'jax asks Kubernetes only if the package kubernetes is installed'
  except Exception as error:  # of any type: requests, kubernetes, key and runtime errors
    found, reason = given, f'{type(error).__name__}: {error}'
    warnings.warn(f'found no cluster ({reason})', stacklevel=4)
  if None in found[:3] and 'JOB_COMPLETION_INDEX' in environ:  # not silently alone, each writing to the same workdir
    raise UserError('--coordinator, --processes, --process: needed in this pod of a Kubernetes job, whose other pods '
                    f'cannot be detected ({reason}). Give all three, or --processes=1 if it is the only one')
  return found


def _free_port() -> int:
  with socket.socket() as probe:
    probe.bind(('', 0))
    return probe.getsockname()[1]


def _hash_sources() -> str:
  """Return 12 digits that change with any source file of this package."""
  package, digest = pathlib.Path(__file__).parent.parent, hashlib.sha256()
  for path in sorted(package.rglob('*.py')):
    digest.update(str(path.relative_to(package)).encode() + b'\0' + path.read_bytes())
  return digest.hexdigest()[:12]
