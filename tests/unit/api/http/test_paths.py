"""Azure's paths, and what is none."""

import pytest

from xalen_batch.api.http import paths


@pytest.mark.parametrize(
    ("path", "canonical", "deployment"),
    [
        ("/openai/files", "/v1/files", None),
        ("/openai/v1/files", "/v1/files", None),
        ("/openai/batches/batch_1/cancel", "/v1/batches/batch_1/cancel", None),
        ("/openai/deployments/a/chat/completions", "/v1/chat/completions", "a"),
        ("/openai/deployments/a.b-c/embeddings", "/v1/embeddings", "a.b-c"),
        ("/openai/v1", "/v1/v1", None),
        ("/openai", "/openai", None),
        ("/openai2/files", "/openai2/files", None),
        ("/v1/openai/files", "/v1/openai/files", None),
        ("/v1/files", "/v1/files", None),
    ],
)
def test_azures_prefix_is_replaced(path: str, canonical: str, deployment: str | None) -> None:
    assert paths.of_azure(path) == (canonical, deployment)
