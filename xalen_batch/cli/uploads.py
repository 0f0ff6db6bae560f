"""Uploads for a request, which are deleted again if the request is refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xalen_batch.cli import part_uploads, progress
from xalen_batch.cli.client import ApiClient
from xalen_batch.cli.failures import INTERRUPTED, ApiError, Failed, Unreachable

# After these statuses the request may have succeeded, unless the API says not to repeat it. After
# any other 4xx it has not.
UNSURE = (408, 409)


def send(client: ApiClient, path: Path, name: str) -> dict[str, Any]:
    """Upload a file as batch input, with a progress bar; the API's file object.

    A large one is sent in parts, which a later call does not send again.
    """
    with progress.transfer("uploading") as moved:
        if path.stat().st_size > part_uploads.PART:
            try:
                return part_uploads.send(client, path, name, moved)
            except ApiError as error:
                # A server of an older version has no uploads in parts.
                if error.status != 404:
                    raise
        return client.upload(path, name, moved)


@contextmanager
def deleted_if_refused(
    client: ApiClient, file_id: str | None, name: str, unsure: str
) -> Iterator[None]:
    """Delete an uploaded file if the request that names it is refused, and say so in the error.

    `file_id` None: nothing was uploaded. `name`: that of the file in messages. `unsure`: the remedy
    if no answer arrived; the file is kept then, because a batch may use it.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise Failed(f"Stopped. {unsure}{_stays(file_id)}", INTERRUPTED) from None
    except Unreachable as error:
        raise Failed(f"{error} {unsure}{_stays(file_id)}", error.exit_code) from error
    except ApiError as error:
        if (error.status in UNSURE and error.may_pass) or error.status >= 500:
            raise Failed(f"{error} {unsure}{_stays(file_id)}", error.exit_code) from error
        if file_id is None:
            raise
        raise Failed(
            f"{str(error).replace(file_id, name)} {_delete(client, file_id)}", error.exit_code
        ) from error


def _stays(file_id: str | None) -> str:
    return (
        f" If nothing runs on the upload, `xalen-batch files delete {file_id}` deletes it."
        if file_id
        else ""
    )


def _delete(client: ApiClient, file_id: str) -> str:
    try:
        client.delete(f"/files/{file_id}")
    except Failed:
        return f"The upload stays; `xalen-batch files delete {file_id}` deletes it."
    return "The upload was deleted again."
