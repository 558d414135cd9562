"""amoCRM and Kommo: hooks that come in, the API that goes out, OAuth.

A receiver imports `hooks` alone; `client` brings httpx along, so nothing is imported here.
"""
