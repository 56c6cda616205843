#!/bin/sh
# What the challenge runs in the container: every case in ./inputs gets its labels in ./outputs.
# GSMEDSEG_WEIGHTS is a name or a file, GSMEDSEG_STRATEGY is adaptive or reference, GSMEDSEG_TIME_LIMIT is in
# seconds per class for the six runs of a case.
exec python3 -m GSMedSegLib.cli predict inputs outputs \
    --weights "${GSMEDSEG_WEIGHTS:-compact}" \
    --strategy "${GSMEDSEG_STRATEGY:-adaptive}" \
    --precision auto \
    --time-limit "${GSMEDSEG_TIME_LIMIT:-90}"
