"""The rooms of the package: one list for the layering test and for the tree in docs/architecture.md.

  python -m tests.rooms      # writes the tree into docs/architecture.md
"""
import ast
import dataclasses
import pathlib

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / 'vit_jax'
DOCUMENT = ROOT / 'docs' / 'architecture.md'
BEGIN, END = '<!-- rooms: written by python -m tests.rooms -->', '<!-- end of rooms -->'
MOST_FILES = 12


@dataclasses.dataclass(frozen=True)
class Room:
  """A folder below vit_jax/, or the commands directly in it.

  Attributes:
    name: path below vit_jax/; '' for the commands.
    floor: modules may import their own floor and those below; 0 is the ground.
    purpose: one line for a newcomer.
  """
  name: str
  floor: int
  purpose: str


ROOMS = (
    Room('', 7, 'commands, one file each, and `train.py`, the public door: `train.run(config, workdir)`'),
    Room('planning', 6, 'what a training step costs on a chip, asked of its compiler'),
    Room('analysis', 6, 'pictures of what a model has learned'),
    Room('analysis/report', 6, 'the report of an analysis: figures, a page with all of them, numbers'),
    Room('probing', 6, 'what the frozen features of a loaded model are worth, and a classifier on them'),
    Room('run', 5, 'one training run: config, build, loop, writing'),
    Room('training', 4, 'the step: state, optimizers, schedules'),
    Room('pretrained', 4, 'weights in and out: load, save, adapt, transfer'),
    Room('evaluators', 4, 'what is measured on a split'),
    Room('evaluators/frozen', 4, 'what frozen features are worth: few-shot, k-NN, linear probe, retrieval, class means'),
    Room('pretrained/formats', 3, 'weight formats: tables of names that both read and write'),
    Room('pretrained/classes', 3, 'names of classes: given, of ImageNet-1k, matched with those of a dataset'),
    Room('pretrained/formats/google', 3, "Google's official `.npz` files"),
    Room('pretrained/formats/big_vision', 3, "big_vision's `.npz` files"),
    Room('pretrained/formats/huggingface', 3, "models of Hugging Face's transformers"),
    Room('pretrained/formats/timm', 3, "models of timm's"),
    Room('pretrained/files', 3, 'strict readers of untrusted weight files'),
    Room('inference', 3, 'predictions for ordinary images'),
    Room('distributed', 3, 'strategies that spread a step over devices; the processes of one run'),
    Room('objectives', 3, 'what a step minimizes'),
    Room('objectives/masked', 3, 'self-supervision by hidden patches: masked patch prediction, MAE, SimMIM'),
    Room('objectives/views', 3, 'random crops and colors, on the devices'),
    Room('guards', 3, 'what protects a run from its surroundings: signals, hangs, lost terminals'),
    Room('rundir', 3, 'run directories: file names, checkpoints, run records'),
    Room('rundir/checks', 3, 'whether a checkpoint is what was saved: digests, hashes, reading it back'),
    Room('data/loading', 3, 'ordered, batched, resumable loading by threads or worker processes'),
    Room('data/audit', 3, 'what is wrong with a dataset'),
    Room('models', 2, 'Flax NNX models: images in, logits out'),
    Room('models/bit', 2, 'BiT ResNets, and the ResNet below the patches of a hybrid'),
    Room('models/positions', 2, 'where a token is on the grid of patches'),
    Room('models/mixer', 2, 'the MLP-Mixer'),
    Room('data/sources', 2, 'random-access datasets on disk'),
    Room('data/transforms', 2, 'image transforms on uint8 arrays'),
    Room('data/images', 1, 'encoded bytes to pixels'),
    Room('statistics', 1, 'statistics of what a model computes, during training and after: pure functions on arrays'),
    Room('data', 1, 'datasets, from disk to batches; imports no jax'),
    Room('configs', 0, 'the recipes: in a clone a link to configs/, in an installed package the files themselves'),
    Room('base/machine', 0, 'the machine that a process runs on: its memory, and faults of it that may pass'),
    Room('base', 0, 'errors, files, text, durations, platform, pictures, preprocessing'),
)
BY_NAME = {room.name: room for room in ROOMS}


def room_of(module: str) -> Room:
  """Return the room of a dotted module name such as 'vit_jax.data.images.jpeg'."""
  parts = module.split('.')[1:]
  while parts and '/'.join(parts) not in BY_NAME:
    parts = parts[:-1]
  return BY_NAME['/'.join(parts)]


def tree() -> str:
  """Return the tree of rooms, top floor first, each file with the first line of its docstring, as Markdown."""
  lines = ['```', 'vit_jax/']
  for room in ROOMS:
    lines.append(f'  {room.name + "/" if room.name else "*.py":20} {room.floor}  {room.purpose}')
    files = sorted(path for path in (PACKAGE / room.name).glob('*.py') if path.stem != '__init__')
    lines += [f'    {path.stem:18}    {_summary(path)}' for path in files]
  return '\n'.join([*lines, '```'])


def _summary(path: pathlib.Path) -> str:
  """Return the first line of a module's docstring without the command line that it may end with."""
  line = (ast.get_docstring(ast.parse(path.read_text())) or '').partition('\n')[0]
  return line.partition(': `python')[0].rstrip('.:')


def document(text: str) -> str:
  """Return the text of docs/architecture.md with the tree as it is now."""
  before, _, rest = text.partition(BEGIN)
  after = rest.partition(END)[2]
  return f'{before}{BEGIN}\n{tree()}\n{END}{after}'


if __name__ == '__main__':
  DOCUMENT.write_text(document(DOCUMENT.read_text()))
