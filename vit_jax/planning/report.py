"""A plan as text."""
from vit_jax.planning.plan import Plan

# Parts of `plan.Memory`, in the order they are printed.
_PARTS = {'parameters': 'parameters', 'optimizer': 'optimizer', 'EMA of the parameters': 'ema', 'batch': 'batch',
          'activations and other temporaries': 'temporaries', 'outputs, padding': 'other', 'program': 'code'}
_NUM_OPERATIONS = 8


def text(plan: Plan) -> str:
  """Return several lines that say what a plan found."""
  sections = [_head(plan), _memory(plan)]
  if plan.time.cycles:
    sections += [_time(plan), _operations(plan)]
  sections += [_collectives(plan)] if plan.collectives.kinds else []
  sections += [_trials(plan)] if plan.trials else []
  sections += [[f'note: {note}' for note in plan.notes]]
  if plan.advice:
    sections += [['Use more devices, or try:', *(f'  {line}' for line in plan.advice)]]
  return '\n'.join(line for section in sections for line in section)


def _head(plan: Plan) -> list[str]:
  setup = plan.setup
  where = f'{setup.devices} × {setup.device}' + (f', {setup.topology}' if setup.topology else '')
  compiled = 'compiled in' if plan.memory.temporaries is not None else 'the compiler gave up after'
  return [f'{setup.model or "model"} on {where}, {setup.strategy}: {setup.parameters:,} parameters; '
          f'{compiled} {plan.compile_seconds:.0f} s',
          f'batch {setup.batch_size:,}, {setup.batch_per_device} per device, in {setup.num_micro_batches} '
          f'micro-batch(es); {setup.dtype}, remat {setup.remat or "none"}, {"unrolled" if setup.unroll else "scanned"}']


def _memory(plan: Plan) -> list[str]:
  memory = plan.memory
  verdict = {True: 'fits', False: 'DOES NOT FIT', None: 'no limit known'}[memory.fits]
  figures = [f'{_size(size)} {what}' for what, size in
             (('needed', memory.needed), ('available', memory.available), ('spare', memory.spare)) if size is not None]
  parts = {what: getattr(memory, name) for what, name in _PARTS.items()}
  return [f'memory per device: {", ".join([verdict, *figures])}',
          *(f'  {what:36}{_size(size):>11}' for what, size in parts.items() if size)]


def _size(size: float) -> str:
  return f'{size / 1e9:.2f} GB' if abs(size) >= 1e9 else f'{size / 1e6:.2f} MB'


def _time(plan: Plan) -> list[str]:
  time = plan.time
  assert time.cycles
  cycles = f'step: {time.cycles:,} cycles by the compiler\'s estimate'
  if time.milliseconds is None:
    return [cycles]
  return [f'{cycles}, {time.milliseconds:.1f} ms, {time.images_per_second:,.0f} images/s per chip, '
          f'{time.utilization:.1%} of the bfloat16 peak; collectives not counted',
          '  ' + ', '.join(f'{kind} {cycles / time.cycles:.0%}' for kind, cycles in time.kinds.items())]


def _operations(plan: Plan) -> list[str]:
  total = plan.time.cycles or 1
  return [f'  {row.cycles / total:6.1%}  {row.kind:8}  {row.where}' for row in plan.time.operations[:_NUM_OPERATIONS]]


def _collectives(plan: Plan) -> list[str]:
  least = plan.collectives.milliseconds
  bound = '' if least is None else f' (at least {least:.1f} ms of the links, part of it hidden behind the step)'
  return [f'collectives per step{bound}:',
          *(f'  {kind:20}{row.count:6} ×, {_size(row.bytes)} in total' for kind, row in plan.collectives.kinds.items())]


def _trials(plan: Plan) -> list[str]:
  lines = ['largest power of two of images that a device holds at once, without micro-batches (4,096 at most):']
  for trial in plan.trials:
    settings = ', '.join(f'{key}={value}' for key, value in trial.settings.items()) or 'as configured'
    if trial.batch_per_device is None:
      result = 'none'
    else:
      result = (f'{trial.batch_per_device:5}  temporaries {_size(trial.temporaries or 0)}, {_size(trial.spare or 0)} '
                f'spare, {trial.images_per_second or 0:,.0f} images/s per chip')
    lines.append(f'  {settings:40} {result}')
  return lines
