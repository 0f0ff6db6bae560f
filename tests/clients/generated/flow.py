"""Upload, create, retrieve and download with the generated package `client`."""

import json
import os
import sys
import time
from io import BytesIO

from client.api.batches import create_batch, list_batches, retrieve_batch
from client.api.extensions import create_estimate, get_invoice, get_limits, get_statement, get_terms
from client.api.files import create_file, delete_file, download_file, retrieve_file
from client.api.models import list_models
from client.client import AuthenticatedClient
from client.models import (
    BatchRequest,
    BatchRequestEndpoint,
    CreateFileBody,
    CreateFileBodyPurpose,
    ErrorObject,
    EstimateRequest,
)
from client.types import File

PATIENCE = 120

client = AuthenticatedClient(
    base_url=os.environ["XALEN_BATCH_ADDRESS"], token=os.environ["XALEN_BATCH_KEY"]
)
model = list_models.sync(client=client).data[0].id
chat = {"model": "mistral-small-3-1", "messages": [{"role": "user", "content": "Hello"}]}
lines = [
    json.dumps(
        {"custom_id": f"r{n}", "method": "POST", "url": "/v1/chat/completions", "body": chat}
    )
    for n in range(3)
]
content = "\n".join(lines).encode()

upload = CreateFileBody(
    purpose=CreateFileBodyPurpose.BATCH,
    file=File(payload=BytesIO(content), file_name="naïve.jsonl"),
)
file = create_file.sync(client=client, body=upload)
assert (file.filename, file.bytes_) == ("naïve.jsonl", len(content)), file
assert retrieve_file.sync(file.id, client=client) == file
assert download_file.sync(file.id, client=client).payload.read() == content

estimate = create_estimate.sync(client=client, body=EstimateRequest(input_file_id=file.id))
assert (estimate.valid, estimate.lines, estimate.models[0].lines) == (True, 3, 3), estimate
endpoint = BatchRequestEndpoint.VALUE_0
batch = create_batch.sync(
    client=client,
    body=BatchRequest(input_file_id=file.id, endpoint=endpoint, completion_window="24h"),
)
deadline = time.monotonic() + PATIENCE
while (batch := retrieve_batch.sync(batch.id, client=client)).status != "completed":
    assert time.monotonic() < deadline, batch
    time.sleep(0.1)
output = download_file.sync(batch.output_file_id, client=client).payload.read()
assert [json.loads(line)["custom_id"] for line in output.splitlines()] == ["r0", "r1", "r2"], output

assert list_batches.sync(client=client).data[0].id == batch.id
invoice = get_invoice.sync(batch.id, client=client)
month = time.strftime("%Y-%m", time.gmtime(invoice.issued_at))
statement = get_statement.sync(month, client=client)
assert invoice.id in [line.invoice_id for line in statement.lines], statement
assert get_limits.sync(client=client).files.used >= 2
assert get_terms.sync(client=client).models
assert delete_file.sync(batch.output_file_id, client=client).deleted
missing = retrieve_file.sync("file-missing", client=client)
assert isinstance(missing, ErrorObject), missing
assert missing.error.type_ == "not_found_error"
sys.stdout.write(json.dumps({"batch": batch.id, "total": invoice.total}))
