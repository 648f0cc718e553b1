"""Benchmarks of the proxy beside NGINX, HAProxy, hitch, stunnel and Caddy: `python -m benchmarks`."""
