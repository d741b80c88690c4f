#!/usr/bin/env bash
# Trains on a Cloud TPU slice of any number of hosts: asks for it, waits, installs this clone on every host, trains,
# and gives it back. A spot slice that is taken away is asked for again; the run goes on from its last checkpoint.
#
# Edit these lines, then run it on a machine that stays on:   experiments/launch/tpu_pod.sh
# To see what it would do:                                    DRY_RUN=1 experiments/launch/tpu_pod.sh
set -euo pipefail

name=vit-b16                     # of the queued resource and its TPU VM
project=PROJECT
zone=europe-west4-b
accelerator=v5litepod-64         # 64 chips on 16 hosts
runtime=v2-alpha-tpuv5-lite      # system image that belongs to the accelerator
provisioning=--spot              # '' for on-demand capacity
train=(../venv/bin/python -m vit_jax.main --config=configs/vit_b16.py
       --config.platform=tpu     # never silently on the hosts' CPUs
       --config.data.data_dir=gs://BUCKET/tensorflow_datasets
       --workdir=gs://BUCKET/vit_b16)   # one folder for all hosts

failures_allowed=3               # of the training itself; slices taken away do not count
poll=${POLL:-30}                 # seconds between two looks

run() {  # shows a command; runs it unless this is a dry run
  printf '+ %q' "$1" >&2; printf ' %q' "${@:2}" >&2; echo >&2
  [[ -n ${DRY_RUN:-} ]] || "$@"
}

gcloud_tpu() { run gcloud compute tpus "$@" --project="$project" --zone="$zone"; }

look() {  # sets `state` to that of the queued resource; MISSING only if Cloud says that there is none
  local tries=5
  if [[ -n ${DRY_RUN:-} ]]; then
    state=${maybe_there:+ACTIVE}
    state=${state:-MISSING}
    return
  fi
  until state=$(gcloud compute tpus queued-resources describe "$name" --project="$project" --zone="$zone" \
                  --format='value(state.state)' 2>"$errors"); do
    if grep -q NOT_FOUND "$errors"; then state=MISSING; break; fi
    cat "$errors" >&2  # no network, no permission, an expired login
    ((--tries)) || { maybe_there=yes; echo "error: cannot tell whether there is a slice" >&2; exit 1; }
    sleep "$poll"
  done
  if [[ $state == MISSING ]]; then maybe_there=''; else maybe_there=yes; fi
}

give_back() { gcloud_tpu queued-resources delete "$name" --force --quiet && maybe_there=''; }

get_slice() {  # returns once the slice is there
  while true; do
    look
    case $state in
      ACTIVE) return ;;
      # These never become active again, and hold the name.
      FAILED | SUSPENDED) give_back; sleep "$poll" ;;
      MISSING)
        maybe_there=yes  # also where the command fails half-way
        gcloud_tpu queued-resources create "$name" --node-id="$name" --accelerator-type="$accelerator" \
          --runtime-version="$runtime" ${provisioning:+"$provisioning"} ;;
      *) sleep "$poll" ;;  # waiting for resources, provisioning, suspending, deleting
    esac
  done
}

on_all_hosts() { gcloud_tpu tpu-vm ssh "$name" --worker=all --command="$1"; }

# The commit that is checked out here, the same on all hosts. uv brings a Python that the system image may not have.
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
maybe_there=''  # not empty while there may be a slice, which costs money

finish() {
  rm -f "$archive" "$errors"
  [[ -z $maybe_there ]] || echo "The slice may still be there (and costs money): $name in $zone of $project. To give it
back: gcloud compute tpus queued-resources delete $name --force --project=$project --zone=$zone" >&2
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

failures=0
while true; do
  get_slice
  # Every host runs the same command; the pod's metadata tells vit_jax the rest.
  if install && on_all_hosts "cd vit_jax && $(printf '%q ' "${train[@]}")"; then
    give_back
    exit
  fi
  sleep "$poll"  # a slice that is being taken away says so a little later
  look
  if [[ $state == ACTIVE ]]; then
    failures=$((failures + 1))
    if ((failures > failures_allowed)); then
      echo "error: it failed $failures times on a healthy slice" >&2
      exit 1
    fi
  fi
done
