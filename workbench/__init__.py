"""What runs on a developer's machine and is never deployed: local stack, CRM sandboxes, the `relay` command."""
