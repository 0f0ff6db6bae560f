"""`doctor`: checks the parts that an installation needs."""

from xalen_batch.cli.doctor.command import commands

__all__ = ["commands"]
