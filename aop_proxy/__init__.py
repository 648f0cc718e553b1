"""A pure-Python reverse proxy that requires and verifies TLS client certificates (Authenticated Origin Pulls)."""

__version__ = "0.1.0"
