"""The launch scripts are correct shell, and the answers of a fake cluster lead to the right commands."""
import math
import os
import re
import shutil
import subprocess

import pytest

from tests import tiny
from vit_jax.base import exits

LAUNCH = tiny.ROOT / 'experiments' / 'launch'
SCRIPTS = sorted(LAUNCH.glob('*.sh'))


@pytest.fixture
def fake(tmp_path, monkeypatch):
  """fake(name, script) puts a command on the PATH that appends its arguments to `log`, then runs the script."""
  def make(name, script=''):
    path = tmp_path / 'bin' / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >>"{tmp_path}/log"\n{script}\n')
    path.chmod(0o755)
  monkeypatch.setenv('PATH', f'{tmp_path / "bin"}:{os.environ["PATH"]}')
  monkeypatch.setenv('FAKE', str(tmp_path))
  monkeypatch.setenv('POLL', '0')
  return make


def run(script, tmp_path):
  """Return (exit status, stderr, the log of the fakes as lines)."""
  result = subprocess.run([LAUNCH / script], capture_output=True, text=True, timeout=20)
  log = tmp_path / 'log'
  return result.returncode, result.stderr, log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_correct_shell(script):
  assert subprocess.run(['bash', '-n', script]).returncode == 0 and os.access(script, os.X_OK)
  if shutil.which('shellcheck'):
    checked = subprocess.run(['shellcheck', script], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize('path', sorted(LAUNCH.iterdir()), ids=lambda path: path.name)
def test_scripts_train_an_existing_recipe_and_insist_on_a_platform(path):
  text = path.read_text()
  recipe, = re.findall(r'--config=(\S+)', text)
  assert (tiny.ROOT / recipe).exists() and 'vit_jax.main' in text
  assert re.search(r'--config\.platform=(tpu|gpu)', text) and '--workdir=' in text


# Each line of `states` is one answer of gcloud about the queued resource; empty: there is none; ERROR: gcloud fails.
GCLOUD = '''
case "$*" in
  *describe*)
    state=$(head -1 "$FAKE/states"); sed -i 1d "$FAKE/states"
    [[ -n $state ]] || { echo 'ERROR: (gcloud) NOT_FOUND: no such resource' >&2; exit 1; }
    [[ $state != ERROR ]] || { echo 'ERROR: (gcloud) UNAUTHENTICATED: log in again' >&2; exit 1; }
    echo "$state" ;;
  *vit_jax.main*)
    status=$(head -1 "$FAKE/statuses"); sed -i 1d "$FAKE/statuses"
    exit "$status" ;;
esac
'''


COSTS = 'The slice may still exist (and costs money): vit-b16'


def pod(fake, tmp_path, states, statuses):
  """Return (exit status, stderr, gcloud's verbs in order), given gcloud's answers and the exit statuses of training."""
  fake('gcloud', GCLOUD)
  (tmp_path / 'states').write_text('\n'.join(states) + '\n')
  (tmp_path / 'statuses').write_text('\n'.join(map(str, statuses)) + '\n')
  status, error, log = run('tpu_pod.sh', tmp_path)
  verbs = ['train' if 'vit_jax.main' in line else line.split()[4] for line in log if line.startswith('gcloud')]
  return status, error, [verb for verb in verbs if verb != 'describe']


def test_a_slice_is_requested_used_and_deleted(fake, tmp_path):
  status, error, verbs = pod(fake, tmp_path, ['', 'WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE'], [0])
  assert status == 0 and COSTS not in error, error
  assert verbs == ['create', 'scp', 'ssh', 'train', 'delete']
  create, = [line for line in (tmp_path / 'log').read_text().splitlines() if 'create' in line]
  assert '--spot' in create and '--node-id=vit-b16' in create and '--zone=' in create and '--project=' in create


def test_a_preempted_slice_is_requested_again(fake, tmp_path):
  states = ['ACTIVE', 'SUSPENDING', 'SUSPENDING', 'SUSPENDED', '', 'ACTIVE']
  status, error, verbs = pod(fake, tmp_path, states, [255, 0])
  assert status == 0, error
  assert verbs == ['scp', 'ssh', 'train', 'delete', 'create', 'scp', 'ssh', 'train', 'delete']


def test_training_that_fails_on_a_healthy_slice_is_not_retried_forever(fake, tmp_path):
  status, error, verbs = pod(fake, tmp_path, ['ACTIVE'] * 20, [1] * 20)
  assert status == 1 and 'training failed 4 times on a healthy slice' in error and COSTS in error
  assert verbs.count('train') == 4 and 'delete' not in verbs


@pytest.mark.parametrize('trained', [0, 1])
def test_a_cloud_error_is_not_taken_for_a_missing_slice(trained, fake, tmp_path):
  """Nothing is requested twice, and polling continues."""
  first = ['ERROR', 'ACTIVE'] if trained == 0 else ['ACTIVE', 'ERROR', 'ERROR', 'ACTIVE', 'ACTIVE']
  status, error, verbs = pod(fake, tmp_path, first, [trained, 0])
  assert status == 0 and 'UNAUTHENTICATED' in error and 'create' not in verbs, error
  assert verbs[-1] == 'delete' and COSTS not in error


@pytest.mark.parametrize('states', [['ERROR'] * 9, ['ACTIVE'] + ['ERROR'] * 9])
def test_a_script_that_exits_warns_that_the_slice_may_cost_money(states, fake, tmp_path):
  status, error, verbs = pod(fake, tmp_path, states, [1])
  assert status == 1 and error.count('UNAUTHENTICATED') == 5 and COSTS in error
  assert not {'create', 'delete'} & set(verbs)


def test_a_dry_run_changes_nothing(fake, tmp_path, monkeypatch):
  fake('gcloud')
  monkeypatch.setenv('DRY_RUN', '1')
  status, error, log = run('tpu_pod.sh', tmp_path)
  assert status == 0 and not log
  assert '+ gcloud compute tpus tpu-vm ssh vit-b16 --worker=all' in error and COSTS not in error
  assert '+ gcloud compute tpus queued-resources create vit-b16' in error


@pytest.mark.parametrize('ended, restarts, requeued', [
    (0, 0, False), (1, 0, False), (2, 0, False),
    (exits.EXIT_RETRY, 0, True), (143, 0, True), (137, 49, True), (143, 50, False)])
def test_slurm_requeues_interrupted_jobs(ended, restarts, requeued, fake, tmp_path, monkeypatch):
  fake('srun', f'exit {ended}')
  fake('scontrol')
  monkeypatch.setenv('SLURM_JOB_ID', '7')
  monkeypatch.setenv('SLURM_RESTART_COUNT', str(restarts))
  status, error, log = run('slurm.sh', tmp_path)
  assert status == ended, error
  assert log[0].startswith('srun --kill-on-bad-exit=1 python -m vit_jax.main')
  assert log[1:] == (['scontrol requeue 7'] if requeued else [])


def test_slurm_options_are_where_sbatch_reads_them():
  """sbatch stops reading at the first line that is not a comment; the signal goes to the step, not to the script."""
  head = (LAUNCH / 'slurm.sh').read_text().split('\nset ')[0].splitlines()
  options = [line.split()[1].split('=')[0] for line in head if line.startswith('#SBATCH')]
  assert all(not line or line.startswith('#') for line in head)
  assert {'--nodes', '--ntasks-per-node', '--requeue', '--signal', '--open-mode'} <= set(options)
  assert len((LAUNCH / 'slurm.sh').read_text().split('#SBATCH')) == len(options) + 1


# Fields of jobset.x-k8s.io/v1alpha2 (kubernetes-sigs/jobset, api/jobset/v1alpha2/jobset_types.go).
JOBSET_FIELDS = {'replicatedJobs', 'network', 'successPolicy', 'failurePolicy', 'startupPolicy', 'suspend',
                 'coordinator', 'managedBy', 'ttlSecondsAfterFinished', 'volumeClaimPolicies'}
ACTIONS = {'FailJobSet', 'RestartJobSet', 'RestartJobSetAndIgnoreMaxRestarts', 'RestartJob',
           'RestartJobAndIgnoreMaxRestarts'}


def test_the_jobset_manifest_is_valid():
  manifest = pytest.importorskip('yaml').safe_load((LAUNCH / 'gke.yaml').read_text())
  assert (manifest['apiVersion'], manifest['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
  spec = manifest['spec']
  assert set(spec) <= JOBSET_FIELDS
  failure_policy = spec['failurePolicy']
  assert set(failure_policy) <= {'maxRestarts', 'restartStrategy', 'rules'} and failure_policy['maxRestarts'] > 0
  for rule in failure_policy['rules']:
    assert set(rule) <= {'name', 'action', 'onJobFailureReasons', 'onJobFailureMessagePatterns', 'targetReplicatedJobs'}
    assert re.fullmatch('[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?', rule['name']) and rule['action'] in ACTIONS
  job_template, = spec['replicatedJobs']
  assert set(job_template) <= {'name', 'replicas', 'template', 'dependsOn', 'groupName'}
  job = job_template['template']['spec']
  assert job['parallelism'] == job['completions'] and job['backoffLimit'] == 0 and job['completionMode'] == 'Indexed'
  codes, = [rule['onExitCodes']['values'] for rule in job['podFailurePolicy']['rules'] if 'onExitCodes' in rule]
  assert exits.EXIT_RETRY in codes and 143 in codes and 1 not in codes and codes == sorted(codes)
  pod_spec = job['template']['spec']
  assert pod_spec['restartPolicy'] == 'Never'  # required by podFailurePolicy
  container, = pod_spec['containers']
  chips = container['resources']['limits']['google.com/tpu']
  topology = pod_spec['nodeSelector']['cloud.google.com/gke-tpu-topology']
  assert math.prod(map(int, topology.split('x'))) == chips * job['completions']
  # Must be a DNS label: the pod's name is JOBSET-JOB-INDEX-INDEX-XXXXX.
  name = manifest['metadata']['name']
  assert re.fullmatch('[a-z]([-a-z0-9]*[a-z0-9])?', name) and len(name) < 40
