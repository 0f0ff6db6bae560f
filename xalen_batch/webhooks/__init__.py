"""Webhooks: endpoints of an account, and the sending of events to them (docs/webhooks.md)."""
