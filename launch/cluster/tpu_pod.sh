#!/bin/bash
# A TPU VM slice, from nothing to a training run and back:
#
#   launch/cluster/tpu_pod.sh create  mgen-pod v5litepod-64 us-west4-a
#   launch/cluster/tpu_pod.sh copy    mgen-pod us-west4-a        # this checkout, and install it
#   launch/cluster/tpu_pod.sh run     mgen-pod us-west4-a --config=... --workdir=/mnt/BUCKET/run ...
#   launch/cluster/tpu_pod.sh logs    mgen-pod us-west4-a
#   launch/cluster/tpu_pod.sh delete  mgen-pod us-west4-a
#
# `run` returns at once; all workers run the same command in the background, with a log each. Give
# `mgen preflight --topology=...` the slice first.
set -euo pipefail

VERSION="${TPU_VERSION:-v2-alpha-tpuv5-lite}"
readonly VERSION

usage() {
  grep '^#   launch' "$0" | cut -c4- >&2
  exit 1
}

# on_all NAME ZONE COMMAND: on every worker of the slice.
on_all() {
  gcloud compute tpus tpu-vm ssh "$1" --zone="$2" --worker=all --command="$3"
}

[[ $# -ge 3 ]] || usage
action="$1" name="$2"
shift 2
case "$action" in
  create)
    [[ $# -eq 2 ]] || usage
    read -ra flags <<< "${TPU_FLAGS:-}"
    gcloud compute tpus tpu-vm create "$name" --accelerator-type="$1" --zone="$2" \
      --version="$VERSION" "${flags[@]}"
    ;;
  copy)
    archive="$(mktemp -d)/mgen.tar.gz"
    git archive --format=tar.gz --output="$archive" HEAD
    gcloud compute tpus tpu-vm scp "$archive" "$name:mgen.tar.gz" --zone="$1" --worker=all
    on_all "$name" "$1" "mkdir -p mgen && tar xzf mgen.tar.gz -C mgen && cd mgen && \
python3 -m venv .venv && .venv/bin/pip install -q -c requirements.lock -e '.[data,tpu]'"
    ;;
  run)
    zone="$1"
    shift
    [[ $# -ge 1 ]] || usage
    printf -v arguments '%q ' "$@"
    on_all "$name" "$zone" \
      "cd mgen && nohup .venv/bin/mgen train $arguments > ~/mgen.log 2>&1 < /dev/null &"
    ;;
  logs)
    on_all "$name" "$1" "tail -n ${LINES_OF_LOG:-20} ~/mgen.log"
    ;;
  delete)
    gcloud compute tpus tpu-vm delete "$name" --zone="$1" --quiet
    ;;
  *)
    usage
    ;;
esac
