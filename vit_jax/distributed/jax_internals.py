"""The only file that uses jax's private modules: one function for each use, with the reason for it.

All of them were compared with the sources of jax 0.10.0, 0.10.2 and 0.12.0.1, which agree.
"""
from collections.abc import Sequence

import jax
from jax._src import clusters, distributed


def detect_cluster(coordinator: str | None, processes: int | None, process: int | None, timeout: float
                   ) -> tuple[str | None, int | None, int | None, Sequence[int] | None]:
  """Return (coordinator, processes, process, local device ids), what is None filled in by jax's cluster detection.

  Private because `jax.distributed.initialize` offers the detection only together with connecting, which we do ourselves
  later, with a coordinator port of our choice.

  Args:
    coordinator: 'HOST:PORT' of process 0, or None.
    processes: number of processes, or None.
    process: index of this process, or None.
    timeout: seconds to wait for the coordinator's name to resolve.

  Raises:
    Exception: of any type: requests, kubernetes, key and runtime errors.
  """
  return clusters.ClusterEnv.auto_detect_unset_distributed_params(
      coordinator, processes, process, None, None, int(timeout))


def preemption_service_runs() -> bool:
  """Return whether jax handles SIGTERM in this process: only after `start_preemption_service`."""
  return distributed.global_state.preemption_sync_manager is not None


def start_preemption_service() -> None:
  """Let jax handle SIGTERM and agree on a step to stop at with the other processes, which are already connected.

  Private because `jax.distributed.initialize` offers the service only from the connection on, when a SIGTERM during the
  compilation of the first step would be ignored for minutes.
  """
  jax.config.update('jax_enable_preemption_service', True)
  distributed.global_state.initialize_preemption_sync_manager()
