"""`gunicorn app:application` reads this file from the directory it is started in."""

bind = "unix:/run/app/app.sock"  # no port that anybody else on this machine could ask
umask = 0o007  # the socket is for this user and its group: put the proxy's user into it
worker_class = "gthread"  # the default, sync, closes after each response and takes no notice of `keepalive`
workers = 2
threads = 8
keepalive = 910  # seconds: longer than the 900 for which Cloudflare's edge keeps a connection
worker_connections = 4096  # kept connections that wait for their next request count too
graceful_timeout = 30
control_socket_disable = True  # newer ones make a socket in the home directory, which a service need not have
