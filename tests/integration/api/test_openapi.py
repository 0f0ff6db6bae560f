"""Random requests from the API's description: it has every answer, and none is a 500."""

import os
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.described import description
from tests.integration.conftest import Api
from xalen_batch import ids

# Examples of each operation; XALEN is not in its name, since it is no setting of the product.
EXAMPLES = int(os.environ.get("OPENAPI_EXAMPLES", "8"))
CHECKS = [
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
    content_type_conformance,
]

schema = schemathesis.openapi.from_dict(description())
OPERATIONS = [operation.ok() for operation in schema.get_all_operations()]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_every_answer_is_one_that_is_described(operation: Any, api: Api) -> None:
    file = api.upload(b"{}\n")["id"]
    batch = api.ask(
        "POST",
        "/v1/batches",
        {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"},
    ).json["id"]
    # The events of a stream are no JSON.
    is_stream = operation.label.endswith("/events")
    checks = [check for check in CHECKS if not (is_stream and check is response_schema_conformance)]
    known = {
        "file_id": file,
        "batch_id": batch,
        "message_batch_id": f"msg{batch}",
        "model_id": "mistral-small-3-1",
        "month": "2026-11",
        "schedule_id": ids.render("sched", ids.new()),
    }

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(
        case=st.one_of(
            operation.as_strategy(), operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
        )
    )
    def ask(case: Any) -> None:
        # Sometimes an id that exists, so that not all answers are 404.
        for name, value in (case.path_parameters or {}).items():
            if len(str(value)) % 2 and name in known:
                case.path_parameters[name] = known[name]
        answer = case.call(
            base_url=f"http://127.0.0.1:{api.port}", headers={"authorization": f"Bearer {api.key}"}
        )
        case.validate_response(answer, checks=checks)
        if answer.status_code >= 400:
            is_anthropics = operation.path.startswith("/v1/messages")
            fields = {"message", "type"} if is_anthropics else {"message", "type", "param", "code"}
            assert set(answer.json()["error"]) == fields

    ask()
