#!/bin/sh
# Correctness and cost on a GPU, in at most eight minutes: run.sh RESULTS.json [options of run.py]
set -u
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
out=$1
shift
export PYTHONPATH="$root/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
for attempt in 1 2 3 4 5 6; do
    "${PYTHON:-python3}" "$here/run.py" --out "$out" "$@"
    status=$?
    # Killed by the system, or an error that left the GPU unusable: the sections that are missing are tried again.
    [ "$status" -eq 75 ] || [ "$status" -ge 128 ] || exit "$status"
    echo "attempt $attempt ended with status $status" >&2
done
exit 1
