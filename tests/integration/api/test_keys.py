"""/v1/api_keys: an account's keys, with a key of the scope `admin`."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests import factories
from tests.integration.conftest import Api, new_key
from xalen_batch import db, ids
from xalen_batch.accounts import accounts, keys
from xalen_batch.accounts.accounts import Owner

PATH = "/v1/api_keys"


@pytest.fixture
def admin(api: Api) -> Api:
    return Api(api.port, new_key(scopes=["admin"]))


def test_a_key_is_made_used_listed_and_deleted(admin: Api) -> None:
    answer = admin.ask("POST", PATH, {"name": " ci "})
    made = answer.json
    assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
    secret = made.pop("secret")
    assert made == {
        "id": made["id"],
        "object": "api_key",
        "name": "ci",
        "prefix": secret[:13],
        "livemode": False,
        "scopes": ["submit", "read", "billing"],
        "created_at": made["created_at"],
        "last_used_at": None,
        "expires_at": None,
        "rotated_from": None,
    }
    assert admin.ask("GET", "/v1/files", key=secret).status == 200
    listed = admin.ask("GET", PATH).json
    assert (listed["object"], listed["has_more"], listed["first_id"]) == ("list", False, made["id"])
    mine, own = listed["data"]
    assert mine == {**made, "last_used_at": mine["last_used_at"]}
    assert mine["last_used_at"] is not None
    assert own["scopes"] == ["admin"]
    assert admin.ask("DELETE", f"{PATH}/{made['id']}").json == {
        "id": made["id"],
        "object": "api_key",
        "deleted": True,
    }
    assert admin.ask("GET", "/v1/files", key=secret).status == 401
    assert [key["id"] for key in admin.ask("GET", PATH).json["data"]] == [own["id"]]


@pytest.mark.parametrize(
    ("body", "overlap"), [(None, 86_400), ({}, 86_400), ({"overlap_seconds": 600}, 600)]
)
def test_a_rotated_key_goes_on_beside_the_new_one(admin: Api, body: Any, overlap: int) -> None:
    made = admin.ask("POST", PATH, {"name": "ci", "scopes": ["read"]}).json
    rotated = admin.ask("POST", f"{PATH}/{made['id']}/rotate", body).json
    assert (rotated["name"], rotated["scopes"], rotated["rotated_from"], rotated["expires_at"]) == (
        "ci",
        ["read"],
        made["id"],
        None,
    )
    old = next(key for key in admin.ask("GET", PATH).json["data"] if key["id"] == made["id"])
    assert abs(old["expires_at"] - datetime.now(UTC).timestamp() - overlap) < 60
    for secret in (made["secret"], rotated["secret"]):
        assert admin.ask("GET", "/v1/files", key=secret).status == 200
    again = admin.ask("POST", f"{PATH}/{made['id']}/rotate")
    assert (again.status, again.error["param"]) == (400, "key_id")


def test_a_key_rotated_without_an_overlap_is_refused_at_once(admin: Api) -> None:
    made = admin.ask("POST", PATH, {"name": "ci", "scopes": ["read"]}).json
    assert admin.ask("POST", f"{PATH}/{made['id']}/rotate", {"overlap_seconds": 0}).status == 200
    assert admin.ask("GET", "/v1/files", key=made["secret"]).status == 401


def test_a_key_may_have_an_end(admin: Api) -> None:
    end = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    for sent in (end.isoformat(), end.replace(tzinfo=None).isoformat(), int(end.timestamp())):
        assert admin.ask("POST", PATH, {"name": "x", "expires_at": sent}).json["expires_at"] == int(
            end.timestamp()
        )
    answer = admin.ask("POST", PATH, {"name": "x", "expires_at": "2020-01-01"})
    assert (answer.status, answer.error["param"]) == (400, "expires_at")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "name"),
        ({"name": "  "}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"name": "a\0b"}, "name"),
        ({"name": "x", "scopes": []}, "scopes"),
        ({"name": "x", "scopes": ["root"]}, "scopes.0"),
        ({"name": "x", "scopes": "read"}, "scopes"),
        ({"name": "x", "scope": ["read"]}, "scope"),
        ({"name": "x", "expires_at": "soon"}, "expires_at"),
    ],
)
def test_a_wrong_request_is_400_and_makes_no_key(
    admin: Api, body: dict[str, Any], param: str
) -> None:
    answer = admin.ask("POST", PATH, body)
    assert (answer.status, answer.error["param"]) == (400, param)
    assert len(admin.ask("GET", PATH).json["data"]) == 1


def test_a_misspelt_field_is_explained_by_those_there_are(admin: Api) -> None:
    assert (
        "Did you mean `scopes`?"
        in admin.ask("POST", PATH, {"name": "x", "scope": ["read"]}).error["message"]
    )


@pytest.mark.parametrize("overlap", [-1, 30 * 86_400 + 1, "24h", None])
def test_an_overlap_is_checked(admin: Api, overlap: Any) -> None:
    made = admin.ask("POST", PATH, {"name": "x"}).json
    answer = admin.ask("POST", f"{PATH}/{made['id']}/rotate", {"overlap_seconds": overlap})
    assert (answer.status, answer.error["param"]) == (400, "overlap_seconds")


def test_keys_are_those_of_the_callers_account_and_mode(admin: Api) -> None:
    with db.transaction() as session:
        own = accounts.authenticate(session, admin.key)
        other_mode = accounts.authenticate(
            session, factories.key(session, factories.account(session))
        )
        live = Owner(own.account_id, livemode=True)
        live_key, _ = keys.create(session, live, name="live")
    for foreign in (ids.render("key", live_key.id), ids.render("key", other_mode.key_id)):
        assert admin.ask("POST", f"{PATH}/{foreign}/rotate").status == 404
        assert admin.ask("DELETE", f"{PATH}/{foreign}").status == 404
    assert [key["id"] for key in admin.ask("GET", PATH).json["data"]] == [
        ids.render("key", own.key_id)
    ]


def test_pages_of_keys(admin: Api) -> None:
    made = [admin.ask("POST", PATH, {"name": str(number)}).json["id"] for number in range(3)]
    page = admin.ask("GET", f"{PATH}?limit=2").json
    assert ([key["id"] for key in page["data"]], page["has_more"]) == ([made[2], made[1]], True)
    rest = admin.ask("GET", f"{PATH}?limit=2&after={page['last_id']}").json
    assert ([key["name"] for key in rest["data"]], rest["has_more"]) == (["0", "test"], False)


def test_an_idempotency_key_does_not_keep_a_secret(admin: Api) -> None:
    header = {"idempotency-key": "again"}
    first, second = (
        admin.ask("POST", PATH, {"name": "x"}, headers=header).json["secret"] for _ in range(2)
    )
    assert first != second
