"""The one exception whose message is meant for the user.

Printed without a traceback, exit status 2.
"""

from bench.runner import Refused


class DemoError(Refused):
    pass
