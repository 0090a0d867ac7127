"""The pages of docs/ that are made from code, one module a page."""
