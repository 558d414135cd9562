"""A robot of one portal calls; the deal appears in the hub portal once, whole."""
