"""CRM Relay: what all functions share. Each module can be read alone; the README of the project shows the whole."""

__version__ = "0.1.0"
