"""Leads go to CartelCRM, once."""
