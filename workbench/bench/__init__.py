"""`python -m workbench.bench`: what a cold start, a callback and a million of them cost, against budgets."""
