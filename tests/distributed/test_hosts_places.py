"""Where a process stands in its run: flags, TPU metadata, SLURM, Open MPI, Kubernetes; a single process does not wait."""
import http.server
import os
import threading
import time

import jax
from jax._src.clusters import cloud_tpu_cluster, cluster
import pytest

from vit_jax.base.errors import UserError
from vit_jax.distributed import hosts


def slurm(nodes, tasks, task):
  return dict(SLURM_JOB_ID='7', SLURM_STEP_NODELIST=nodes, SLURM_NTASKS=str(tasks), SLURM_PROCID=str(task),
              SLURM_LOCALID='0')


def open_mpi(size, rank, local_rank):
  return dict(OMPI_COMM_WORLD_SIZE=str(size), OMPI_COMM_WORLD_RANK=str(rank),
              OMPI_COMM_WORLD_LOCAL_RANK=str(local_rank))


ALONE = {
    'one machine': {},
    'one task of SLURM': slurm('node1', 1, 0),
    'one process of Open MPI 5': open_mpi(1, 0, 0),
    'a notebook in Kubernetes': dict(KUBERNETES_SERVICE_HOST='10.0.0.1'),
}

FOUND = {
    'SLURM': (slurm('node[07-09]', 3, 2), {}, ('node07:61447', 3, 2, [0])),  # 65536 - 4096 + 7
    'Open MPI 4': (dict(open_mpi(4, 3, 1), OMPI_MCA_orte_hnp_uri='1531576320.0;tcp://10.96.0.1,10.148.0.1:34911'),
                   {}, (f'10.96.0.1:{1531576320 // 4096 % 4096 + 61440}', 4, 3, [1])),
    'Open MPI 5': (open_mpi(4, 3, 1), dict(coordinator='node1:8476'), ('node1:8476', 4, 3, [1])),
    'flags': ({}, dict(coordinator='node1:8476', processes=2, process=1), ('node1:8476', 2, 1, None)),
    'flags before SLURM': (slurm('node1', 3, 2), dict(coordinator='node1:8476', processes=2, process=1),
                           ('node1:8476', 2, 1, None)),
}


@pytest.fixture
def environ(monkeypatch):
  """os.environ without the variables of clusters."""
  for name in list(os.environ):
    if name.startswith(('SLURM', 'OMPI', 'TPU', 'KUBERNETES', 'JOB_', 'JAX_COORDINATOR')):
      monkeypatch.delenv(name)
  return monkeypatch


@pytest.mark.parametrize('variables', ALONE.values(), ids=ALONE)
@pytest.mark.filterwarnings('ignore:[\\s]*Kubernetes')
def test_a_single_process_does_not_wait(variables, environ):
  for name, value in variables.items():
    environ.setenv(name, value)
  begin = time.monotonic()
  hosts.start()
  assert time.monotonic() - begin < 5.0 and not jax.distributed.is_initialized()
  assert hosts.exchange(3) == [3]


def test_processes_1_overrides_a_detected_cluster(environ):
  for name, value in FOUND['SLURM'][0].items():
    environ.setenv(name, value)
  hosts.start(processes=1)
  assert not jax.distributed.is_initialized()


@pytest.mark.parametrize('variables, arguments, placement', FOUND.values(), ids=FOUND)
def test_placements_are_found(variables, arguments, placement, environ):
  for name, value in variables.items():
    environ.setenv(name, value)
  given = dict(dict(coordinator=None, processes=None, process=None), **arguments)
  assert hosts._find_placement(**given, timeout=1.0) == placement


@pytest.fixture
def tpu_vm(environ):
  """Return a function that makes jax detect a TPU VM, given the metadata server's values, a dict, or None for no server."""
  servers = []

  def serve(metadata):
    class Handler(http.server.BaseHTTPRequestHandler):
      def do_GET(self):
        value = metadata.get(self.path.rpartition('/')[2])
        self.send_response(404 if value is None else 200)
        self.end_headers()
        self.wfile.write((value or '').encode())

      def log_message(self, *args):
        pass

    servers.append(http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler))
    threading.Thread(target=servers[0].serve_forever, args=(0.01,), daemon=True).start()
    return servers[0].server_port

  def make(metadata):
    environ.setattr(cloud_tpu_cluster, 'running_in_cloud_tpu_vm', True)
    environ.setattr(cluster, 'running_in_cloud_tpu_vm', True)
    environ.setattr(cloud_tpu_cluster.time, 'sleep', lambda seconds: None)
    environ.setenv('GCE_METADATA_IP', f'127.0.0.1:{1 if metadata is None else serve(metadata)}')

  yield make
  for server in servers:
    server.shutdown()
    server.server_close()


METADATA = {'agent-worker-number': '2', 'tpu-env': "ZONE: 'here'"}


@pytest.mark.parametrize('endpoints', ['10.0.0.4,10.0.0.5,10.0.0.6', 'a:b:10.0.0.4,a:b:10.0.0.5,a:b:10.0.0.6'])
def test_a_tpu_pod_is_found(endpoints, tpu_vm):
  tpu_vm(dict(METADATA, **{'worker-network-endpoints': endpoints}))
  assert hosts._find_placement(None, None, None, 1.0) == ('10.0.0.4:8482', 3, 2, None)


def test_a_tpu_slice_in_kubernetes_is_found(tpu_vm, environ):
  tpu_vm({})
  for name, value in dict(
      TPU_WORKER_HOSTNAMES='127.0.0.1,127.0.0.2', TPU_WORKER_ID='1', MEGASCALE_COORDINATOR_ADDRESS='127.0.0.1',
      MEGASCALE_NUM_SLICES='2', MEGASCALE_SLICE_ID='1', JOB_COMPLETION_INDEX='1').items():
    environ.setenv(name, value)
  assert hosts._find_placement(None, None, None, 1.0) == ('127.0.0.1:8482', 4, 3, None)


@pytest.mark.parametrize('metadata', [
    {**METADATA, 'agent-worker-number': '0', 'worker-network-endpoints': '10.0.0.4'}, {}, None],
    ids=['one host', 'knows nothing', 'no metadata'])
@pytest.mark.filterwarnings('ignore:found no cluster')
def test_a_tpu_vm_with_one_host_is_a_single_process(metadata, tpu_vm):
  tpu_vm(metadata)
  begin = time.monotonic()
  hosts.start()
  assert time.monotonic() - begin < 5.0 and not jax.distributed.is_initialized()


@pytest.mark.parametrize('variables, arguments, message', [
    ({}, dict(processes=2, process=0), '--coordinator, --processes, --process: all are needed'),
    ({}, dict(coordinator='a:1'), '--coordinator, --processes, --process: all are needed'),
    ({}, dict(coordinator='a:1', processes=2, process=2), '--process: must be .* less than --processes=2; got 2'),
    ({}, dict(coordinator='a', processes=2, process=1), "got 'a'"),
    (FOUND['Open MPI 5'][0], {}, '--coordinator, --processes, --process: all are needed'),
    (dict(KUBERNETES_SERVICE_HOST='10.0.0.1', JOB_COMPLETION_INDEX='1'), {}, 'needed in this pod of a Kubernetes job'),
])
@pytest.mark.filterwarnings('ignore:[\\s]*Kubernetes')
def test_incomplete_or_contradictory_placements_are_errors(variables, arguments, message, environ):
  for name, value in variables.items():
    environ.setenv(name, value)
  with pytest.raises(UserError, match=message):
    hosts.start(**arguments, timeout=1.0)
