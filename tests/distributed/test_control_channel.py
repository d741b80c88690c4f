"""The roll call: who did not come is named, values go round, and no end goes unnoticed."""
import concurrent.futures
import queue
import socket
import threading
import time

import pytest

from vit_jax.distributed.control_channel import RollCall, split


def free_address():
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return f'127.0.0.1:{probe.getsockname()[1]}'


def call(address, count, indices, timeout=10.0):
  """What `RollCall` gives or raises for each of the processes `indices`, which are threads here."""
  def one(index):
    try:
      return RollCall(address, count, index, timeout)
    except Exception as error:
      return error
  with concurrent.futures.ThreadPoolExecutor(len(indices)) as threads:
    return list(threads.map(one, indices))


def watched(count):
  """A roll call of `count`, and the queues on which their ends arrive."""
  calls, ends = call(free_address(), count, range(count)), [queue.Queue() for _ in range(count)]
  for one, end in zip(calls, ends):
    one.watch(lambda text, lost, end=end: end.put((text, lost)))
  return calls, ends


def cut(one):
  """Closes a process's connections without a word, as the kernel does for one that is killed."""
  one._send_all = lambda **message: None  # its threads live on here
  for line in one._lines.values():
    line._connection.shutdown(socket.SHUT_RDWR)


def test_all_come():
  calls = call(free_address(), 4, [2, 0, 3, 1])
  assert [one.index for one in calls] == [2, 0, 3, 1]
  assert all(one.hosts == [socket.gethostname()] * 4 for one in calls)
  assert calls[0].name(3) == f'process 3 on {socket.gethostname()}'


@pytest.mark.parametrize('count, there, named', [
    (2, [0], 'process 1 of 2'), (5, [0, 3], 'processes 1, 2, 4 of 5'), (5, [3, 1, 0], 'processes 2, 4 of 5')])
def test_those_who_did_not_come_are_named_to_all_who_did(count, there, named):
  for error in call(free_address(), count, there, timeout=1.0):
    assert isinstance(error, TimeoutError) and f'{named} did not come' in str(error) and 'within 1 s' in str(error)
    for index in there:
      assert f'{index} ({socket.gethostname()})' in str(error)


def test_process_0_did_not_come():
  address = free_address()
  error, = call(address, 2, [1], timeout=1.0)
  assert isinstance(error, TimeoutError) and f'process 0 did not come: nobody answers at {address}' in str(error)


def test_two_of_one_number():
  errors = call(free_address(), 3, [0, 1, 1], timeout=3.0)
  assert isinstance(errors[0], ValueError) and 'two processes say that they are process 1' in str(errors[0])
  assert {str(error) for error in errors} == {str(errors[0])}


def test_other_counts():
  address = free_address()
  with concurrent.futures.ThreadPoolExecutor() as threads:
    errors = list(threads.map(lambda index, count: call(address, count, [index])[0], [0, 1], [2, 3]))
  for error in errors:
    assert isinstance(error, ValueError) and 'process 1' in str(error)
    assert 'one of 3 processes' in str(error) and 'one of 2' in str(error)


def test_strangers_and_processes_that_are_started_again():
  address = free_address()
  with concurrent.futures.ThreadPoolExecutor() as threads:
    first = threads.submit(RollCall, address, 3, 0, 20.0)

    def connect(text):
      while True:
        try:
          connection = socket.create_connection(split(address), timeout=5.0)
        except OSError:
          continue
        connection.sendall(text)
        connection.shutdown(socket.SHUT_WR)
        connection.close()
        return

    connect(b'GET / HTTP/1.1\r\n\r\n')
    connect(b'\xff\xfe\n')
    connect(b'{"process": 1, "count": 3, "host": "died"}\n')
    second = threads.submit(RollCall, address, 3, 2, 20.0)
    time.sleep(0.3)  # until it has come: then all three have, but one has gone
    others = call(address, 3, [1])
  assert first.result().hosts == second.result().hosts == others[0].hosts == [socket.gethostname()] * 3


def test_values_go_round():
  calls, _ = watched(3)
  for turn in range(3):
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
      values = list(threads.map(lambda one: one.gather({'turn': turn, 'me': one.index}), calls))
    assert values == [[{'turn': turn, 'me': index} for index in range(3)]] * 3


@pytest.mark.parametrize('lost', [0, 1, 2])
def test_a_lost_process_is_named_to_all_others(lost):
  calls, ends = watched(3)
  cut(calls[lost])
  for index in {0, 1, 2} - {lost}:
    text, was_lost = ends[index].get(timeout=5.0)
    assert f'process {lost} on {socket.gethostname()} is gone' in text and was_lost


@pytest.mark.parametrize('leaving', [0, 2])
def test_a_reason_reaches_all_others(leaving):
  calls, ends = watched(3)
  calls[leaving].leave('the disk is full')
  for index in {0, 1, 2} - {leaving}:
    assert ends[index].get(timeout=5.0) == ('the disk is full', False)


def test_leaving_without_a_reason_alarms_nobody():
  before = set(threading.enumerate())
  calls, ends = watched(2)
  listeners = set(threading.enumerate()) - before
  for one in calls:
    one.leave()
  for one in calls:
    cut(one)
  for thread in listeners:
    thread.join(timeout=5.0)
  assert all(end.empty() for end in ends)


def test_a_port_that_is_taken():
  with socket.create_server(('127.0.0.1', 0)) as server:
    error, = call(f'127.0.0.1:{server.getsockname()[1]}', 2, [0], timeout=1.0)
  assert isinstance(error, OSError) and 'cannot listen on port' in str(error)


@pytest.mark.parametrize('address', ['worker', ':80', 'worker:', 'worker:0', 'worker:99999', 'worker:http'])
def test_bad_addresses(address):
  with pytest.raises(ValueError, match='HOST:PORT'):
    split(address)


def test_addresses():
  assert split('worker-0.pool:8476') == ('worker-0.pool', 8476)
  assert split('[::1]:8476') == ('::1', 8476)
