#!/usr/bin/env bash
# Reads events with curl -N, by HTTP/1.1 and then, for the rest, by HTTP/1.0.
set -uo pipefail
half=$(($2 / 2))
curl -sN -m 20 "$1" | grep --line-buffered '^data: ' | head -n "$half" | sed 's/^data: //'
file=${1##*=} base=${1%%\?*}
curl -sN -m 20 --http1.0 -H "Last-Event-ID: ${file%-*}-$half" "$base" | grep --line-buffered '^data: ' | head -n "$(($2 - half))" | sed 's/^data: //'
