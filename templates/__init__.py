"""Flex Templates and scheduled runs; no part of the installed package."""
