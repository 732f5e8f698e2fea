"""The client: publishing from anywhere, and following the log without progress of one's own."""

from everlog.client.client import Client
from everlog.client.published import Published

__all__ = ["Client", "Published"]
