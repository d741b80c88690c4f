"""A TCP connection from process 0 to every other process of a run: startup with names, small JSON values, lost peers.

jax's own coordinator aborts the process if a peer does not connect or dies, and does not say which process or host
failed. This channel is set up before it: it waits for all processes and lists the missing ones, exchanges small JSON
values, and notices at once when a peer's connection is lost.
"""
from collections.abc import Callable, Iterable
import json
import queue
import socket
import sys
import threading
import time
from typing import Any, NoReturn

from vit_jax.base.errors import UserError

_PROGRESS_EVERY = 15.0  # seconds between two lines that list the processes still awaited

OnPeerExit = Callable[[str, bool], None]  # (text, retry): whether starting again may help


class ConnectError(UserError, OSError):
  """The processes of a run cannot connect."""


class StartTimeoutError(ConnectError, TimeoutError):
  """Some processes did not connect in time; the message lists them."""


class ControlChannel:
  """The connections of one process; the constructor returns once all processes have connected.

  Args:
    address: 'HOST:PORT' of process 0, which listens there until all have connected.
    count: number of processes.
    index: which process this is, 0..count - 1.
    timeout: seconds to wait for all.

  Attributes:
    index: as given.
    hosts: host names by process.
    reports: what the connected processes said last of what they do, by process.

  Raises:
    StartTimeoutError: some processes did not connect; the message lists them.
    UserError: processes that contradict each other: the same index twice, or different counts.
    ConnectError: process 0 cannot listen.
  """

  def __init__(self, address: str, count: int, index: int, timeout: float):
    self.index, self._count = index, count
    self._connections: dict[int, _Connection] = {}
    self._messages: dict[int, int] = {}
    self.reports: dict[int, str] = {}
    host, port = split_address(address)
    connect = self._accept_all if index == 0 else self._join
    self.hosts = connect(host, port, timeout)
    self._inboxes = {other: queue.SimpleQueue() for other in self._connections}
    for connection in self._connections.values():
      connection.remove_timeout()

  def name(self, index: int) -> str:
    """Return 'process 1 on HOST'."""
    return f'process {index} on {self.hosts[index]}'

  def watch(self, on_exit: OnPeerExit) -> None:
    """Start threads that call `on_exit(text, retry)` once a peer is gone or leaves with a reason."""
    self._messages = dict.fromkeys(self._connections, 0)
    for index, connection in self._connections.items():
      threading.Thread(target=self._listen, args=(index, connection, on_exit), daemon=True).start()

  def exchange(self, value: Any) -> list[Any]:
    """Return the JSON values of all processes, by process; all must call it, in the same order, after `watch`."""
    if self.index == 0:
      values = [value, *(self._inboxes[index].get() for index in sorted(self._inboxes))]
      self._send_all(values=values)
      return values
    self._send_all(value=value)
    return self._inboxes[0].get()

  def send_report(self, text: str) -> None:
    """Say to the connected processes that this one lives, and what it does; it is in their `reports`."""
    self._send_all(report=text)

  def count_messages(self) -> dict[int, int]:
    """Return how many messages have come from each connected process that has not left, since `watch`."""
    return dict(self._messages)

  def report_silent(self, index: int, seconds: float, on_exit: OnPeerExit) -> None:
    """End this process and the others as if process `index` was gone: it sent no message for some seconds."""
    self._report_exit(f'{self.name(index)} has not answered for {seconds:.0f} s: stopped, or its host or network hangs',
                      True, on_exit)

  def leave(self, reason: str | None = None, *, retry: bool = False) -> None:
    """Announce that this process ends. Given a reason, a sentence, the peers end as well and print it.

    Args:
      reason: why, or None.
      retry: whether starting all processes again may help.
    """
    self._send_all(left=reason, retry=retry)

  def _send_all(self, **message: Any) -> None:
    for connection in self._connections.values():
      try:
        connection.send(**message)
      except OSError:
        pass  # the thread that listens to this peer sees it too

  def _listen(self, index: int, connection: '_Connection', on_exit: OnPeerExit) -> None:
    while (message := connection.receive()) is not None:
      self._messages[index] += 1
      if 'report' in message:
        self.reports[index] = message['report']
      elif 'left' not in message:
        self._inboxes[index].put(message.get('values', message.get('value')))
      elif message['left'] is None:
        del self._messages[index]
        return
      else:
        return self._report_exit(message['left'], message['retry'], on_exit)
    self._report_exit(f'{self.name(index)} is gone: killed, out of memory, or its host is lost', True, on_exit)

  def _report_exit(self, text: str, retry: bool, on_exit: OnPeerExit) -> None:
    if self.index == 0:
      self._send_all(left=text, retry=retry)  # the others are connected to process 0 only
    on_exit(text, retry)

  def _accept_all(self, host: str, port: int, timeout: float) -> list[str]:
    """Wait, as process 0, until all have connected; return the host names."""
    names, start = {0: socket.gethostname()}, time.monotonic()
    next_progress = start + _PROGRESS_EVERY
    with _listener(port) as listener:
      while len(names) < self._count:
        missing = sorted(set(range(self._count)) - set(names))
        if time.monotonic() > start + timeout:
          connected = ', '.join(f'{index} ({names[index]})' for index in sorted(names))
          self._reject(StartTimeoutError(
              f'--start_timeout: {_processes(missing)} of {self._count} did not connect to {host}:{port} within '
              f'{timeout:g} s; connected: {connected}. Check whether the missing ones were started, and their output'))
        if time.monotonic() > next_progress:
          next_progress += _PROGRESS_EVERY
          print(f'waiting for {_processes(missing)} of {self._count}', file=sys.stderr, flush=True)
        listener.settimeout(max(0.01, min(next_progress, start + timeout) - time.monotonic()))
        try:
          connection = _Connection(listener.accept()[0], timeout=5.0)
        except TimeoutError:
          continue
        self._admit(connection, names)
        if len(names) == self._count:
          self._drop_dead(names)
    hosts = [names[index] for index in range(self._count)]
    self._send_all(hosts=hosts)
    return hosts

  def _drop_dead(self, names: dict[int, str]) -> None:
    """Forget processes that connected and have died since."""
    for index in [index for index, connection in self._connections.items() if connection.is_dead()]:
      del self._connections[index], names[index]

  def _admit(self, connection: '_Connection', names: dict[int, str]) -> None:
    """Add a process that introduces itself; ignore any other program that connects."""
    hello = connection.receive()
    if not isinstance(hello, dict) or set(hello) != {'process', 'count', 'host'}:
      return
    index, count, host = hello['process'], hello['count'], hello['host']
    self._drop_dead(names)  # this may be one of them, started again
    if count != self._count:
      problem = (f'--processes: must be the same for all; process {index} on {host} got {count}, process 0 on '
                 f'{names[0]} got {self._count}')
    elif index in names:
      problem = f'--process: must differ between processes; got {index} both on {names[index]} and on {host}'
    else:
      self._connections[index], names[index] = connection, host
      return
    self._connections[-1] = connection  # so that the rejection reaches it too
    self._reject(UserError(problem))

  def _reject(self, error: Exception) -> NoReturn:
    """Raise an error here and in all processes that are connected."""
    self._send_all(rejected=str(error), timed_out=isinstance(error, TimeoutError))
    raise error

  def _join(self, host: str, port: int, timeout: float) -> list[str]:
    """Connect, as any process but 0, until process 0 answers; return the host names."""
    start, error = time.monotonic(), None
    while (remaining := start + timeout - time.monotonic()) > 0:
      try:
        connection = _Connection(socket.create_connection((host, port), timeout=min(remaining, 10.0)),
                                 timeout=timeout + 10.0)
        connection.send(process=self.index, count=self._count, host=socket.gethostname())
        message = connection.receive()
      except OSError as err:  # process 0 does not listen yet, or its name does not resolve yet
        error, message = err, None
      else:
        if message is not None and 'rejected' in message:
          raise (StartTimeoutError if message['timed_out'] else UserError)(message['rejected'])
        if message is not None:
          self._connections = {0: connection}
          return message['hosts']
      time.sleep(0.5)
    raise StartTimeoutError(f'--coordinator: process 0 did not answer at {host}:{port} within {timeout:g} s ({error}). '
                            'It must run on that host, which the others must be able to reach')


def split_address(address: str) -> tuple[str, int]:
  """Return (host, port) of 'HOST:PORT'; raise UserError if it is something else."""
  host, _, port = address.rpartition(':')
  if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
    raise UserError(f"--coordinator: expected HOST:PORT, such as 'worker-0:8476', got {address!r}")
  return host.strip('[]'), int(port)


def _listener(port: int) -> socket.socket:
  dual_stack = socket.has_dualstack_ipv6()
  try:
    return socket.create_server(('', port), family=socket.AF_INET6 if dual_stack else socket.AF_INET,
                                dualstack_ipv6=dual_stack)
  except OSError as error:
    raise ConnectError(f'--coordinator: process 0 cannot listen on port {port}: {error}; is another run using it? '
                       'Choose another port') from error


def _processes(indices: Iterable[int]) -> str:
  numbers = list(map(str, indices))
  return f'process{"es" if len(numbers) > 1 else ""} {", ".join(numbers)}'


class _Connection:
  """One end of a connection that carries JSON lines both ways."""

  def __init__(self, connection: socket.socket, timeout: float):
    connection.settimeout(timeout)
    # A host that loses power or network sends nothing: the kernel probes it, and gives up after 25 s without an answer.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in dict(TCP_KEEPIDLE=10, TCP_KEEPINTVL=5, TCP_KEEPCNT=3).items():
      if hasattr(socket, name):
        connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    self._connection, self._lock = connection, threading.Lock()
    self._file = connection.makefile('r', encoding='utf8')

  def remove_timeout(self) -> None:
    self._connection.settimeout(None)

  def send(self, **message: Any) -> None:
    with self._lock:
      self._connection.sendall(json.dumps(message).encode() + b'\n')

  def receive(self) -> Any:
    """Return the next message, or None if the peer is gone or sends something else than JSON."""
    try:
      return json.loads(self._file.readline())
    except (OSError, ValueError):
      return None

  def is_dead(self) -> bool:
    """Return whether the peer has closed the connection."""
    timeout = self._connection.gettimeout()
    self._connection.setblocking(False)
    try:
      return not self._connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
      return False
    except OSError:
      return True
    finally:
      self._connection.settimeout(timeout)
