"""Durable and exactly once: inbox, outbox, effect ledger, worker loop, budget, over small ports.

It knows AWS and no CRM. Import from the modules: a receiver must not pay for what only workers need.
"""
