"""Parses the metrics with the parser of prometheus-client."""
import json
import sys
import urllib.request
from prometheus_client.parser import text_string_to_metric_families

text = urllib.request.urlopen(sys.argv[1], timeout=20).read().decode()
found = {}
for family in text_string_to_metric_families(text):
    assert family.documentation and family.type in ("gauge", "counter"), family
    for sample in family.samples:
        found[sample.name + " " + ",".join(sample.labels.values())] = sample.value
print(json.dumps(found))
