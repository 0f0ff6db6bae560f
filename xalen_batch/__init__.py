"""xalen-batch: batch inference behind the OpenAI Files and Batches API."""

__version__ = "0.1.0"
