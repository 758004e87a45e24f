"""Reads events with httpx-sse."""
import sys
import httpx
from httpx_sse import connect_sse

left = int(sys.argv[2])
with httpx.Client(timeout=20, trust_env=False) as client:
    with connect_sse(client, "GET", sys.argv[1]) as source:
        for event in source.iter_sse():
            assert event.data, "an empty event"
            print(event.data, flush=True)
            left -= 1
            if left == 0:
                break
