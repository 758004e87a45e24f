"""Reads events with sseclient-py."""
import sys
import requests
import sseclient

answer = requests.get(sys.argv[1], stream=True, headers={"Accept": "text/event-stream"}, timeout=20)
left = int(sys.argv[2])
for event in sseclient.SSEClient(answer).events():
    if event.id:
        print(event.data, flush=True)
        left -= 1
    if left == 0:
        break
