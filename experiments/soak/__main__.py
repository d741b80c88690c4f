"""Train while faults are injected, and check that nothing is lost: `python -m experiments.soak --minutes=3`.

Small runs on the digits that save often are started by the real command, disturbed, ended by signals and started again,
their files damaged in between. After each start the run must resume from the newest whole checkpoint, and at its end
have the parameters, the optimizer state and the hash of all examples, in their order, of a run without faults, bit for
bit. The ledger can be continued by the same command, with more minutes.

Needs Linux. As root the run directory is a file system of a few megabytes, which faults fill; without, these are left
out, which is said.
"""
from collections.abc import Sequence
import pathlib
import random
import shutil
import time

from absl import app, flags

from experiments.soak import disk, faults, ledger
from experiments.soak.faults import Failure, Scene
from experiments.soak.life import Life, read_record
from vit_jax.base import files

_SAVE_EVERY = 20
_MEGABYTES = 64
_PATIENCE = 300.0  # seconds for a start, and for a reaction to a fault
_WITHOUT_DISK = ('disk full',)

_OUTPUT = flags.DEFINE_string('output', 'results/soak', 'Folder of ledger.jsonl and table.md.')
_MINUTES = flags.DEFINE_float('minutes', 3.0, 'How long to inject faults; the run that is going on is finished after.')
_STEPS = flags.DEFINE_integer('steps', 1000, 'Length of each run.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of the choice of faults.')
_KINDS = flags.DEFINE_list('kinds', None, 'Faults to choose from; all by default.')
_FAULTS_PER_LIFE = flags.DEFINE_integer('faults_per_life', 4, 'Faults while a process runs, at most.')


def arguments(steps: int) -> list[str]:
  """Return the flags of the run that is disturbed."""
  return ['--config=digits', '--config.model.width=16', '--config.model.depth=1', '--config.model.mlp_dim=32',
          '--config.data.batch_size=16', '--config.data.workers=2', '--config.data.cache=False',
          f'--config.train.duration={steps} steps',
          f'--config.train.log_every={_SAVE_EVERY} steps', f'--config.train.eval_every={steps} steps',
          f'--config.checkpoint.every={_SAVE_EVERY} steps', '--config.train.ema_decay=0.99',
          '--config.optim.warmup=0 steps']


def digests(workdir: pathlib.Path, step: int) -> object:
  """Return what stands for the final state of a run: a digest of every array, see `vit_jax.rundir.digests`."""
  return read_record(workdir / 'checkpoints' / str(step))['digests']


def reference(output: pathlib.Path) -> object:
  """Return the digests of a run without faults."""
  life = Life(arguments(_STEPS.value), output / f'reference-{_STEPS.value}', output / 'reference.txt')
  if life.wait(20 * _PATIENCE) != 0:
    raise Failure(f'the run without faults failed: {life.printed()[-500:]}')
  return digests(life.workdir, _STEPS.value)


class Round:
  """A run under faults, from its first start to its end.

  Args:
    number: of the run in the ledger.
    output: folder of the soak.
    book: gets what happens.
    deadline: after this time, by the monotonic clock, no fault is injected any more.
  """

  def __init__(self, number: int, output: pathlib.Path, book: ledger.Ledger, deadline: float):
    self.number, self._output, self._book, self._deadline = number, output, book, deadline
    self._random = random.Random(f'{_SEED.value}/{number}')
    self._folder = output / f'run-{number}'
    small = disk.mount(self._folder, _MEGABYTES)
    self._folder.mkdir(parents=True, exist_ok=True)
    self._scene = Scene(self._folder / 'workdir', self._random, small)
    self._expected = 0  # step that the next life must resume after, or a later one

  def run(self, wanted: object) -> bool:
    """Return whether the run ends like the one without faults."""
    lives = 0
    while True:
      lives += 1
      if self._live(lives):
        break
      self._disturb_files()
    identical = digests(self._scene.workdir, _STEPS.value) == wanted
    self._book.add(round=self.number, identical=identical, lives=lives)
    return identical

  def close(self) -> None:
    """Remove the files of the run."""
    if self._scene.disk:
      disk.unmount(self._folder)
    shutil.rmtree(self._folder, ignore_errors=True)

  def _live(self, number: int) -> bool:
    """Start the command, disturb it, end it; return whether the run is finished."""
    quiet = self._random.random() < 0.2 and self._left() and self._chosen('output closed')
    log = None if quiet else self._output / f'life-{self.number}-{number}.txt'
    life = Life(arguments(_STEPS.value), self._scene.workdir, log, dict(VIT_JAX_CACHE=str(self._folder / 'cache')))
    try:
      if quiet:
        self._note('output closed')
      before = life.checkpoints()
      if self._chosen('killed at the start') and self._left() and self._random.random() < 0.1:
        time.sleep(self._random.uniform(0.1, 4.0))
        self._note('killed at the start')
        life.kill()
        return False
      self._check_start(life, before)
      for _ in range(self._random.randint(0, _FAULTS_PER_LIFE.value)):
        if not self._left() or not life.alive():
          break
        self._disturb(life)
      ending = self._pick(faults.ENDING) if self._left() and life.alive() else None
      wanted = self._end(life, ending) if ending else 0
      status = life.wait(_PATIENCE if ending else 4 * _PATIENCE)
      # A second SIGTERM may come when all is saved and Python handles signals no more: -15, which shells show as 143.
      if status not in (wanted, 128 - wanted, 0):
        raise self._failure(life, ending or 'none', f'ended with status {status}, expected {wanted}')
      self._expected = (self._scene.steps() or [0])[-1]
      if log is not None:
        log.unlink(missing_ok=True)
      return status == 0
    finally:
      if life.alive():
        life.kill()

  def _check_start(self, life: Life, before: set[tuple[str, int]]) -> None:
    """Wait for the first new checkpoint, and check which one the run resumed after."""
    if not life.wait_for_save(before, _PATIENCE) and life.wait(1.0) != 0:
      raise self._failure(life, 'start', f'no new checkpoint after step {self._expected}')
    resumed = life.resumed_after()
    if life.output is not None and resumed < self._expected:
      raise self._failure(life, 'start', f'resumed after step {resumed}, although step {self._expected} is whole')
    seconds = round(time.monotonic() - life.started, 2)
    self._book.add(round=self.number, resumed=resumed, seconds=seconds, **life.usage())

  def _disturb(self, life: Life) -> None:
    """Inject a fault while the process runs; it must save again."""
    kind = self._pick(faults.RUNNING)
    if kind is None:
      return
    before = life.checkpoints()
    if not faults.RUNNING[kind](life, self._scene):
      return
    self._note(kind)
    if not life.wait_for_save(before, _PATIENCE) and life.wait(1.0) != 0:
      raise self._failure(life, kind, 'no checkpoint after it')

  def _end(self, life: Life, kind: str) -> int:
    wanted = faults.ENDING[kind](life, self._scene)
    self._note(kind)
    return wanted

  def _disturb_files(self) -> None:
    """Inject up to two faults into the files of a run that has ended, at most one into its newest checkpoint."""
    for damage in (True, False):
      table = {kind: fault for kind, fault in faults.BETWEEN.items() if (kind in faults.DAMAGES_NEWEST) == damage}
      if not self._left() or not self._scene.steps() or self._random.random() < 0.3:
        continue
      kind, steps = self._pick(table), self._scene.steps()
      if kind is not None and faults.BETWEEN[kind](self._scene):
        self._note(kind)
        if damage:
          self._expected = steps[-2]

  def _left(self) -> bool:
    return time.monotonic() < self._deadline

  def _chosen(self, kind: str) -> bool:
    return _KINDS.value is None or kind in _KINDS.value

  def _pick(self, table: dict) -> str | None:
    kinds = [kind for kind in table if self._chosen(kind) and (self._scene.disk or kind not in _WITHOUT_DISK)]
    return self._random.choice(kinds) if kinds else None

  def _note(self, kind: str) -> None:
    self._book.add(round=self.number, fault=kind, step=(self._scene.steps() or [0])[-1])

  def _failure(self, life: Life, kind: str, what: str) -> Failure:
    return Failure(f'{kind}: {what}\n{life.printed()[-2000:]}')


def main(argv: Sequence[str]) -> int:
  """Soak, and return the exit status: 1 if anything went wrong."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  output = pathlib.Path(files.local(_OUTPUT.value))
  output.mkdir(parents=True, exist_ok=True)
  book = ledger.Ledger(output / 'ledger.jsonl')
  wanted = reference(output)
  started = time.monotonic()
  deadline = started + 60 * _MINUTES.value
  first = len(book.entries)
  while time.monotonic() < deadline:
    current = Round(book.next_round(), output, book, deadline)
    try:
      identical = current.run(wanted)
      new = [entry for entry in book.entries[first:] if 'fault' in entry]
      print(f'run {book.next_round() - 1}: {"identical" if identical else "DIFFERENT"}, {len(new)} faults, '
            f'{(time.monotonic() - started) / 60:.1f} min', flush=True)
    except Failure as failure:
      book.add(round=current.number, failed=str(failure))
      print(f'FAILED: run {current.number}, {failure}', flush=True)
    finally:
      current.close()
    files.write(output / 'table.md', ledger.table(book.entries))
  print(ledger.table(book.entries))
  return 1 if ledger.failures(book.entries[first:]) else 0


if __name__ == '__main__':
  app.run(main)
