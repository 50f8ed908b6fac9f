"""Tokens of an OpenID Connect provider: its keys, their verification, and sign-in.

Nothing else imports this package before a provider is configured: with the libraries that it needs a gateway takes
14 MiB more.
"""
