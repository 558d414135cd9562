"""What runs on a developer's machine and is never deployed: the local stack, sandboxes of the CRMs, the `relay` command."""
