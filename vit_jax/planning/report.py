"""A plan as text for people."""

_SIZES = (('parameters', 'parameters_gb'), ('optimizer', 'optimizer_gb'), ('averaged parameters', 'average_gb'),
          ('batch', 'batch_gb'), ('activations and other temporaries', 'temp_gb'), ('outputs, padding', 'other_gb'),
          ('program', 'code_gb'))
_OPERATIONS_SHOWN = 8


def text(plan):
  """Several lines that say what `estimate.estimate` or `search.search` found."""
  sections = [_head(plan), _memory(plan)]
  if plan['cycles']:
    sections += [_speed(plan), _operations(plan)]
  sections += [_collectives(plan)] if plan['collectives'] else []
  sections += [_search(plan)] if plan.get('search') else []
  sections += [[f'note: {note}' for note in plan['notes']]]
  if plan['advice']:
    sections += [['What helps, besides more devices:', *(f'  {line}' for line in plan['advice'])]]
  return '\n'.join(line for section in sections for line in section)


def _head(plan):
  where = f'{plan["devices"]} × {plan["device"]}' + (f', {plan["topology"]}' if plan['topology'] else '')
  return [f'{plan["model"] or "model"} on {where}, {plan["strategy"]}: {plan["parameters"]:,} parameters; '
          f'{"the compiler gave up after" if plan["temp_gb"] is None else "compiled in"} '
          f'{plan["compile_seconds"]:.0f} s',
          f'batch {plan["batch_size"]:,}, {plan["batch_per_device"]} a device, in {plan["accumulate"]} micro-batch(es); '
          f'{plan["dtype"]}, remat {plan["remat"]}, {"unrolled" if plan["unroll"] else "scanned"}']


def _memory(plan):
  verdict = {True: 'fits', False: 'DOES NOT FIT', None: 'no limit known'}[plan['fits']]
  figures = [f'{_size(plan[key])} {what}' for key, what in
             (('needed_gb', 'needed'), ('hbm_gb', 'there'), ('spare_gb', 'to spare')) if plan[key] is not None]
  lines = [f'memory of a device: {", ".join([verdict, *figures])}']
  return lines + [f'  {name:36}{_size(plan[key]):>11}' for name, key in _SIZES if plan.get(key)]


def _size(gb):
  return f'{gb:.2f} GB' if abs(gb) >= 1 else f'{1e3 * gb:.2f} MB'


def _speed(plan):
  if plan['milliseconds'] is None:
    return [f'step: {plan["cycles"]:,} cycles by the compiler\'s estimate']
  return [f'step: {plan["cycles"]:,} cycles by the compiler\'s estimate, {plan["milliseconds"]:.1f} ms, '
          f'{plan["images_per_second"]:,.0f} images/s a chip, {plan["utilisation"]:.1%} of the bfloat16 peak; '
          'collectives not counted',
          '  ' + ', '.join(f'{kind} {cycles / plan["cycles"]:.0%}' for kind, cycles in plan['kinds'].items())]


def _operations(plan):
  return [f'  {row["cycles"] / plan["cycles"]:6.1%}  {row["kind"]:8}  {row["where"]}'
          for row in plan['operations'][:_OPERATIONS_SHOWN]]


def _collectives(plan):
  lower = plan['collective_milliseconds']
  bound = '' if lower is None else f' (at least {lower:.1f} ms of the links, part of it hidden behind the step)'
  return [f'collectives a step{bound}:', *(f'  {kind:20}{row["count"]:6} ×, {_size(row["gb"])} in all'
                                            for kind, row in plan['collectives'].items())]


def _search(plan):
  lines = ['largest power of two of images that a device holds at once, not cut into micro-batches (4,096 at most):']
  for row in plan['search']:
    settings = ', '.join(f'{knob}={value}' for knob, value in row['settings'].items()) or 'as configured'
    lines += [f'  {settings:40} ' + ('none' if row['batch_per_device'] is None else
              f'{row["batch_per_device"]:5}  temporaries {_size(row["temp_gb"])}, {_size(row["spare_gb"])} to spare, '
              f'{row["images_per_second"] or 0:,.0f} images/s a chip')]
  return lines
