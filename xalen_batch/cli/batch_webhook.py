"""`--webhook`: a URL that gets the events of the new batch alone."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from xalen_batch.cli.batch_options import usage_error
from xalen_batch.cli.output import say

SECRET = "XALEN_WEBHOOK_SECRET"

Webhook = Annotated[
    str | None,
    typer.Option(
        "--webhook",
        metavar="URL",
        help=(
            "An https URL to which the events of this batch are posted, such as its end. They are"
            f" signed with the secret in {SECRET}, `whsec_…`, if it is set."
        ),
    ),
]
SecretFile = Annotated[
    Path | None,
    typer.Option(
        "--webhook-secret-file",
        metavar="PATH",
        help=f"A file with that secret, in place of {SECRET}.",
    ),
]


@dataclass(frozen=True, slots=True)
class WebhookOptions:
    webhook: Webhook = None
    webhook_secret_file: SecretFile = None

    def asked_for(self) -> dict[str, str] | None:
        """The `webhook` of a request for a batch; None without one. A usage error for bad input.

        The secret is no option: other users of a machine can read the arguments of its processes.
        """
        if self.webhook is None:
            if self.webhook_secret_file is not None:
                raise typer.BadParameter(
                    "also give the URL, with --webhook.", param_hint="--webhook-secret-file"
                )
            return None
        parts = urlsplit(self.webhook)
        if parts.scheme not in ("https", "http") or not parts.netloc:
            raise typer.BadParameter(
                "give a whole URL, such as https://example.com/hooks/xalen.",
                param_hint="--webhook",
            )
        secret = self._secret()
        if secret is None:
            say(
                "The events will not be signed: whoever knows the URL can send the same. To have"
                f" them signed, set {SECRET} to `whsec_…` (docs/webhooks.md).",
                style="yellow",
            )
            return {"url": self.webhook}
        return {"url": self.webhook, "secret": secret}

    def _secret(self) -> str | None:
        from xalen_batch.webhooks import signing

        source = SECRET
        found = os.environ.get(SECRET, "").strip()
        if self.webhook_secret_file is not None:
            source = "--webhook-secret-file"
            try:
                found = self.webhook_secret_file.read_text("utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
                raise typer.BadParameter(
                    f"{self.webhook_secret_file} cannot be read: {reason}.", param_hint=source
                ) from None
        elif not found:
            return None
        with usage_error(source):
            return signing.check_secret(found, "webhook.secret")
