"""Distillation: losses against plain NumPy, what the teacher sees, whose classes it has, and runs with one."""
import dataclasses
import functools
import shutil

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from tests import tiny
import vit_jax
from vit_jax import train
from vit_jax.base.errors import UserError
from vit_jax.base.preprocessing import Normalization, Preprocessing
from vit_jax.data.sources.info import DatasetInfo
from vit_jax.models.config import ViTConfig
from vit_jax.models.vit import VisionTransformer
from vit_jax.objectives import distillation
from vit_jax.objectives.base import TEACHER, Teacher, mean_of
from vit_jax.objectives.distillation import Distillation, DistillationConfig
from vit_jax.pretrained.save import save
from vit_jax.run import config as config_lib
from vit_jax.run import start
from vit_jax.run import teacher as teacher_lib
from vit_jax.run.build import build
from vit_jax.rundir.checkpoint import Checkpoints
from vit_jax.rundir.layout import RunDir

INFO = DatasetInfo(num_examples=40, num_classes=5, channels=1)
NAMES = ['ant', 'bee', 'cat', 'dog', 'emu']


def random_model(**fields):
  config = ViTConfig(**{**dict(width=8, depth=1, heads=2, mlp_dim=16, patch_size=4, image_size=8, channels=1,
                               num_classes=5), **fields})
  model = VisionTransformer(config, rngs=nnx.Rngs(0))
  rng = np.random.default_rng(0)
  nnx.update(model, jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32),
                                 nnx.state(model, nnx.Param)))
  return model


def example_batch(soft=False):
  rng = np.random.default_rng(1)
  labels = rng.integers(0, 5, 6).astype(np.int32)
  if soft:
    labels = (0.7 * np.eye(5)[labels] + 0.3 * np.eye(5)[labels[::-1]]).astype(np.float32)
  return dict(image=jnp.asarray(rng.normal(size=(6, 8, 8, 1)), jnp.float32), label=jnp.asarray(labels), id=np.arange(6))


@functools.cache
def outcome(pool, soft_labels, **fields):
  """Return (outcome, logits of each head, the teacher's logits, batch)."""
  student, teacher = random_model(pool=pool), random_model(image_size=12, depth=2)
  graphdef, params = nnx.split(teacher, nnx.Param)
  ours, theirs = Normalization(0.5, 0.25), Normalization((0.1,), (2.0,))
  context = dataclasses.replace(
      tiny.objective_context(INFO, pool=pool), normalization=ours,
      teacher=Teacher(lambda params: nnx.merge(graphdef, params), (12, 12), theirs))
  objective, batch = Distillation(DistillationConfig(teacher='somewhere', **fields), context), example_batch(soft_labels)
  found = objective(student, {}, {TEACHER: nnx.to_pure_dict(params)}, batch, None)
  seen = jax.image.resize(batch['image'] * 0.25 + 0.5, (6, 12, 12, 1), 'bilinear')
  heads = student.logits_by_head(batch['image'])
  np.testing.assert_allclose(student(batch['image']), heads.mean(axis=1), atol=1e-6)
  return found, np.float64(heads), np.float64(teacher((seen - 0.1) / 2.0)), batch


@pytest.mark.parametrize('pool, soft_labels, fields', [
    ('token', False, dict()), ('distilled', True, dict(alpha=0.3, label_smoothing=0.1)),
    ('distilled', False, dict(targets='soft', temperature=3.0)), ('token', True, dict(targets='soft', alpha=1.0))])
def test_losses_and_metrics_equal_their_formulas(pool, soft_labels, fields):
  found, heads, teacher, batch = outcome(pool, soft_labels, **fields)
  options = DistillationConfig(teacher='somewhere', **fields)
  assert heads.shape == (6, 2 if pool == 'distilled' else 1, 5)
  labels = np.asarray(batch['label']) if soft_labels else np.eye(5)[batch['label']]
  smoothed = (1 - options.label_smoothing) * labels + options.label_smoothing / 5
  by_labels = -(smoothed * special.log_softmax(heads[:, 0], axis=1)).sum(1)
  if options.targets == 'hard':
    by_teacher = -special.log_softmax(heads[:, -1], axis=1)[np.arange(6), teacher.argmax(1)]
  else:
    t = options.temperature
    targets = special.softmax(teacher / t, axis=1)
    by_teacher = t * t * (targets * (np.log(targets) - special.log_softmax(heads[:, -1] / t, axis=1))).sum(1)
  np.testing.assert_allclose(found.losses, (1 - options.alpha) * by_labels + options.alpha * by_teacher, rtol=2e-4)
  guess = heads.mean(1).argmax(1)
  assert mean_of(found.metrics['accuracy']) == pytest.approx((guess == labels.argmax(1)).mean())
  assert mean_of(found.metrics['teacher_accuracy']) == pytest.approx((teacher.argmax(1) == labels.argmax(1)).mean())
  assert mean_of(found.metrics['agreement']) == pytest.approx((guess == teacher.argmax(1)).mean())


def test_soft_targets_at_temperature_one_have_the_gradient_of_the_cross_entropy():
  rng = np.random.default_rng(0)
  student, teacher = (jnp.asarray(rng.normal(size=(3, 4)), jnp.float32) for _ in range(2))
  gradient = jax.grad(lambda x: distillation.soft(x, teacher, 1.0).sum())(student)
  np.testing.assert_allclose(gradient, jax.nn.softmax(student) - jax.nn.softmax(teacher), atol=1e-6)
  np.testing.assert_allclose(distillation.soft(teacher, teacher, 2.0), 0.0, atol=1e-6)


@pytest.mark.parametrize('fields, message', [
    (dict(teacher=''), 'objective.teacher: expected the model to learn from'),
    (dict(targets='warm'), 'objective.targets: unknown'),
    (dict(alpha=1.5), r'objective.alpha: must be in \[0, 1\]'),
    (dict(temperature=2.0), "objective.temperature: objective.targets='hard' has none"),
    (dict(targets='soft', temperature=0.0), 'objective.temperature: must be positive'),
    (dict(label_smoothing=1.0), 'objective.label_smoothing')])
def test_bad_values_are_errors(fields, message):
  with pytest.raises(UserError, match=message):
    DistillationConfig(**{'teacher': 'somewhere', **fields})


def test_teachers_that_do_not_fit_the_targets_or_the_data_are_errors():
  teacher = Teacher(lambda params: None, (8, 8), Normalization(), loss='sigmoid')
  context = dataclasses.replace(tiny.objective_context(INFO), teacher=teacher)
  with pytest.raises(UserError, match="trained with the loss 'sigmoid'"):
    Distillation(DistillationConfig(teacher='somewhere', targets='soft'), context)
  context = dataclasses.replace(context, info=dataclasses.replace(INFO, multi_label=True))
  with pytest.raises(UserError, match="'distillation' takes one class per image"):
    Distillation(DistillationConfig(teacher='somewhere'), context)


# The file of a teacher.


@pytest.fixture(scope='module')
def file(tmp_path_factory):
  """Return a file with a random model of five classes."""
  path = tmp_path_factory.mktemp('teacher') / 'teacher.npz'
  save(random_model(), path)
  return str(path)


def with_names(monkeypatch, names):
  read = teacher_lib.read
  monkeypatch.setattr(teacher_lib, 'read', lambda source: dataclasses.replace(
      read(source), class_names=names, preprocessing=Preprocessing('resize', 0.2, 0.3)))


def test_classes_in_another_order_are_permuted(file, monkeypatch):
  with_names(monkeypatch, ('emu', 'dog', 'cat', 'bee', 'ant'))
  teacher, params = teacher_lib.load(file, INFO, NAMES)
  pixels = np.random.default_rng(0).random((3, 8, 8, 1)).astype(np.float32)
  expected = random_model()((pixels - 0.2) / 0.3)
  np.testing.assert_allclose(teacher.logits(jax.tree.map(jnp.asarray, params), jnp.asarray(pixels)), expected[:, ::-1],
                             atol=1e-5)
  assert teacher.image_size == (8, 8) and teacher.normalization == Normalization(0.2, 0.3)


def test_other_classes_channels_and_missing_files_are_errors(file, monkeypatch):
  with pytest.raises(UserError, match='tells 5 classes apart, the data has 10 classes'):
    teacher_lib.load(file, dataclasses.replace(INFO, num_classes=10), None)
  with pytest.raises(UserError, match=r'takes images of 1 channels, the data has 3. --config.data.channels=1'):
    teacher_lib.load(file, dataclasses.replace(INFO, channels=3), NAMES)
  with pytest.raises(UserError, match='objective.teacher: .*nowhere.npz.* needs its teacher to start, to resume and to be evaluated'):
    teacher_lib.load('/nowhere.npz', INFO, NAMES)
  with_names(monkeypatch, ('ant', 'bee', 'cat', 'dog', 'fly'))
  with pytest.raises(UserError, match=r"only the teacher has \['fly'\], only the data has \['emu'\]"):
    teacher_lib.load(file, INFO, NAMES)


# Runs.


def recipe(data_dir, teacher, **changes):
  config = tiny.config(data_dir, **{
      'objective': dict(kind='distillation', teacher=str(teacher)), 'train.duration': '2 steps',
      'train.eval_every': '2 steps', 'train.micro_batch': 8, 'optim.warmup': '1 steps', 'data.batch_size': 16,
      'checkpoint': dict(every='1 steps', keep=2), 'mix.mixup': 0.2,
      'evaluators': dict(test=dict(kind='objective', split='test[:20]')), **changes})
  config.model.update(depth=1, width=8, mlp_dim=16, pool='distilled')
  return config


@pytest.fixture(scope='module')
def teacher_run(data_dir, tmp_path_factory):
  """Return a run without steps, of other size and normalization."""
  path = tmp_path_factory.mktemp('teacher') / 'run'
  config = tiny.config(data_dir, **{'data.image_size': 12, 'normalization.mean': 0.4, 'train.ema_decay': None})
  built = build(config)
  checkpoints = Checkpoints(RunDir(path).checkpoints_path, built.config.checkpoint, built.pace)
  at = start.restore(built, checkpoints)
  rng = np.random.default_rng(0)
  at.state = at.state.replace(params=jax.tree.map(
      lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32), at.state.params))
  RunDir(path).write_config(built.config.to_dict())
  checkpoints.save(1, built.strategy.fetch(at.state.to_save()), at.record)
  checkpoints.close()
  return path


def test_the_path_of_a_teacher_is_recorded_for_a_resume_from_elsewhere(data_dir, teacher_run, monkeypatch):
  monkeypatch.chdir(teacher_run.parent)
  read = lambda teacher: config_lib.read(config_lib.as_dict(recipe(data_dir, teacher))).objective.teacher
  assert read('run') == str(teacher_run) and read('run:ema') == f'{teacher_run}:ema'
  assert read('google/ViT-B_16') == 'google/ViT-B_16' and read('gs://bucket/run') == 'gs://bucket/run'


def test_the_teacher_is_in_the_state_but_not_trained_counted_compiled_in_or_saved(data_dir, teacher_run, tmp_path):
  built = build(recipe(data_dir, teacher_run, **{'mix.mixup': 0.0}))
  alone = build(recipe(data_dir, teacher_run, objective=dict(kind='classification')))
  assert built.num_params == alone.num_params
  checkpoints = Checkpoints(RunDir(tmp_path / 'run').checkpoints_path, built.config.checkpoint, built.pace)
  at = start.restore(built, checkpoints)
  expected = nnx.to_pure_dict(nnx.state(vit_jax.load(teacher_run), nnx.Param))
  jax.tree.map(np.testing.assert_array_equal, at.state.constants[TEACHER], expected)
  assert at.state.averages is None and 'teacher' not in str(jax.tree.structure(at.state.opt_state))
  checkpoints.save(1, built.strategy.fetch(at.state.to_save()), at.record)
  checkpoints.wait()
  again = start.restore(built, checkpoints, 1)
  jax.tree.map(np.testing.assert_array_equal, again.state.constants[TEACHER], expected)
  checkpoints.close()
  stored = str((tmp_path / 'run' / 'checkpoints' / '1' / 'state' / '_METADATA').read_text())
  assert 'patch_embed' in stored and 'teacher' not in stored
  program = jax.make_jaxpr(built.step, axis_env=[('batch', 1)])(
      built.abstract_state(), dict(image=np.zeros((16, 8, 8, 1), np.uint8), label=np.zeros(16, np.int32),
                                   id=np.zeros(16, np.int32), rng=np.zeros(16, np.uint32)))
  largest = max([0, *(np.size(x) for x in program.consts)])
  assert largest < 300  # a kernel of the teacher has 16 · 32 numbers


@pytest.mark.slow
def test_a_run_with_a_teacher_resumes_exactly_and_says_when_it_is_missing(data_dir, teacher_run, tmp_path):
  moved = tmp_path / 'teacher'
  shutil.copytree(teacher_run, moved)
  once, twice, config = tmp_path / 'once', tmp_path / 'twice', recipe(data_dir, moved)
  train.run(config, once)
  shutil.copytree(once, twice)
  shutil.rmtree(RunDir(twice).checkpoints_path / '2')
  train.run(config, twice)
  names = ('train/loss', 'train/accuracy', 'train/agreement', 'train/teacher_accuracy')
  assert tiny.metrics(twice, names)[-1] == tiny.metrics(once, names)[-1]
  measured = [tiny.metrics(path, ('test/loss', 'test/agreement', 'test_ema/loss')) for path in (once, twice)]
  assert measured[0] and measured[0] == measured[1]
  shutil.rmtree(moved)
  shutil.rmtree(RunDir(twice).checkpoints_path / '2')
  with pytest.raises(UserError, match='objective.teacher: .* checkpoints do not hold it'):
    train.run(config, twice)
