"""Ask a running server what it says of one image: `python scripts/client.py scan.png [http://127.0.0.1:5001]`."""

import base64
import os
import sys
from pathlib import Path

import requests

file, url = [*sys.argv[1:], "http://127.0.0.1:5001"][:2]
token = os.environ.get("ULTRASOUND_TOKEN")
image = base64.b64encode(Path(file).read_bytes()).decode()
response = requests.post(
    f"{url}/invocations",
    json={"dataframe_split": {"columns": ["image"], "data": [[image]]}},
    headers={"Authorization": f"Bearer {token}"} if token else {},
    timeout=60,
)
answer = response.json()
print(answer["predictions"][0] if response.ok else answer["message"])
