"""Checks webhooks with the libraries that others wrote. Standard input: a JSON line with `headers`, `body` and `secret` each."""

import json
import sys
from datetime import datetime, timezone

import standardwebhooks.webhooks
import svix.webhooks

count = 0
for line in sys.stdin:
    sent = json.loads(line)
    body, headers = sent["body"], sent["headers"]
    for library in (standardwebhooks.webhooks, svix.webhooks):
        webhook = library.Webhook(sent["secret"])
        names = dict(headers)
        if library is svix.webhooks:
            names = {name.replace("webhook-", "svix-"): value for name, value in headers.items()}
        webhook.verify(body, names)
        # One flipped bit, in the middle.
        changed = bytearray(body.encode())
        changed[len(changed) // 2] ^= 1
        try:
            webhook.verify(bytes(changed).decode("utf-8", "replace"), names)
        except library.WebhookVerificationError:
            pass
        else:
            sys.exit(f"{library.__name__} accepts a body that was changed: {body}")
    count += 1
print(count)
