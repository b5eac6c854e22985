"""What a process that is forked for `call_apart` finds done: logs set up, and what it will need imported."""

from rllib_haml.cli.logs import set_up_logs

set_up_logs(verbosity=0)

import rllib_haml.cli.tryout  # noqa: E402, F401
