"""Signatures are those of Standard Webhooks."""

import base64

import pytest
from openai import OpenAI
from standardwebhooks.webhooks import Webhook

from xalen_batch.errors import InvalidRequest
from xalen_batch.webhooks import signing

# OpenAI's own example.
SECRET = "whsec_RdvaYFYUXuIFuEbvZHwMfYFhUf7aMYjYcmM24+Aj40c="
ID = "wh_685c059ae39c8190af8c71ed1022a24d"
TIMESTAMP = 1750861210
BODY = (
    b'{"id": "evt_685c059ae3a481909bdc86819b066fb6", "object": "event", "created_at": 1750861210,'
    b' "type": "response.completed", "data": {"id": "resp_123"}}'
)
SIGNATURE = "v1,gUAg4R2hWouRZqRQG4uJypNS8YK885G838+EHb4nKBY="


def test_the_signature_is_that_of_openais_example() -> None:
    assert signing.sign(SECRET, ID, TIMESTAMP, BODY) == SIGNATURE


def test_two_secrets_sign_while_one_rotates() -> None:
    new = signing.new_secret()
    found = signing.headers([new, SECRET], ID, TIMESTAMP, BODY)
    assert found == {
        "webhook-id": ID,
        "webhook-timestamp": str(TIMESTAMP),
        "webhook-signature": f"{signing.sign(new, ID, TIMESTAMP, BODY)} {SIGNATURE}",
    }
    client = OpenAI(api_key="none")
    for secret in (new, SECRET):
        client.webhooks.verify_signature(BODY, found, secret=secret, tolerance=10**12)


def test_a_batchs_webhook_without_a_secret_has_no_signature() -> None:
    assert "webhook-signature" not in signing.headers([], ID, TIMESTAMP, BODY)


def test_a_secret_has_32_random_bytes_with_padding() -> None:
    first, second = signing.new_secret(), signing.new_secret()
    assert first != second
    assert len(base64.b64decode(first.removeprefix("whsec_"), validate=True)) == 32
    assert first.endswith("=")
    assert signing.check_secret(first, "secret") == first
    assert Webhook(first)


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "whsec_",
        "whsec_c2hvcnQ=",
        "whsec_" + "A" * 43,
        "whsec_" + "!" * 44,
        "RdvaYFYUXuIFuEbvZHwMfYFhUf7aMYjYcmM24+Aj40c=",
        "whsec_" + base64.b64encode(bytes(65)).decode(),
        "whsec_é" + "A" * 43,
    ],
)
def test_another_form_of_a_secret_is_refused_without_quoting_it(secret: str) -> None:
    with pytest.raises(InvalidRequest, match=r"webhook\.secret: a secret is `whsec_`") as raised:
        signing.check_secret(secret, "webhook.secret")
    assert raised.value.param == "webhook.secret"
    assert "Without it, the deliveries are not signed" in raised.value.message
    assert len(secret) < 10 or secret[6:] not in raised.value.message
