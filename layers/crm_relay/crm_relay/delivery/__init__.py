"""Durable and exactly once: inbox, outbox, effect ledger, worker loop, budget, over small ports.

It knows AWS and no CRM. Import from the modules: a receiver must not pay for what only workers need.
"""

import gc
import os

# What a function makes while it starts stays; looking for garbage in it takes a tenth of a cold start.
# `runtime.prepare`, the last step of every start, ends this.
if "AWS_LAMBDA_RUNTIME_API" in os.environ:
    gc.disable()
