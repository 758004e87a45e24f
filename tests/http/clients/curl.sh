#!/usr/bin/env bash
# Reads events with curl -N, by HTTP/1.1 and then, for the rest, by HTTP/1.0.
set -uo pipefail
read_events() { # COUNT, arguments of curl
  local left=$1 line pid
  shift
  exec 3< <(exec curl -sN -m 20 "$@")
  pid=$!
  while [ "$left" -gt 0 ] && IFS= read -r line <&3; do
    case $line in "data: "*) printf '%s\n' "${line#data: }"; left=$((left - 1)) ;; esac
  done
  kill "$pid"
  exec 3<&-
}
half=$(($2 / 2))
id=${1##*=} base=${1%%\?*}
read_events "$half" "$1"
read_events "$(($2 - half))" --http1.0 -H "Last-Event-ID: ${id%-*}-$half" "$base"
