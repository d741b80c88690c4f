"""The roll call: one TCP connection from process 0 to every other; all answer, and none is lost unnoticed.

jax's own coordinator aborts the process where somebody does not come or dies, and names neither him nor his host. This
line stands before it: it waits for all with names, carries small JSON values, and sees at once when an end goes dead.
"""
import json
import queue
import socket
import sys
import threading
import time

_NEWS_EVERY = 15.0  # seconds between two lines that say who is still awaited


class RollCall:
  """Waits until all processes have answered.

  Args:
    address: 'HOST:PORT' of process 0; it listens there until all have come.
    count: how many processes.
    index: which this is, 0..count - 1.
    timeout: seconds to wait.

  Attributes:
    index: as given.
    hosts: host names by process.

  Raises:
    TimeoutError: some did not come; the message names them.
    ValueError: processes that contradict each other: one index twice, another count.
    OSError: process 0 cannot listen.
  """

  def __init__(self, address, count, index, timeout):
    self.index, self._count = index, count
    self._lines, self._inbox = {}, {}
    host, port = split(address)
    meet = self._wait_for_all if index == 0 else self._answer
    self.hosts = meet(host, port, timeout)
    self._inbox = {other: queue.SimpleQueue() for other in self._lines}
    for line in self._lines.values():
      line.wait_for_ever()

  def name(self, index):
    """'process 1 on HOST'."""
    return f'process {index} on {self.hosts[index]}'

  def watch(self, end):
    """Calls end(text, lost) from another thread as soon as a process is gone (`lost`) or leaves with a reason."""
    for index, line in self._lines.items():
      threading.Thread(target=self._listen, args=(index, line, end), daemon=True).start()

  def gather(self, value):
    """The values (JSON) that all processes give, by process; all must call it. Only after `watch`."""
    if self.index == 0:
      values = [value, *(self._inbox[index].get() for index in sorted(self._inbox))]
      self._send_all(values=values)
      return values
    self._send_all(value=value)
    return self._inbox[0].get()

  def leave(self, reason=None):
    """Says that this process ends; with a reason, a sentence, the others end too and show it."""
    self._send_all(left=reason, lost=False)

  def _send_all(self, **message):
    for line in self._lines.values():
      try:
        line.send(**message)
      except OSError:
        pass  # its reader sees it too

  def _listen(self, index, line, end):
    while (message := line.receive()) is not None:
      if 'left' not in message:
        self._inbox[index].put(message.get('values', message.get('value')))
      elif message['left'] is None:
        return
      else:
        return self._pass_on(message['left'], message['lost'], end)
    self._pass_on(f'{self.name(index)} is gone: killed, out of memory, or its host is lost', True, end)

  def _pass_on(self, text, lost, end):
    if self.index == 0:
      self._send_all(left=text, lost=lost)
    end(text, lost)

  def _wait_for_all(self, host, port, timeout):
    """Process 0: {index: line} and host names, once all have said hello."""
    names, start = {0: socket.gethostname()}, time.monotonic()
    news = start + _NEWS_EVERY
    with _listener(port) as listener:
      while len(names) < self._count:
        missing = sorted(set(range(self._count)) - set(names))
        if time.monotonic() > start + timeout:
          here = ', '.join(f'{index} ({names[index]})' for index in sorted(names))
          self._refuse(TimeoutError(
              f'{_these(missing)} of {self._count} did not come to {host}:{port} within {timeout:g} s. Here are {here}'
              '. Look at what the missing ones printed, or whether they were started at all'))
        if time.monotonic() > news:
          news += _NEWS_EVERY
          print(f'waiting for {_these(missing)} of {self._count}', file=sys.stderr, flush=True)
        listener.settimeout(max(0.01, min(news, start + timeout) - time.monotonic()))
        try:
          line = _Line(listener.accept()[0], timeout=5.0)
        except TimeoutError:
          continue
        self._admit(line, names)
        if len(names) == self._count:
          self._forget_dead(names)
    roll = [names[index] for index in range(self._count)]
    self._send_all(roll=roll)
    return roll

  def _forget_dead(self, names):
    """Strikes out processes that came and went."""
    for index in [index for index, line in self._lines.items() if line.is_dead()]:
      del self._lines[index], names[index]

  def _admit(self, line, names):
    """Takes up a process that says hello; a stranger, who does not, is let go."""
    hello = line.receive()
    if not isinstance(hello, dict) or set(hello) != {'process', 'count', 'host'}:
      return
    index, count, host = hello['process'], hello['count'], hello['host']
    self._forget_dead(names)  # it may be one of them, started again
    if count != self._count:
      wrong = (f'process {index} on {host} was started as one of {count} processes, process 0 on {names[0]} as one of '
               f'{self._count}')
    elif index in names:
      wrong = f'two processes say that they are process {index}: on {names[index]} and on {host}'
    else:
      self._lines[index], names[index] = line, host
      return
    self._lines[host] = line  # it is told too
    self._refuse(ValueError(wrong))

  def _refuse(self, error):
    self._send_all(refused=str(error), late=isinstance(error, TimeoutError))
    raise error

  def _answer(self, host, port, timeout):
    """The others: says hello until process 0 answers."""
    start, error = time.monotonic(), None
    while (left := start + timeout - time.monotonic()) > 0:
      try:
        line = _Line(socket.create_connection((host, port), timeout=min(left, 10.0)), timeout=timeout + 10.0)
        line.send(process=self.index, count=self._count, host=socket.gethostname())
        message = line.receive()
      except OSError as err:  # not up yet, or its name not known yet
        error, message = err, None
      if message is None:
        time.sleep(0.5)
        continue
      if 'refused' in message:
        raise (TimeoutError if message['late'] else ValueError)(message['refused'])
      self._lines = {0: line}
      return message['roll']
    raise TimeoutError(f'process 0 did not come: nobody answers at {host}:{port} within {timeout:g} s ({error}). '
                       'It must run on that host, which the others must reach')


def split(address):
  """('HOST', port) of 'HOST:PORT'; raises ValueError."""
  host, _, port = address.rpartition(':')
  if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
    raise ValueError(f"expected the coordinator as HOST:PORT, such as 'worker-0:8476', got {address!r}")
  return host.strip('[]'), int(port)


def _listener(port):
  both = socket.has_dualstack_ipv6()
  try:
    return socket.create_server(('', port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both)
  except OSError as error:
    raise OSError(f'process 0 cannot listen on port {port}: {error}; is another run there? '
                  'Choose another port') from error


def _these(indices):
  return f'process{"es" if len(indices) > 1 else ""} {", ".join(map(str, indices))}'


class _Line:
  """One end of a connection, JSON lines both ways."""

  def __init__(self, connection, timeout):
    connection.settimeout(timeout)
    # A host that loses power or network says nothing: the kernel asks, and 25 s without an answer end the line.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in dict(TCP_KEEPIDLE=10, TCP_KEEPINTVL=5, TCP_KEEPCNT=3).items():
      if hasattr(socket, name):
        connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    self._connection, self._lock = connection, threading.Lock()
    self._file = connection.makefile('r', encoding='utf8')

  def wait_for_ever(self):
    self._connection.settimeout(None)

  def send(self, **message):
    with self._lock:
      self._connection.sendall(json.dumps(message).encode() + b'\n')

  def receive(self):
    """The next message; None once the other end is gone or speaks something else."""
    try:
      return json.loads(self._file.readline())
    except (OSError, ValueError):
      return None

  def is_dead(self):
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
