#!/usr/bin/env bash
# Train on a Cloud TPU slice of any number of hosts: request it, wait, install this clone on every host, train, and
# delete it. If a spot slice is preempted, it is requested again, and the run resumes from its last checkpoint.
#
# Edit these lines, then run this script on a machine that stays on:   experiments/launch/tpu_pod.sh
# To see what it would do:                                    DRY_RUN=1 experiments/launch/tpu_pod.sh
set -euo pipefail

name=vit-b16                     # of the queued resource and its TPU VM
project=PROJECT
zone=europe-west4-b
accelerator=v5litepod-64         # 64 chips on 16 hosts
runtime=v2-alpha-tpuv5-lite      # system image for the accelerator
provisioning=--spot              # '' for on-demand capacity
train=(../venv/bin/python -m vit_jax.main --config=configs/vit_b16.py
       --config.platform=tpu     # never fall back to the hosts' CPUs silently
       --config.data.data_dir=gs://BUCKET/tensorflow_datasets
       --workdir=gs://BUCKET/vit_b16)   # the same directory for all hosts

failures_allowed=3               # of the training itself; preempted slices do not count
poll=${POLL:-30}                 # seconds between two requests for the state

run() {  # print a command; run it unless this is a dry run
  printf '+ %q' "$1" >&2; printf ' %q' "${@:2}" >&2; echo >&2
  [[ -n ${DRY_RUN:-} ]] || "$@"
}

gcloud_tpu() { run gcloud compute tpus "$@" --project="$project" --zone="$zone"; }

get_state() {  # set `state` to that of the queued resource; MISSING only if Cloud reports that there is none
  local tries=5
  if [[ -n ${DRY_RUN:-} ]]; then
    state=${may_exist:+ACTIVE}
    state=${state:-MISSING}
    return
  fi
  until state=$(gcloud compute tpus queued-resources describe "$name" --project="$project" --zone="$zone" \
                  --format='value(state.state)' 2>"$errors"); do
    if grep -q NOT_FOUND "$errors"; then state=MISSING; break; fi
    cat "$errors" >&2  # no network, no permission, an expired login
    ((--tries)) || { may_exist=yes; echo "error: cannot find out whether the slice exists" >&2; exit 1; }
    sleep "$poll"
  done
  if [[ $state == MISSING ]]; then may_exist=''; else may_exist=yes; fi
}

delete_slice() { gcloud_tpu queued-resources delete "$name" --force --quiet && may_exist=''; }

get_slice() {  # return once the slice is active
  while true; do
    get_state
    case $state in
      ACTIVE) return ;;
      # These never become active again, and keep the name taken.
      FAILED | SUSPENDED) delete_slice; sleep "$poll" ;;
      MISSING)
        may_exist=yes  # also if the command fails halfway
        gcloud_tpu queued-resources create "$name" --node-id="$name" --accelerator-type="$accelerator" \
          --runtime-version="$runtime" ${provisioning:+"$provisioning"} ;;
      *) sleep "$poll" ;;  # waiting for resources, provisioning, suspending, deleting
    esac
  done
}

on_all_hosts() { gcloud_tpu tpu-vm ssh "$name" --worker=all --command="$1"; }

# The commit that is checked out here, on all hosts. uv provides a Python that the system image may not have.
install() {
  run git archive --format=tar.gz --prefix=vit_jax/ --output="$archive" HEAD
  gcloud_tpu tpu-vm scp "$archive" "$name:vit_jax.tar.gz" --worker=all
  on_all_hosts "rm -rf vit_jax && tar xzf vit_jax.tar.gz && python3 -m pip install --quiet --user uv &&
    python3 -m uv venv --quiet --allow-existing --python=3.12 venv &&
    python3 -m uv pip install --quiet --python=venv/bin/python -e 'vit_jax[tpu]'"
}

cd "$(dirname "$0")/../.."
archive=$(mktemp --suffix=.tar.gz)
errors=$(mktemp)
may_exist=''  # not empty while a slice, which costs money, may exist

finish() {
  rm -f "$archive" "$errors"
  [[ -z $may_exist ]] || echo "The slice may still exist (and costs money): $name in $zone of $project. To delete
it: gcloud compute tpus queued-resources delete $name --force --project=$project --zone=$zone" >&2
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

failures=0
while true; do
  get_slice
  # Every host runs the same command; vit_jax reads the rest from the pod's metadata.
  if install && on_all_hosts "cd vit_jax && $(printf '%q ' "${train[@]}")"; then
    delete_slice
    exit
  fi
  sleep "$poll"  # a slice that is being preempted reports it a little later
  get_state
  if [[ $state == ACTIVE ]]; then
    failures=$((failures + 1))
    if ((failures > failures_allowed)); then
      echo "error: training failed $failures times on a healthy slice" >&2
      exit 1
    fi
  fi
done
