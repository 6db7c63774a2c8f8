"""`healthy.py URL [KEY]` exits with 0 if URL answers 200. With KEY, its JSON must also report that part as healthy."""

import json
import sys
import urllib.request

with urllib.request.urlopen(sys.argv[1], timeout=4) as answer:  # noqa: S310 - an address of the compose file
    content = answer.read()
if len(sys.argv) > 2 and json.loads(content)[sys.argv[2]]["status"] != "healthy":
    raise SystemExit(f"{sys.argv[2]} is not healthy")
