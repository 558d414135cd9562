"""Bitrix24: calls that come in, the REST API that goes out, OAuth.

A receiver imports `calls` alone; nothing is imported here.
"""
