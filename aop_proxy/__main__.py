"""`python -m aop_proxy`."""

import sys

from aop_proxy.cli import main

sys.exit(main())
