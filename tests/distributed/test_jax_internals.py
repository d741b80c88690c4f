"""Private modules of jax are used in one file only, and are what that file expects."""
import inspect
import re

from jax._src import clusters, distributed

from tests.rooms import PACKAGE


def test_only_one_file_imports_private_modules_of_jax():
  private = re.compile(r'\bjax\._src\b|\bfrom jax import .*\b_src\b')
  files = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob('*.py')
           if any(private.search(line) and 'import' in line for line in path.read_text().splitlines())}
  assert files == {'distributed/jax_internals.py'}


def test_private_functions_take_the_arguments_that_we_pass():
  detect = inspect.signature(clusters.ClusterEnv.auto_detect_unset_distributed_params)
  assert list(detect.parameters) == ['coordinator_address', 'num_processes', 'process_id', 'local_device_ids',
                                     'cluster_detection_method', 'initialization_timeout']
  assert distributed.global_state.preemption_sync_manager is None  # this process is not connected
  assert not inspect.signature(distributed.global_state.initialize_preemption_sync_manager).parameters
