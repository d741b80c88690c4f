"""The control channel: missing processes are listed, values are exchanged, and a lost peer is noticed."""
import concurrent.futures
import queue
import socket
import threading
import time

import pytest

from vit_jax.base.errors import UserError
from vit_jax.distributed.control_channel import ConnectError, ControlChannel, StartTimeoutError, split_address


def free_address():
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return f'127.0.0.1:{probe.getsockname()[1]}'


def connect(address, count, indices, timeout=10.0):
  """Return what `ControlChannel` returns or raises for each of the processes `indices`, which are threads here."""
  def one(index):
    try:
      return ControlChannel(address, count, index, timeout)
    except Exception as error:
      return error
  with concurrent.futures.ThreadPoolExecutor(len(indices)) as threads:
    return list(threads.map(one, indices))


def watched(count):
  """Return the channels of `count` processes and, for each, a queue of the peers' exits that it sees."""
  channels, exits = connect(free_address(), count, range(count)), [queue.Queue() for _ in range(count)]
  for channel, seen in zip(channels, exits, strict=True):
    channel.watch(lambda text, lost, seen=seen: seen.put((text, lost)))
  return channels, exits


def kill(channel):
  """Close a process's connections without a message, as the kernel does when a process is killed."""
  channel._send_all = lambda **message: None  # its threads live on here
  for connection in channel._connections.values():
    connection._connection.shutdown(socket.SHUT_RDWR)


def test_all_processes_connect_in_any_order():
  channels = connect(free_address(), 4, [2, 0, 3, 1])
  assert [channel.index for channel in channels] == [2, 0, 3, 1]
  assert all(channel.hosts == [socket.gethostname()] * 4 for channel in channels)
  assert channels[0].name(3) == f'process 3 on {socket.gethostname()}'


@pytest.mark.parametrize('count, connected, missing', [
    (2, [0], 'process 1 of 2'), (5, [0, 3], 'processes 1, 2, 4 of 5'), (5, [3, 1, 0], 'processes 2, 4 of 5')])
def test_missing_processes_are_listed_to_all_that_connected(count, connected, missing):
  errors = connect(free_address(), count, connected, timeout=1.0)
  assert len(errors) == len(connected)
  for error in errors:
    assert isinstance(error, StartTimeoutError)
    assert f'--start_timeout: {missing} did not connect' in str(error) and 'within 1 s' in str(error)
    for index in connected:
      assert f'{index} ({socket.gethostname()})' in str(error)


def test_missing_process_0_is_an_error_with_its_address():
  address = free_address()
  error, = connect(address, 2, [1], timeout=1.0)
  assert isinstance(error, StartTimeoutError) and f'process 0 did not answer at {address}' in str(error)


def test_two_processes_with_the_same_index_are_an_error_on_all():
  errors = connect(free_address(), 3, [0, 1, 1], timeout=3.0)
  assert isinstance(errors[0], UserError) and '--process: must differ between processes; got 1 both' in str(errors[0])
  assert {str(error) for error in errors} == {str(errors[0])}


def test_different_process_counts_are_an_error_on_all():
  address = free_address()
  with concurrent.futures.ThreadPoolExecutor() as threads:
    errors = list(threads.map(lambda index, count: connect(address, count, [index])[0], [0, 1], [2, 3]))
  assert len(errors) == 2
  for error in errors:
    assert isinstance(error, UserError) and '--processes: must be the same for all; process 1' in str(error)
    assert 'got 3' in str(error) and 'got 2' in str(error)


def test_other_programs_are_ignored_and_restarted_processes_are_accepted():
  address = free_address()
  with concurrent.futures.ThreadPoolExecutor() as threads:
    first = threads.submit(ControlChannel, address, 3, 0, 20.0)

    def send(text):
      while True:
        try:
          connection = socket.create_connection(split_address(address), timeout=5.0)
        except OSError:
          continue
        connection.sendall(text)
        connection.shutdown(socket.SHUT_WR)
        connection.close()
        return

    send(b'GET / HTTP/1.1\r\n\r\n')
    send(b'\xff\xfe\n')
    send(b'{"process": 1, "count": 3, "host": "died"}\n')
    second = threads.submit(ControlChannel, address, 3, 2, 20.0)
    time.sleep(0.3)  # until it has connected: all three have then, but one has died
    others = connect(address, 3, [1])
  assert first.result().hosts == second.result().hosts == others[0].hosts == [socket.gethostname()] * 3


def test_exchange_returns_the_values_of_all_processes_in_order():
  channels, _ = watched(3)
  for turn in range(3):
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
      exchange = lambda channel, turn=turn: channel.exchange({'turn': turn, 'index': channel.index})
      values = list(threads.map(exchange, channels))
    assert values == [[{'turn': turn, 'index': index} for index in range(3)]] * 3


@pytest.mark.parametrize('lost', [0, 1, 2])
def test_a_lost_process_is_reported_to_all_others(lost):
  channels, exits = watched(3)
  kill(channels[lost])
  for index in {0, 1, 2} - {lost}:
    text, was_lost = exits[index].get(timeout=5.0)
    assert f'process {lost} on {socket.gethostname()} is gone' in text and was_lost


@pytest.mark.parametrize('leaving', [0, 2])
def test_a_reason_reaches_all_others(leaving):
  channels, exits = watched(3)
  channels[leaving].leave('the disk is full')
  for index in {0, 1, 2} - {leaving}:
    assert exits[index].get(timeout=5.0) == ('the disk is full', False)


def test_leaving_without_a_reason_is_not_reported():
  before = set(threading.enumerate())
  channels, exits = watched(2)
  listeners = set(threading.enumerate()) - before
  assert listeners
  for channel in channels:
    channel.leave()
  for channel in channels:
    kill(channel)
  for thread in listeners:
    thread.join(timeout=5.0)
    assert not thread.is_alive()
  assert all(seen.empty() for seen in exits)


def test_an_occupied_port_is_an_error():
  with socket.create_server(('127.0.0.1', 0)) as server:
    error, = connect(f'127.0.0.1:{server.getsockname()[1]}', 2, [0], timeout=1.0)
  assert isinstance(error, ConnectError) and 'cannot listen on port' in str(error)


@pytest.mark.parametrize('address', ['worker', ':80', 'worker:', 'worker:0', 'worker:99999', 'worker:http'])
def test_malformed_addresses_are_errors(address):
  with pytest.raises(UserError, match='--coordinator: expected HOST:PORT'):
    split_address(address)


def test_addresses_are_split_into_host_and_port():
  assert split_address('worker-0.pool:8476') == ('worker-0.pool', 8476)
  assert split_address('[::1]:8476') == ('::1', 8476)
