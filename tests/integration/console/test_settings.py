"""Settings in a browser: keys, webhooks and their deliveries, quotas."""

from collections.abc import Callable

import pytest

from tests import factories
from tests.integration.console.conftest import Person
from xalen_batch import db, ids
from xalen_batch.accounts.accounts import Scope
from xalen_batch.models import Account, WebhookEndpoint
from xalen_batch.webhooks import endpoints, history


@pytest.fixture
def admin(signed_in: Callable[..., Person]) -> Person:
    return signed_in(scopes=list(Scope))


@pytest.fixture
def webhook(admin: Person) -> WebhookEndpoint:
    with db.transaction() as session:
        return endpoints.create(session, admin.caller, url="https://example.com/hook")


def test_keys_are_listed_without_their_secrets(admin: Person, visitor: Person) -> None:
    with db.transaction() as session:
        factories.key(session, session.get_one(Account, admin.caller.account_id))
    page = admin.browser.page("/console/settings")
    assert page.text.count("xln_test_") >= 3
    assert "this session" in page.text
    assert admin.key not in page.html
    assert "Keys are listed for a key with the scope admin" in (
        visitor.browser.page("/console/settings").text
    )


def test_quotas_are_shown(visitor: Person) -> None:
    text = visitor.browser.page("/console/settings").text
    assert "open batches 0 1,000" in text
    assert "api keys 1 100" in text


def test_a_webhook_shows_its_deliveries_and_sends_one_again(
    admin: Person, webhook: WebhookEndpoint
) -> None:
    with db.transaction() as session:
        told = history.test(session, session.get_one(WebhookEndpoint, webhook.id))
    path = f"/console/settings/webhooks/{ids.render('whe', webhook.id)}"
    assert "xalen.webhook.test" in admin.browser.page(path).text
    again = admin.browser.post(f"{path}/deliveries/{ids.render('evt', told.event.id)}")
    assert again.location == path


def test_a_disabled_webhook_is_enabled(admin: Person, webhook: WebhookEndpoint) -> None:
    with db.transaction() as session:
        endpoints.set_enabled(session, session.get_one(WebhookEndpoint, webhook.id), False)
    path = f"/console/settings/webhooks/{ids.render('whe', webhook.id)}"
    admin.browser.page(path)
    admin.browser.post(f"{path}/enabled")
    with db.reading() as session:
        assert session.get_one(WebhookEndpoint, webhook.id).status == "enabled"
