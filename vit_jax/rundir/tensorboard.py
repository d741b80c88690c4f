"""TensorBoard event files, written without TensorFlow."""
from collections.abc import Mapping
import os
import socket
import struct
import time
from typing import Any

from etils import epath
from tensorboardX.proto import event_pb2, summary_pb2
from tensorboardX.record_writer import masked_crc32c

from vit_jax.rundir.append import Appender

# Protocol buffers, whose classes type checkers do not know.
_events: Any = event_pb2
_summaries: Any = summary_pb2


class EventFile:
  """A new event file of scalars.

  Args:
    folder: of the event files; made if missing.
    first_step: TensorBoard drops what files of an earlier start say of this step and later ones.

  Raises:
    OSError: the file cannot be written.
  """

  def __init__(self, folder: epath.Path, first_step: int):
    folder.mkdir(parents=True, exist_ok=True)
    name = f'events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}.{os.getpid()}.{first_step}'
    self._file = Appender(folder / name)
    self._write(_events.Event(wall_time=time.time(), file_version='brain.Event:2'))
    self._write(_events.Event(wall_time=time.time(), step=first_step,
                                session_log=_events.SessionLog(status=_events.SessionLog.START)))

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Append {name: number} of a step.

    Raises:
      OSError: it cannot be written.
    """
    found = [_summaries.Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
    self._write(_events.Event(wall_time=time.time(), step=step, summary=_summaries.Summary(value=found)))

  def sync(self) -> None:
    """Make sure that what was written stays; see `Appender.sync`."""
    self._file.sync()

  def close(self) -> None:
    """Close the file."""
    self._file.close()

  def _write(self, event: Any) -> None:
    """Append a record: its length, a checksum of it, an event, a checksum of that (TensorFlow's TFRecord format)."""
    content = event.SerializeToString()
    length = struct.pack('<Q', len(content))
    self._file.write(length + struct.pack('<I', masked_crc32c(length)) +
                     content + struct.pack('<I', masked_crc32c(content)))
