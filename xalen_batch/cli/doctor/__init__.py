"""`doctor`: checks what an installation needs, one thing at a time."""

from xalen_batch.cli.doctor.command import commands

__all__ = ["commands"]
