"""CartelCRM: submitting leads, asking for their status, reading its callbacks.

The receiver imports `callbacks` alone; `client` brings httpx along, so nothing is imported here.
"""
